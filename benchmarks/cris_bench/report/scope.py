"""One scope of a record: every contestant's times, and what has to be said of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from cris_bench.record.intervals import times_eager
from cris_bench.record.rows import NOISY, NotFinite, Role, Row, Scope
from cris_bench.record.schema import Parity, Record
from cris_bench.report.section import Section, aligned, points

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
    Scope.NETWORK: "From image and tokens as tensors to logits.",
    Scope.DEVICE: "From an image in the GPU's memory and words to the mask there.",
    Scope.END_TO_END: "From a decoded image and words to the boolean mask at image size.",
    Scope.FROM_BYTES: "From the bytes of an encoded image and words to the mask at image size.",
    Scope.EXPRESSION: "The next expression on an image that is already encoded.",
    Scope.REPEATED_EXPRESSION: "Words that the engine has met, on a new image.",
    Scope.REPEATED_IMAGE: "New words on an image that the engine has met.",
    Scope.OVERHEAD: "Engine.segment behind the letterbox, minus what it says that its stages took.",
    Scope.LOAD: "From files to an engine that is ready.",
    Scope.FIRST_CALL: "The first mask after loading.",
}
_ON_GPU: Final = {
    Scope.NETWORK: "From image and tokens to logits in the GPU's memory, by the GPU's own clock: "
    "what the host does meanwhile is not in it.",
    Scope.DEVICE: "From an image in the GPU's memory and words to the mask there, by the GPU's "
    "own clock.",
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
FAILED: Final = "PARITY GATE FAILED"


def scope_section(record: Record, scope: Scope) -> Section:
    """The times of a scope; a section without rows if it was not measured."""
    rows = [row for row in record.rows if row.scope is scope]
    on_gpu = any(row.device != "cpu" for row in rows)
    intro = _ON_GPU.get(scope, _MEANING[scope]) if on_gpu else _MEANING[scope]
    if scope in _FROM_IMAGE:
        intro += f" The image has {record.image_width} x {record.image_height} pixels."
    columns = _columns(record, scope, rows)
    kept = {name: cells for name, cells in columns.items() if any(cells)}
    return Section(
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
        "x eager": [_times_eager(row, record.rows) for row in rows],
        "over network": [over_network(row) for row in rows],
        "spread": ["" if math.isnan(row.spread) else f"{row.spread:.1%}" for row in rows],
        "logit error": [_error(row.logit_error) for row in rows],
        "mIoU": [points(ious.get(row.name)) if rate else "" for row in rows],
        "remarks": ["; ".join(_remarks(record, row)) for row in rows],
    }


def _remarks(record: Record, row: Row) -> Iterable[str]:
    if row.noisy:
        yield "noisy"
    parity = None if row.bundle is None else record.bundles[row.bundle].parity
    if parity is Parity.FAILED:
        yield FAILED
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


def _times_eager(row: Row, rows: Sequence[Row]) -> str:
    if row.role is Role.BASELINE or row.ratio is None:
        return "" if row.ratio is None else "1"
    found = times_eager(row, rows)
    return f"{row.ratio:.2f}" if found is None else str(found)


def _error(error: float | NotFinite | None) -> str:
    if error is None:
        return ""
    return "not finite" if isinstance(error, NotFinite) else f"{error:.1e}"
