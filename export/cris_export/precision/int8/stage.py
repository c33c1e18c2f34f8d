"""The stages in int8: calibrated, then held against float32 until the logits are close enough."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from cris_deploy.bundle.manifest import GraphName, Quantisation
from cris_deploy.machine.cpu import EXACT_LEVELS
from cris_export.errors import ParityError
from cris_export.precision.int8.calibration import Observation, observe
from cris_export.precision.int8.equalise import equalise, find_moves
from cris_export.precision.int8.quantise import halve_maps, quantise, quantise_embedding
from cris_export.precision.int8.rounding import Rounded, round_weights
from cris_export.precision.int8.sites import find_stage_sites, fold_weight_slices, residual_values
from cris_export.precision.ranges import Feed, open_session
from cris_export.proof.float32 import Reference, spread

MIN_CORRELATION = 0.99
"""Of int8 with float32 logits, on each of the pairs below; layers return to float32 until then."""

# Pairs to measure on: each costs a second per attempt at full size.
_PAIRS = 6
# Layers that return in one attempt, and attempts: a tenth of the layers, which is all that a model
# that gains by int8 at all should need.
_RELEASED = 4
_ATTEMPTS = 4
RELEASED = "calibration_noise"
"""What the manifest gives as the reason of a layer that stayed in float32."""


@dataclass
class _Calibrated:
    """One stage that was calibrated, and how much of it is quantised.

    Attributes:
        name: Which.
        path: Its float32 graph, equalised.
        seen: Observations of all that may be rounded.
        rounded: The layers' weights, by the weights' names.
        order: Its layers, the one whose input suffers most from rounding first.
        released: How many of them compute in float32.
    """

    name: GraphName
    path: Path
    seen: Mapping[str, Observation]
    rounded: Mapping[str, Rounded]
    order: list[str] = field(default_factory=list)
    released: int = 0

    def build(self) -> ir.Model:
        """Quantise all layers but the released ones, whose weights alone are stored in int8."""
        model = ir.load(self.path)
        released = set(self.order[: self.released])
        sites = [
            dataclasses.replace(site, whole=site.whole and site.name not in released)
            for site in find_stage_sites(self.name, model)
        ]
        residuals = residual_values(model, sites)
        halve_maps(model)
        quantise(model, sites, residuals, self.seen, self.rounded)
        quantise_embedding(model)
        return model


def to_int8(
    models: dict[str, ir.Model],
    reference: Reference,
    min_correlation: float,
    step: Callable[[str], None],
) -> tuple[dict[str, dict[str, str]], Quantisation]:
    """Quantise the stages.

    Args:
        models: Stage name -> float32 graph; replaced by the quantised ones.
        reference: The same graphs on disk, and calibration samples. Its graphs are replaced by
            their equalised forms, whose inner values the quantised graphs' can be held against.
        min_correlation: The budget: least correlation of logits on each pair, 0 to 1.
        step: Called with a line for each attempt.

    Returns:
        Stage name -> layer that stayed in float32 -> why; and the manifest's record.

    Raises:
        InputError: a tensor is not finite on a sample.
        ParityError: the budget was missed with as many layers in float32 as may return to it.
    """
    stages = [_calibrate(GraphName(name), model, reference) for name, model in models.items()]
    judge = _Judge(reference)
    for attempt in range(_ATTEMPTS + 1):
        for stage in stages:
            models[stage.name] = stage.build()
        correlation, worst = judge.hold(models, min_correlation)
        step(f"int8 logits correlate with float32 by {correlation:.4f} at least")
        if worst is None:
            break
        if attempt == _ATTEMPTS:
            raise ParityError(
                f"int8: on the calibration pairs the logits correlate with float32 by "
                f"{correlation:.4f} at least, below the budget of {min_correlation:g}, with "
                f"{sum(stage.released for stage in stages)} layers in float32, and {worst} loses "
                "most; no bundle was written: calibrate on more images like those to come, export "
                "without --int8, or lower --min-correlation"
            )
        blamed = next(stage for stage in stages if stage.name == worst)
        blamed.released = min(blamed.released + _RELEASED, len(blamed.order))
        step(f"{blamed.released} layers of {worst} return to float32")
    kept: dict[str, dict[str, str]] = {
        stage.name: dict.fromkeys(stage.order[: stage.released], RELEASED) for stage in stages
    }
    return kept, Quantisation(EXACT_LEVELS, correlation, min_correlation)


def _calibrate(name: GraphName, model: ir.Model, reference: Reference) -> _Calibrated:
    path, feeds = reference.graph(name), reference.feeds[name]
    fold_weight_slices(model)
    moves = find_moves(model)
    ranges = observe(path, feeds, [move.name for move in moves], f"{name}: ranges")
    equalise(moves, ranges)
    onnx.save(ir.to_proto(model), path)
    sites = find_stage_sites(name, model)
    whole = [site for site in sites if site.whole]
    values = [site.source for site in whole] + residual_values(model, whole)
    seen = observe(
        path,
        feeds,
        [value.name or "" for value in values],
        f"{name}: steps",
        products=[site.source.name or "" for site in sites if site.node.op_type != "Conv"],
    )
    noise = {site.name: seen[site.source.name or ""].noise for site in whole}
    rounded = round_weights(sites, seen)
    for observation in seen.values():
        observation.products = None  # a tenth of a gigabyte that nothing reads any more
    return _Calibrated(name, path, seen, rounded, sorted(noise, key=lambda site: -noise[site]))


class _Judge:
    """Compares logits on a few of the calibration pairs."""

    def __init__(self, reference: Reference) -> None:
        self._folder = reference.folder
        pairs = spread(reference.pairs, _PAIRS)
        self._image = [reference.feeds[GraphName.IMAGE_ENCODER][pair.image] for pair in pairs]
        self._text = [reference.feeds[GraphName.TEXT_ENCODER][pair.tokens] for pair in pairs]
        self._features = spread(reference.feeds[GraphName.MASK_DECODER], _PAIRS)
        graph = reference.graph(GraphName.MASK_DECODER)
        proto = onnx.load(graph, load_external_data=False)
        self._decoder = open_session(proto, reference.folder)
        self._expected = self._decode(self._decoder, self._features)

    def hold(self, models: Mapping[str, ir.Model], budget: float) -> tuple[float, GraphName | None]:
        """Give the least correlation end to end, and if that is too low the stage that loses most.

        Each stage is then run among float32 ones.
        """
        scenes = self._run(models[GraphName.IMAGE_ENCODER], self._image)
        texts = self._run(models[GraphName.TEXT_ENCODER], self._text)
        decoder = open_session(ir.to_proto(models[GraphName.MASK_DECODER]), self._folder)
        both = [{**scene, **text} for scene, text in zip(scenes, texts, strict=True)]
        correlation = self._correlation(decoder, both)
        if correlation >= budget:
            return correlation, None
        alone = {
            GraphName.IMAGE_ENCODER: self._correlation(self._decoder, self._with(scenes)),
            GraphName.TEXT_ENCODER: self._correlation(self._decoder, self._with(texts)),
            GraphName.MASK_DECODER: self._correlation(decoder, self._features),
        }
        return correlation, min(alone, key=lambda stage: alone[stage])

    def _with(self, some: Sequence[Feed]) -> list[Feed]:
        """The float32 features of each pair, some of them exchanged."""
        return [{**all_, **part} for all_, part in zip(self._features, some, strict=True)]

    def _correlation(self, decoder: Any, features: Sequence[Feed]) -> float:
        logits = self._decode(decoder, features)
        return min(
            _correlation(mine, expected)
            for mine, expected in zip(logits, self._expected, strict=True)
        )

    @staticmethod
    def _decode(decoder: Any, features: Sequence[Feed]) -> list[NDArray[np.float32]]:
        return [decoder.run(["logits"], dict(feed))[0].ravel() for feed in features]

    def _run(self, model: ir.Model, feeds: Sequence[Feed]) -> list[Feed]:
        session = open_session(ir.to_proto(model), self._folder)
        names = [value.name for value in session.get_outputs()]
        return [dict(zip(names, session.run(names, dict(feed)), strict=True)) for feed in feeds]


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Of two maps of logits, -1 to 1; 0 where one of them is the same everywhere."""
    first, second = (values - values.mean(dtype=np.float64) for values in (first, second))
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / size if size else 0.0
