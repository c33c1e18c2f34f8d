"""A record as tables to read: on a terminal, or in Markdown."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Final

from cris_bench.record.schema import NOISY, Parity, Record, Role, Row, Scope
from cris_bench.report.layout import Table, to_markdown, to_text
from cris_bench.report.reached import Reached, reached

TITLES: Final = {
    Scope.NETWORK: "Network only",
    Scope.DEVICE: "Device-resident",
    Scope.END_TO_END: "End to end",
    Scope.FROM_BYTES: "From encoded bytes",
    Scope.EXPRESSION: "Further expression",
    Scope.REPEATED_EXPRESSION: "Repeated expression",
    Scope.REPEATED_IMAGE: "Repeated image",
    Scope.OVERHEAD: "Overhead of the engine",
    Scope.LOAD: "Load",
    Scope.FIRST_CALL: "First call",
}
_MEANING: Final = {
    Scope.NETWORK: "From image and tokens as tensors in host memory to logits in host memory.",
    Scope.DEVICE: "As network only, but inputs and logits stay in the device's memory.",
    Scope.END_TO_END: "From a decoded image and words to the boolean mask at image size.",
    Scope.FROM_BYTES: "From the bytes of an encoded image and words to the mask at image size.",
    Scope.EXPRESSION: "The next expression on an image that is already encoded.",
    Scope.REPEATED_EXPRESSION: "Words that the engine has met, on a new image.",
    Scope.REPEATED_IMAGE: "New words on an image that the engine has met.",
    Scope.OVERHEAD: "Engine.segment minus its stage runs and mask step, both in one round.",
    Scope.LOAD: "From files to an engine that is ready.",
    Scope.FIRST_CALL: "The first mask after loading.",
}
# What happens once, or is a difference, has no rate.
_RATELESS: Final = (Scope.OVERHEAD, Scope.LOAD, Scope.FIRST_CALL)
_FROM_IMAGE: Final = (
    Scope.END_TO_END,
    Scope.FROM_BYTES,
    Scope.REPEATED_EXPRESSION,
    Scope.REPEATED_IMAGE,
)
_ROLES: Final = {Role.BASELINE: "baseline", Role.PEER: "peer", Role.ENGINE: "ours"}
_FAILED: Final = "PARITY GATE FAILED"


def markdown(record: Record, title: str = "cris-bench", *, level: int = 1) -> str:
    """The record as a Markdown document with this title, a heading of that level."""
    first, *others = tables(record)
    first = dataclasses.replace(first, title=title)
    return to_markdown([first], level=level) + "\n" + to_markdown(others, level=level + 1)


def terminal(record: Record) -> str:
    """The record as plain text in aligned columns."""
    return to_text(tables(record))


def tables(record: Record) -> list[Table]:
    """All that a record says: itself, a table of each scope, then machine, memory and the rest."""
    made = [_heading(record)]
    made += [_scope(record, scope) for scope in Scope]
    made += [
        _accuracy(record),
        _clients(record),
        _memory(record),
        _ceilings(record),
        _stages(record),
        _bundles(record),
        _absent(record),
    ]
    return [made[0], *(table for table in made[1:] if table.rows)]


def aligned(values: Sequence[float]) -> list[str]:
    """A column of numbers with as many decimals as the smallest one wants."""
    smallest = min((abs(value) for value in values if value), default=1.0)
    decimals = 1 if smallest >= 10 else 2 if smallest >= 1 else 3
    return [f"{value:.{decimals}f}" for value in values]


def _heading(record: Record) -> Table:
    model, machine = record.model, record.machine
    weights = model.weights
    weights = "random weights" if weights == "random" else f"checkpoint {weights[:12]}"
    threads = "all cores" if record.threads is None else f"{record.threads} threads"
    clock = "" if machine.clock_mhz is None else f" of at most {machine.clock_mhz:,.0f} MHz"
    intro = (
        f"{model.architecture}, {model.parameters / 1e6:.2f} M parameters, {model.input_size} x "
        f"{model.input_size}, {model.word_len} tokens, {weights}.",
        f"{machine.cpu}, {machine.cores} cores{clock} ({', '.join(machine.flags) or 'no AVX2'}), "
        + (f"GPU {machine.gpu}, " if machine.gpu else "")
        + f"{machine.system}; Python {machine.python}, "
        + ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        + ".",
        f"{record.warmup} untimed and {record.iterations} timed rounds, contestants of a group in "
        f"turn, {threads}; medians.",
        f"{record.created}, commit {record.commit or 'unknown'}: "
        f"`{shlex.join(['cris-bench', *record.command])}`",
    )
    return Table("cris-bench", intro)


def _scope(record: Record, scope: Scope) -> Table:
    rows = [row for row in record.rows if row.scope is scope]
    intro = _MEANING[scope]
    if scope in _FROM_IMAGE:
        intro += f" The image has {record.image_width} x {record.image_height} pixels."
    columns = _columns(record, scope, rows)
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return Table(
        TITLES[scope],
        (intro,),
        tuple(kept),
        tuple(zip(*kept.values(), strict=True)),
        frozenset({"role", "remarks"}),
        tuple(_footnotes(record, rows)),
    )


def _columns(record: Record, scope: Scope, rows: Sequence[Row]) -> dict[str, list[str]]:
    """Heading -> cells; a column without any cell is of no use to this scope."""
    rate = scope not in _RATELESS
    sizes = any((row.batch, row.expressions) != (1, 1) for row in rows)
    ious = {accuracy.name: accuracy.mean_iou for accuracy in record.accuracy}
    network = {
        (row.name, row.batch, row.expressions): row.mask_ms
        for row in record.rows
        if row.scope is Scope.NETWORK
    }

    def over_network(row: Row) -> str:
        partner = network.get((row.name, row.batch, row.expressions))
        if scope is not Scope.END_TO_END or partner is None:
            return ""
        return f"{row.mask_ms / partner - 1:+.1%}"

    def paper(row: Row) -> str:
        like = scope is Scope.NETWORK and (row.batch, row.expressions) == (1, 1)
        return "" if record.paper_fps is None or not like else f"{record.paper_fps:.2f}"

    return {
        "contestant": [row.name for row in rows],
        "role": [_ROLES[row.role] for row in rows],
        "images": [str(row.batch) if sizes else "" for row in rows],
        "expressions": [str(row.expressions) if sizes else "" for row in rows],
        "ms a mask" if rate else "ms": aligned([row.mask_ms for row in rows]),
        "masks/s": [f"{row.fps:.2f}" if rate else "" for row in rows],
        "paper, V100": [paper(row) for row in rows],
        "x eager": ["" if row.ratio is None else f"{row.ratio:.2f}" for row in rows],
        "over network": [over_network(row) for row in rows],
        "spread": ["" if math.isnan(row.spread) else f"{row.spread:.1%}" for row in rows],
        "logit error": [_error(row.logit_error) for row in rows],
        "mIoU": [_points(ious.get(row.name)) if rate else "" for row in rows],
        "remarks": ["; ".join(_remarks(record, row)) for row in rows],
    }


def _remarks(record: Record, row: Row) -> Iterable[str]:
    if row.noisy:
        yield "noisy"
    parity = None if row.bundle is None else record.bundles[row.bundle].parity
    if parity is Parity.FAILED:
        yield _FAILED
    if parity is Parity.NONE:
        yield "parity not proved"
    if row.note:
        yield row.note


def _footnotes(record: Record, rows: Sequence[Row]) -> Iterable[str]:
    if any(row.noisy for row in rows):
        yield (
            f"Noisy: the middle half of the times spreads over more than {NOISY:.0%} of their "
            f"median. Run it again on a quiet machine."
        )
    used = {row.bundle for row in rows}
    failed = [
        name
        for name, bundle in record.bundles.items()
        if name in used and bundle.parity is Parity.FAILED
    ]
    if failed:
        yield (
            f"Parity gate failed: {', '.join(failed)} does not give the checkpoint's masks; its "
            f"speed is that of another model."
        )


def _error(error: float | None) -> str:
    if error is None:
        return ""
    return f"{error:.1e}" if math.isfinite(error) else "not finite"


def _points(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _accuracy(record: Record) -> Table:
    names = list(dict.fromkeys(name for a in record.accuracy for name in a.precision))
    rows = tuple(
        (
            accuracy.name,
            f"{accuracy.data} {accuracy.split}",
            f"{accuracy.expressions:,}",
            _points(accuracy.mean_iou),
            _points(accuracy.overall_iou),
            *(_points(accuracy.precision.get(name)) for name in names),
        )
        for accuracy in record.accuracy
    )
    return Table(
        "Accuracy",
        ("Of the very files that were timed, in points of 100.",),
        ("contestant", "data", "expressions", "mIoU", "oIoU", *names),
        rows,
        frozenset({"data"}),
    )


def _clients(record: Record) -> Table:
    rows = tuple(
        (
            entry.name,
            str(entry.threads),
            f"{entry.throughput:.2f}",
            *aligned([entry.p50_ms, entry.p95_ms, entry.p99_ms]),
            f"{len(entry.latencies):,}",
        )
        for entry in record.clients
    )
    return Table(
        "Clients",
        ("Threads that each ask for the next mask as soon as they have the last.",),
        ("contestant", "clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "calls"),
        rows,
    )


def _memory(record: Record) -> Table:
    rows = tuple(
        (
            entry.name,
            f"{entry.host_peak_bytes / 1e6:,.0f}",
            f"{entry.host_weights_bytes / 1e6:,.0f}",
            f"{entry.host_peak_bytes / entry.host_weights_bytes:.2f}",
            "" if entry.device_peak_bytes is None else f"{entry.device_peak_bytes / 1e6:,.0f}",
        )
        for entry in record.memory
    )
    columns = ("contestant", "peak on the host", "weights", "peak/weights", "peak on the device")
    shown = len(columns) if any(cells[-1] for cells in rows) else len(columns) - 1
    return Table(
        "Memory",
        ("Megabytes (10^6), each contestant in a process of its own.",),
        columns[:shown],
        tuple(cells[:shown] for cells in rows),
    )


def _ceilings(record: Record) -> Table:
    rows = tuple(
        (
            f"{entry.device} {entry.compute}",
            f"{entry.matrix_ops_per_s / 1e9:,.0f}",
            f"{entry.copy_bytes_per_s / 1e9:,.1f}",
        )
        for entry in record.ceilings
    )
    return Table(
        "Ceilings",
        ("What this machine reached in a large matrix product and in a large copy.",),
        ("arithmetic", "Gop/s", "copy GB/s"),
        rows,
    )


def _stages(record: Record) -> Table:
    found = reached(record)
    operations = aligned([stage.work.operations / 1e9 for stage in found])
    times = aligned([stage.work.seconds * 1e3 for stage in found])
    rows = tuple(
        (
            stage.work.name,
            stage.work.stage,
            work,
            f"{stage.work.weight_bytes / 1e6:,.1f}",
            time,
            f"{stage.operations_per_s / 1e9:,.0f}",
            *_shares(stage),
        )
        for stage, work, time in zip(found, operations, times, strict=True)
    )
    return Table(
        "Stages against the ceilings",
        ("One image and one expression. Bandwidth: what reading the weights once takes of it.",),
        ("contestant", "stage", "Gop", "weights MB", "ms", "Gop/s", "of matrix", "of bandwidth"),
        rows,
        frozenset({"stage"}),
    )


def _shares(stage: Reached) -> tuple[str, str]:
    matrix, copy = stage.matrix_share, stage.copy_share
    if matrix is None or copy is None:
        return "not measured", "not measured"
    return f"{matrix:.0%}", f"{copy:.0%}"


def _bundles(record: Record) -> Table:
    words = {
        Parity.PROVED: "proved",
        Parity.FAILED: _FAILED,
        Parity.NONE: "no record of it: run cris-export check",
    }
    rows = tuple(
        (
            name,
            bundle.precision,
            f"{bundle.bytes / 1e6:,.1f}",
            words[bundle.parity],
            "" if bundle.mean_iou is None else f"{bundle.mean_iou:.4f}",
            bundle.sha256[:12],
        )
        for name, bundle in record.bundles.items()
    )
    return Table(
        "Bundles",
        (),
        ("bundle", "stores", "MB", "parity gate", "mask IoU", "manifest SHA-256"),
        rows,
        frozenset({"stores", "parity gate", "manifest SHA-256"}),
    )


def _absent(record: Record) -> Table:
    rows = tuple((entry.name, entry.install) for entry in record.absent)
    return Table(
        "Not installed",
        ("These could not take part.",),
        ("contestant", "install"),
        rows,
        frozenset({"install"}),
    )
