"""Float16 graphs of ours and of published tools, with every float16 result rounded on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from cris_bench.quantisers.bundles import load_stages, scratch
from cris_bench.quantisers.makers import Elsewhere
from cris_bench.report.section import Section
from cris_deploy.bundle.manifest import STAGES, GraphName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import CrisError, one_line
from cris_deploy.pixels.mask import mask_from_logits, overlap
from cris_export.precision.emulate import emulate_float16
from cris_export.precision.float16 import to_float16
from cris_export.precision.int8.equalise import find_moves
from cris_export.precision.islands import NO_ISLANDS, find_islands
from cris_export.precision.ranges import Feed, float_values, open_session
from cris_export.proof.float32 import Reference, measure_stages
from cris_export.proof.samples import SampleSource

Logits = list[NDArray[np.float32]]


@dataclass(frozen=True)
class HalfRow:
    """A maker's float16 graphs beside float32.

    Attributes:
        name: The maker's.
        logit_error: Largest difference of a logit over the judged pairs; None where one is not
            finite.
        worst_correlation: Of logits.
        mask_iou: Mean, of masks at input size.
        worst_iou: The least.
        single: Nodes with a float32 result, conversions aside.
        conversions: Casts.
        problem: What went wrong.
    """

    name: str
    logit_error: float | None = None
    worst_correlation: float | None = None
    mask_iou: float | None = None
    worst_iou: float | None = None
    single: int | None = None
    conversions: int | None = None
    problem: str | None = None


def ours(reference: Reference) -> dict[str, ir.Model]:
    """`cris-export --fp16`: float32 where measures say so."""
    models = load_stages(reference.folder)
    islands = find_islands(models, measure_stages(reference))
    for name, model in models.items():
        to_float16(model, islands[name], keep=frozenset({"image", "logits"}))
    return models


def plain(reference: Reference) -> dict[str, ir.Model]:
    """All of it in float16."""
    models = load_stages(reference.folder)
    for model in models.values():
        to_float16(model, NO_ISLANDS, keep=frozenset({"image", "logits"}))
    return models


def compare_half(
    bundle: Bundle,
    calibration: Sequence[SampleSource],
    judged: Sequence[SampleSource],
    modelopt: Path | None,
    only: Sequence[str],
    stretch: float,
    step: Callable[[str], None],
) -> Iterator[HalfRow]:
    """Make float16 stages on some pairs, and hold them against float32 on others.

    Args:
        bundle: A float32 one.
        calibration: Pairs that makers may look at.
        judged: Pairs that they are judged on.
        modelopt: A Python that has ModelOpt and onnxconverter-common; None leaves them out.
        only: Names of makers; empty for all.
        stretch: What `stretch_stages` multiplies by; 1 leaves the graphs as they are.
        step: Called with each maker's name.
    """
    makers: dict[str, Callable[[Reference], Mapping[str, ir.Model]]] = {"ours": ours}
    makers["no float32 at all"] = plain
    if modelopt is not None:
        makers["ModelOpt AutoCast"] = Elsewhere(modelopt, "autocast")
        makers["onnxconverter-common"] = Elsewhere(modelopt, "onnxconverter")
    with scratch(bundle, judged, "--pairs") as seen:
        images, texts = (seen.feeds[stage] for stage in STAGES[:2])
        feeds = [(images[pair.image], texts[pair.tokens]) for pair in seen.pairs]
        exact = _logits(load_stages(seen.folder), seen.folder, feeds)
        for name, make in makers.items():
            if only and name not in only:
                continue
            step(name)
            with scratch(bundle, calibration, "--calibration") as reference:
                stretch_stages(reference.folder, stretch)
                try:
                    models = make(reference)
                    found = _logits(models, reference.folder, feeds)
                except CrisError as error:
                    yield HalfRow(name, problem=one_line(error))
                else:
                    yield _row(name, models, exact, found, bundle)


def stretch_stages(folder: Path, factor: float) -> None:
    """Multiply activations, exactly: their producers by a factor, their readers by its inverse.

    The graphs compute the same function, through numbers that float16 may not hold. Norms and
    convolutions with a ReLU are such producers.
    """
    for name, model in load_stages(folder).items():
        for move in find_moves(model):
            for value in move.channels:
                _scale(value, factor)
            for site in move.sites:
                _scale(site.weight, 1 / factor)
        onnx.save(ir.to_proto(model), folder / f"{name}.onnx")


def _scale(value: ir.Value, factor: float) -> None:
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=value.name)


def _logits(
    models: Mapping[str, ir.Model], folder: Path, feeds: Sequence[tuple[Feed, Feed]]
) -> Logits:
    runs = {
        stage: _runner(emulate_float16(ir.to_proto(models[stage.value])), folder)
        for stage in STAGES
    }
    return [
        runs[GraphName.MASK_DECODER](
            {
                **runs[GraphName.IMAGE_ENCODER](image),
                **runs[GraphName.TEXT_ENCODER](tokens),
            }
        )["logits"][0, 0]
        for image, tokens in feeds
    ]


def _runner(proto: onnx.ModelProto, folder: Path) -> Callable[[Feed], dict[str, Any]]:
    session = open_session(proto, folder)
    names = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def _row(
    name: str, models: Mapping[str, ir.Model], exact: Logits, found: Logits, bundle: Bundle
) -> HalfRow:
    protos = [ir.to_proto(models[stage.value]) for stage in STAGES]
    single, casts = (int(number) for number in np.sum([_counted(one) for one in protos], axis=0))
    pairs = list(zip(exact, found, strict=True))
    if not all(np.isfinite(b).all() for _, b in pairs):
        return HalfRow(name, single=single, conversions=casts, problem="not finite")
    facts = bundle.manifest.model
    size = facts.input_size
    ious = [
        overlap(*(mask_from_logits(low, size, size, size, facts.threshold) for low in (a, b))).iou
        for a, b in pairs
    ]
    return HalfRow(
        name,
        logit_error=max(float(np.abs(a - b).max()) for a, b in pairs),
        worst_correlation=min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in pairs),
        mask_iou=float(np.mean(ious)),
        worst_iou=min(ious),
        single=single,
        conversions=casts,
    )


def _counted(proto: onnx.ModelProto) -> tuple[int, int]:
    """Nodes with a float32 result that are no conversions, and conversions."""
    types = float_values(proto)
    casts = sum(node.op_type == "Cast" for node in proto.graph.node)
    single = sum(
        node.op_type != "Cast" and types.get(node.output[0]) == onnx.TensorProto.FLOAT
        for node in proto.graph.node
    )
    return single, casts


def section(rows: Sequence[HalfRow], judged: int) -> Section:
    """The table."""

    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    columns = ("float16 by", "logit error", "worst r", "IoU", "worst", "float32 nodes", "casts")
    return Section(
        "float16",
        (f"{judged} pairs, every float16 result rounded",),
        columns,
        tuple(
            (row.name, row.problem, *[""] * 5)
            if row.problem
            else (
                row.name,
                cell(row.logit_error, ".4f"),
                cell(row.worst_correlation, ".6f"),
                cell(row.mask_iou, ".5f"),
                cell(row.worst_iou, ".5f"),
                cell(row.single, "d"),
                cell(row.conversions, "d"),
            )
            for row in rows
        ),
    )
