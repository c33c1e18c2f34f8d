"""A record in sections to read: on a terminal, or in Markdown."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Final

from cris_bench.options import ALONE
from cris_bench.record.machine import Machine
from cris_bench.record.rows import Scope
from cris_bench.record.schema import Parity, Record
from cris_bench.report.like import like_section
from cris_bench.report.reached import Reached, reached
from cris_bench.report.scope import FAILED, scope_section
from cris_bench.report.section import Section, aligned, points, to_markdown, to_text

# What x86 processors of the last ten years differ in; records of other machines have none of them.
_INSTRUCTIONS: Final = ("AVX2", "AVX-512", "VNNI", "BF16", "AMX")


def markdown(
    record: Record, title: str = "cris-bench", *, level: int = 1, price: float | None = None
) -> str:
    """The record as a Markdown document with this title, a heading of that level.

    With `price`, dollars of the machine for an hour, also what a million masks cost.
    """
    first, *others = sections(record, price)
    first = dataclasses.replace(first, title=title)
    return to_markdown([first], level=level) + "\n" + to_markdown(others, level=level + 1)


def terminal(record: Record, price: float | None = None) -> str:
    """The record as plain text in aligned columns; `price` as in `markdown`."""
    return to_text(sections(record, price))


def sections(record: Record, price: float | None = None) -> list[Section]:
    """All that a record says: itself, each scope, then accuracy, clients, memory and the rest."""
    made = [_heading(record), like_section(record)]
    made += [scope_section(record, scope) for scope in Scope]
    made += [
        _accuracy(record),
        _clients(record, price),
        _memory(record),
        _ceilings(record),
        _stages(record),
        _bundles(record),
        _absent(record),
    ]
    return [made[0], *(section for section in made[1:] if section.rows)]


def _heading(record: Record) -> Section:
    model, machine = record.model, record.machine
    weights = model.weights
    weights = "random weights" if weights == "random" else f"checkpoint {weights[:12]}"
    threads = "all cores" if record.threads is None else f"{record.threads} threads"
    clock = "" if machine.clock_mhz is None else f" of at most {machine.clock_mhz:,.0f} MHz"
    intro: tuple[str, ...] = (
        f"{model.architecture}, {model.parameters / 1e6:.2f} M parameters, {model.input_size} x "
        f"{model.input_size}, {model.word_len} tokens, {weights}.",
        f"{machine.cpu}, {machine.cores} cores{clock} ({_instructions(machine)}), "
        + (f"GPU {machine.gpu}, " if machine.gpu else "")
        + f"{machine.system}; Python {machine.python}, "
        + ", ".join(f"{name} {version}" for name, version in machine.versions.items())
        + ".",
        _rounds(record) + f", {threads}; medians, and 95% intervals of ratios.",
        f"{record.created}, commit {record.commit or 'unknown'}: "
        f"`{shlex.join(['cris-bench', *record.command])}`",
    )
    if (record.commit or "").endswith("+"):
        intro += ("NOT OF A COMMIT: the source tree had changes. Do not publish these figures.",)
    return Section("cris-bench", intro)


def _instructions(machine: Machine) -> str:
    """The vector extensions that decide speed: those that are there, and those that are not."""
    here = ", ".join(machine.flags) or "none of note"
    missing = [name for name in _INSTRUCTIONS if name not in machine.flags]
    told = len(missing) < len(_INSTRUCTIONS)  # earlier records use other names
    return f"{here}; without {', '.join(missing)}" if missing and told else here


def _rounds(record: Record) -> str:
    counts = [len(row.seconds) for row in record.rows if row.scope not in (*ALONE, Scope.DEVICE)]
    least, most = min(counts, default=0), max(counts, default=0)
    rounds = f"{most}" if least == most else f"{least} to {most}"
    order = "in turn" if record.seed is None else f"in random order (seed {record.seed})"
    return f"{record.warmup} untimed and {rounds} timed rounds, contestants {order}"


def _accuracy(record: Record) -> Section:
    names = list(dict.fromkeys(name for a in record.accuracy for name in a.precision))
    rows = tuple(
        (
            accuracy.name,
            f"{accuracy.data} {accuracy.split}",
            f"{accuracy.expressions:,}",
            points(accuracy.mean_iou),
            points(accuracy.overall_iou),
            *(points(accuracy.precision.get(name)) for name in names),
        )
        for accuracy in record.accuracy
    )
    return Section(
        "Accuracy",
        ("Of the very files that were timed, in points of 100.",),
        ("contestant", "data", "expressions", "mIoU", "oIoU", *names),
        rows,
        frozenset({"data"}),
    )


def _clients(record: Record, price: float | None) -> Section:
    entries = record.clients
    columns = {
        "contestant": [entry.title for entry in entries],
        "clients": [str(entry.threads) for entry in entries],
        "masks/s": [f"{entry.throughput:.2f}" for entry in entries],
        "p50 ms": aligned([entry.p50_ms for entry in entries]),
        "p95 ms": aligned([entry.p95_ms for entry in entries]),
        "p99 ms": aligned([entry.p99_ms for entry in entries]),
        "calls": [f"{len(entry.latencies):,}" for entry in entries],
        "masks/Wh": [
            "" if entry.masks_per_wh is None else f"{entry.masks_per_wh:,.0f}" for entry in entries
        ],
        "$ per million": [
            "" if price is None else f"{price / 3.6e3 / entry.throughput * 1e6:,.2f}"
            for entry in entries
        ],
    }
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return Section(
        "Throughput",
        ("Callers that each ask for the next mask, end to end, as soon as they have the last.",),
        tuple(kept),
        tuple(zip(*kept.values(), strict=True)),
        notes=(f"Energy: {record.energy}.",) if record.energy else (),
    )


def _memory(record: Record) -> Section:
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
    return Section(
        "Memory",
        ("Megabytes (10^6), each contestant in a process of its own.",),
        columns[:shown],
        tuple(cells[:shown] for cells in rows),
    )


def _ceilings(record: Record) -> Section:
    rows = tuple(
        (
            f"{entry.device} {entry.compute}",
            f"{entry.matrix_ops_per_s / 1e9:,.0f}",
            f"{entry.copy_bytes_per_s / 1e9:,.1f}",
        )
        for entry in record.ceilings
    )
    return Section(
        "Ceilings",
        ("What a large product and a large copy reached on this machine.",),
        ("arithmetic", "Gop/s", "copy GB/s"),
        rows,
    )


def _stages(record: Record) -> Section:
    found = reached(record)
    sizes = any((stage.work.batch, stage.work.expressions) != (1, 1) for stage in found)
    operations = aligned([stage.work.operations / 1e9 for stage in found])
    times = aligned([stage.work.seconds * 1e3 for stage in found])
    rows = tuple(
        (
            stage.work.name,
            stage.work.stage,
            *((str(stage.work.batch), str(stage.work.expressions)) if sizes else ()),
            work,
            f"{stage.work.weight_bytes / 1e6:,.1f}",
            time,
            f"{stage.operations_per_s / 1e9:,.0f}",
            *_shares(stage),
        )
        for stage, work, time in zip(found, operations, times, strict=True)
    )
    return Section(
        "Stages against the ceilings",
        (
            "A pass of the network, against the highest rate that was seen on this machine in its "
            "arithmetic, in a product or in a stage. Bandwidth: what reading the weights once "
            "takes of it.",
        ),
        (
            *("contestant", "stage"),
            *(("images", "expressions") if sizes else ()),
            *("Gop", "weights MB", "ms", "Gop/s", "of matrix", "of bandwidth"),
        ),
        rows,
        frozenset({"stage"}),
    )


def _shares(stage: Reached) -> tuple[str, str]:
    if stage.ceiling is None:
        return "not measured", "not measured"
    share = "fewer products" if stage.matrix_share is None else f"{stage.matrix_share:.0%}"
    return share, f"{stage.copy_share:.0%}"


def _bundles(record: Record) -> Section:
    words = {
        Parity.PROVED: "proved",
        Parity.FAILED: FAILED,
        Parity.NONE: "no record of it: run cris-export check BUNDLE",
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
    return Section(
        "Bundles",
        (),
        ("bundle", "stores", "MB", "parity gate", "mask IoU", "manifest SHA-256"),
        rows,
        frozenset({"stores", "parity gate", "manifest SHA-256"}),
    )


def _absent(record: Record) -> Section:
    whys = dict.fromkeys(entry.install for entry in record.absent)
    rows = tuple(
        (why, "; ".join(dict.fromkeys(e.name for e in record.absent if e.install == why)))
        for why in whys
    )
    return Section(
        "Not here",
        ("These could not take part.",),
        ("why", "who"),
        rows,
        frozenset({"who"}),
    )
