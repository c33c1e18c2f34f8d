"""A record in sections to read: on a terminal, or in Markdown."""

from __future__ import annotations

import dataclasses
import shlex

from cris_bench.options import ALONE
from cris_bench.record.rows import Scope
from cris_bench.record.schema import Parity, Record
from cris_bench.report.like import like_section
from cris_bench.report.reached import Reached, reached
from cris_bench.report.scope import FAILED, scope_section
from cris_bench.report.section import Section, aligned, points, to_markdown, to_text


def markdown(record: Record, title: str = "cris-bench", *, level: int = 1) -> str:
    """The record as a Markdown document with this title, a heading of that level."""
    first, *others = sections(record)
    first = dataclasses.replace(first, title=title)
    return to_markdown([first], level=level) + "\n" + to_markdown(others, level=level + 1)


def terminal(record: Record) -> str:
    """The record as plain text in aligned columns."""
    return to_text(sections(record))


def sections(record: Record) -> list[Section]:
    """All that a record says: itself, each scope, then accuracy, clients, memory and the rest."""
    made = [_heading(record), like_section(record)]
    made += [scope_section(record, scope) for scope in Scope]
    made += [
        _accuracy(record),
        _clients(record),
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
        f"{machine.cpu}, {machine.cores} cores{clock} ({', '.join(machine.flags) or 'no AVX2'}), "
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


def _clients(record: Record) -> Section:
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
    return Section(
        "Clients",
        ("Threads that each ask for the next mask as soon as they have the last.",),
        ("contestant", "clients", "images/s", "p50 ms", "p95 ms", "p99 ms", "calls"),
        rows,
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
        ("What this machine reached in a large matrix product and in a large copy.",),
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
        ("A pass of the network. Bandwidth: what reading the weights once takes of it.",),
        (
            *("contestant", "stage"),
            *(("images", "expressions") if sizes else ()),
            *("Gop", "weights MB", "ms", "Gop/s", "of matrix", "of bandwidth"),
        ),
        rows,
        frozenset({"stage"}),
    )


def _shares(stage: Reached) -> tuple[str, str]:
    matrix, copy = stage.matrix_share, stage.copy_share
    if matrix is None or copy is None:
        return "not measured", "not measured"
    return f"{matrix:.0%}", f"{copy:.0%}"


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
