"""Each contestant alone in a process of its own: memory, loading and the first call."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cris_bench.budget import Budget
from cris_bench.contestants.contestant import Identity
from cris_bench.record.rows import Role, Row, Scope
from cris_bench.record.schema import Memory
from cris_bench.scopes.child import Measured, Task
from cris_bench.scopes.timing import Timing, paired_ratio
from cris_deploy import documents
from cris_deploy.errors import BackendError

REPEATS: Final = 3
"""Processes for each contestant, made in turn as in every race."""


@dataclass(frozen=True)
class Alone:
    """A contestant that is to be alone.

    Attributes:
        identity: For the record.
        task: What its process does.
        weights_bytes: Size of its weights as they are stored.
    """

    identity: Identity
    task: Task
    weights_bytes: int


def measure_alone(
    contestants: Sequence[Alone],
    scopes: Sequence[Scope],
    tick: Callable[[], object],
    budget: Budget | None = None,
) -> tuple[list[Row], list[Memory]]:
    """Load and run each in processes of its own; the largest peak counts.

    Args:
        contestants: The baseline first.
        scopes: LOAD, FIRST_CALL or both: which rows to give.
        tick: Called after every process.
        budget: When it ends, each has been made as often as it was; None for no end.

    Raises:
        BackendError: a process failed.
    """
    results: dict[str, list[Measured]] = {one.identity.name: [] for one in contestants}
    budget = budget or Budget(None)
    for turn in range(REPEATS):
        if turn and budget.left == 0:
            break
        for one in contestants:
            results[one.identity.name].append(_run(one))
            tick()
    times: dict[Scope, Mapping[str, Timing]] = {
        Scope.LOAD: {
            name: Timing(name, tuple(measured.load for measured in found))
            for name, found in results.items()
        },
        Scope.FIRST_CALL: {
            name: Timing(name, tuple(measured.first_call for measured in found))
            for name, found in results.items()
        },
    }
    rows = [
        _row(scope, one.identity, times[scope], contestants)
        for scope in times
        if scope in scopes
        for one in contestants
    ]
    memory = [_memory(one, results[one.identity.name]) for one in contestants]
    return rows, memory


def _row(
    scope: Scope, who: Identity, times: Mapping[str, Timing], contestants: Sequence[Alone]
) -> Row:
    first = contestants[0].identity
    ratio = None
    if first.role is Role.BASELINE:
        ratio = paired_ratio(times[first.name], times[who.name])
    return Row(
        scope=scope,
        name=who.name,
        role=who.role,
        device=str(who.place),
        compute=who.compute,
        batch=1,
        expressions=1,
        masks=1,
        seconds=times[who.name].seconds,
        ratio=ratio,
        bundle=who.bundle,
        note="image to mask; others their network alone"
        if scope is Scope.FIRST_CALL and who.role is Role.ENGINE
        else "",
    )


def _memory(one: Alone, found: Sequence[Measured]) -> Memory:
    taken = [m.device_peak_bytes for m in found if m.device_peak_bytes is not None]
    return Memory(
        name=one.identity.name,
        host_peak_bytes=max(measured.peak_bytes for measured in found),
        host_weights_bytes=one.weights_bytes,
        device_peak_bytes=max(taken) if taken else None,
    )


def _run(one: Alone) -> Measured:
    # Its packages are ours, wherever this process found them.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    task = dataclasses.replace(one.task, started=time.monotonic())
    done = subprocess.run(
        [sys.executable, "-m", "cris_bench.scopes.child", documents.to_json(task)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        raise BackendError(f"{one.identity.name} failed in a process of its own: {last}")
    last = done.stdout.splitlines()[-1]
    return documents.read(Measured, last, f"what {one.identity.name} measured")
