"""Throughput: every engine under some numbers of clients, with some numbers of CPU threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import closing

import torch

from cris_bench.budget import NO_TIME, Budget, OutOfTime
from cris_bench.contestants.contestant import Identity
from cris_bench.contestants.starters import Starters
from cris_bench.record import machine
from cris_bench.record.rows import Clients
from cris_bench.record.schema import Absent
from cris_bench.scopes.clients import Segment, measure_clients
from cris_bench.scopes.energy import Meter
from cris_bench.subject import Step
from cris_deploy.execution.backends import BackendName

_CALLS = 2
"""Of each client at least, whatever time they have."""
_SECONDS = 20.0
"""That clients call for at most: enough for percentiles, and for a counter of energy."""


def measure_throughput(
    starters: Starters, step: Step, tick: Callable[[], object], budget: Budget, meter: Meter
) -> Iterator[Clients]:
    """Time PyTorch eager and every engine, OpenVINO also with a stream for each core.

    Args:
        starters: Who takes part.
        step: Called with a line before each step.
        tick: Called after every call.
        budget: For all of it; who has no time is noted as absent.
        meter: Of the energy.
    """
    options = starters.options
    if not options.clients:
        return
    counts = options.thread_counts or (options.threads,)
    left = len(counts) * len(options.clients) * (2 * len(starters.ours) + 1)

    def under_load(who: Identity, segment: Segment, threads: int | None) -> Iterator[Clients]:
        nonlocal left
        for clients in options.clients:
            share, left = min(_SECONDS, budget.left / max(1, left)), left - 1
            # Two calls of each client, the untimed one not counted, are what a figure takes.
            step(f"{clients} clients of {who.name}, {threads or 'all'} threads")
            try:
                with budget.cut():
                    found = measure_clients(
                        who,
                        segment,
                        threads=clients,
                        calls=_CALLS if options.iterations is None else options.iterations,
                        seconds=share if options.iterations is None else 0.0,
                        meter=meter,
                        height=options.image_height,
                        width=options.image_width,
                        tick=tick,
                    )
            except OutOfTime:
                starters.absent.append(Absent(f"{who.name}, {clients} clients", NO_TIME))
            else:
                yield dataclasses.replace(found, cpu_threads=threads)

    for threads in counts:
        if starters.eager is not None:
            before = torch.get_num_threads()
            torch.set_num_threads(threads or machine.cores())
            yield from under_load(starters.eager.identity, starters.eager.segment, threads)
            torch.set_num_threads(before)
        streams = min(max(options.clients), machine.cores())
        for engine in starters.ours:
            way, who = engine.way, engine.identity
            if threads == options.threads:
                yield from under_load(who, engine.engine.segment, threads)
            else:
                with closing(way.open(threads)) as other:
                    yield from under_load(who, other.segment, threads)
            if way.backend is BackendName.OPENVINO and streams > 1:
                with closing(way.open(threads, streams)) as parallel:
                    for found in under_load(who, parallel.segment, threads):
                        yield dataclasses.replace(found, streams=streams)
