"""A bundle's own test: its samples, run by what will serve, against FP32 PyTorch's answers.

The answers lie in the bundle, so this needs neither PyTorch nor the checkpoint. Three questions:

    end to end   does an engine with this backend give the masks, and does the full graph?
    by stage     given PyTorch's own features, does each stage give PyTorch's outputs?
    whose fault  how far do the logits move if one stage's outputs replace PyTorch's?
"""

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from cris_deploy import image as images
from cris_deploy.backends import AUTO, Choice, Device, Graph, close_graphs, load_graphs
from cris_deploy.bundle import Bundle
from cris_deploy.deviation import Deviation, finite
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError, BundleError, InputError
from cris_deploy.manifest import (
    DEFAULT_MIN_IOU,
    GraphName,
    Precision,
    Proof,
    Route,
    RouteParity,
    Sample,
    StageParity,
    TensorSpec,
)
from cris_deploy.mask import Mask, mask_from_logits, overlap
from cris_deploy.text import Tokenizer, TruncationWarning

_Tensors: TypeAlias = dict[str, NDArray[Any]]

_ENCODERS: Final = (GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER)
_WAYS: Final = {Route.STAGES: "stages", Route.FULL: "full graph"}


@dataclass(frozen=True, slots=True)
class SampleCheck:
    """One sample by one route.

    `iou` of the two masks at image size, 0 to 1; `logit_error` the largest absolute difference of
    the logits, None if they hold NaN or infinity.
    """

    route: Route
    image: str
    expression: str
    iou: float
    logit_error: float | None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What one backend made of a bundle's samples.

    `unproved` says what could not be run, and why; `problem` why the check failed, or is None.
    `choice.reason` says why this backend was taken.
    """

    bundle: Path
    precision: Precision
    choice: Choice
    min_iou: float
    samples: tuple[SampleCheck, ...]
    routes: tuple[RouteParity, ...]
    stages: tuple[StageParity, ...]
    unproved: tuple[str, ...]
    problem: str | None

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return self.problem is None

    @property
    def finite(self) -> bool:
        """True if no NaN or infinity came out."""
        return all(route.max_logit_error is not None for route in self.routes) and all(
            stage.relative_error is not None for stage in self.stages
        )

    def proof(self, required: bool) -> Proof:
        """Give the manifest's record of this report."""
        return Proof(
            backend=self.choice.backend.value,
            version=self.choice.version,
            device=self.choice.device.value,
            compute=self.choice.compute.value,
            required=required,
            routes=self.routes,
            stages=self.stages,
            problem=self.problem,
        )


def check(
    bundle: str | Path,
    *,
    backend: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    min_iou: float | None = None,
    verify: bool = True,
    step: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Run a bundle's samples and compare them with FP32 PyTorch's answers.

    Args:
        bundle: The directory cris-export wrote.
        backend: As `Engine` takes it.
        device: As `Engine` takes it.
        precision: As `Engine` takes it.
        min_iou: Least mean mask IoU, 0 to 1; None for the budget the bundle was exported with.
        verify: Off skips the files' hashes.
        step: Called with a short line before the samples are run, for progress.

    Raises:
        InputError: an argument is unusable.
        BundleError: the bundle is damaged, or has no samples.
        BackendError: the backend cannot be had here, or failed.
    """
    if min_iou is not None and not 0.0 <= min_iou <= 1.0:
        raise InputError(f"min_iou is {min_iou}: give 0 to 1")
    opened = Bundle.open(bundle, verify)
    references = _read_references(opened)
    unproved = []
    with Engine(
        bundle, backend=backend, device=device, precision=precision, cache=False, verify=False
    ) as engine:
        choice = engine.info.choice
        step(f"running {len(references)} samples with {choice.backend} on {choice.device}")
        samples = _by_stages(engine, references)
        stages = _prove_stages(opened, engine, references)
    if not stages:
        unproved.append(
            "stages one by one: the bundle holds no features of PyTorch's: export again"
        )
    try:
        graphs, _ = load_graphs(
            opened, [GraphName.FULL], choice.backend, choice.device, choice.compute
        )
    except BackendError as error:
        # Engines go by the stages: without the full graph this backend serves all the same.
        unproved.append(f"full graph: {error}")
    else:
        # Two at a time, so that the batch axis is used. A plan may be made for one, and a GPU
        # captures every batch size anew.
        batch = 2 if choice.device is Device.CPU else 1
        try:
            samples += _by_full_graph(opened, graphs[GraphName.FULL], references, batch)
        finally:
            close_graphs(graphs.values())
    if min_iou is None:
        parity = opened.manifest.parity
        min_iou = parity.min_iou if parity is not None else DEFAULT_MIN_IOU
    routes = _routes(samples)
    return CheckReport(
        bundle=opened.path,
        precision=opened.manifest.precision,
        choice=choice,
        min_iou=min_iou,
        samples=tuple(samples),
        routes=routes,
        stages=stages,
        unproved=tuple(unproved),
        problem=_problem(samples, routes, stages, min_iou),
    )


def worst_stage(stages: Sequence[StageParity]) -> StageParity | None:
    """Give the stage to blame: the first that gives NaN, or the one that moves the logits most."""
    for stage in stages:
        if stage.relative_error is None:
            return stage
    return max(stages, key=lambda stage: _size(stage.logit_error), default=None)


@dataclass(frozen=True, slots=True, eq=False)
class _Reference:
    """A sample with FP32 PyTorch's answer, and its features if the bundle holds them."""

    sample: Sample
    path: Path
    logits: NDArray[np.float32]
    mask: Mask
    scene: _Tensors | None
    text: _Tensors | None

    def compare(self, route: Route, mask: Mask, logits: NDArray[np.float32]) -> SampleCheck:
        error = Deviation.of(logits, self.logits).largest
        iou = overlap(mask, self.mask).iou
        return SampleCheck(route, self.path.name, self.sample.expression, iou, finite(error))


def _read_references(bundle: Bundle) -> list[_Reference]:
    model = bundle.manifest.model
    if not bundle.manifest.samples:
        raise BundleError(f"bundle {bundle.path} has no samples to check with: export it again")
    scene_specs, text_specs = (bundle.manifest.graphs[name].outputs for name in _ENCODERS)
    scenes: dict[str, _Tensors] = {}
    references = []
    for sample in bundle.manifest.samples:
        if sample.scene is not None and sample.scene not in scenes:
            scenes[sample.scene] = _read_features(bundle, sample.scene, scene_specs)
        logits = bundle.sample_logits(sample)
        mask = mask_from_logits(
            logits, sample.height, sample.width, model.input_size, model.threshold
        )
        scene = None if sample.scene is None else scenes[sample.scene]
        text = None if sample.text is None else _read_features(bundle, sample.text, text_specs)
        path = bundle.sample_image(sample)
        references.append(_Reference(sample, path, logits, mask, scene, text))
    return references


def _read_features(bundle: Bundle, name: str, specs: Iterable[TensorSpec]) -> _Tensors:
    """Read a stage's outputs for one image or expression: first axis 1, no types of the graph."""
    try:
        with np.load(bundle.path / name, allow_pickle=False) as arrays:
            features = {spec.name: np.asarray(arrays[spec.name]) for spec in specs}
    except (OSError, ValueError, TypeError, EOFError, KeyError, BadZipFile) as error:
        raise BundleError(
            f"bundle {bundle.path}: {name} cannot be read ({error}): export it again"
        ) from None
    for spec in specs:
        shape, expected = features[spec.name].shape, (1, *spec.shape[1:])
        if shape != expected:
            raise BundleError(
                f"bundle {bundle.path}: {spec.name} in {name} has shape {shape}, expected "
                f"{expected}: export it again"
            )
    return features


def _by_stages(engine: Engine, references: Sequence[_Reference]) -> list[SampleCheck]:
    """Every sample as a caller of the engine gets it."""
    checks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # PyTorch saw the same beginning
        for reference in references:
            result = engine.segment(reference.path, reference.sample.expression)
            checks.append(reference.compare(Route.STAGES, result.mask, result.logits))
    return checks


def _by_full_graph(
    bundle: Bundle, graph: Graph, references: Sequence[_Reference], batch_size: int
) -> list[SampleCheck]:
    """Every sample by the full graph, so many at a time."""
    model = bundle.manifest.model
    tokenizer = Tokenizer.from_file(bundle.tokenizer, model.word_len)
    checks = []
    for start in range(0, len(references), batch_size):
        chunk = references[start : start + batch_size]
        squares = [images.letterbox(images.decode(r.path), model.input_size) for r in chunk]
        batch = images.normalise_all(squares)
        tokens = tokenizer.encode([r.sample.expression for r in chunk]).tokens
        output = graph.run({"image": batch, "tokens": tokens})["logits"]
        for reference, logits in zip(chunk, output[:, 0].astype(np.float32), strict=True):
            height, width = reference.mask.shape
            mask = mask_from_logits(logits, height, width, model.input_size, model.threshold)
            checks.append(reference.compare(Route.FULL, mask, logits))
    return checks


def _prove_stages(
    bundle: Bundle, engine: Engine, references: Sequence[_Reference]
) -> tuple[StageParity, ...]:
    """Each stage on FP32 PyTorch's inputs, for the samples that have them."""
    graphs = engine._stages()  # those that serve: a second set would need the memory again
    image_encoder, text_encoder = (graphs[name] for name in _ENCODERS)
    mask_decoder = graphs[GraphName.MASK_DECODER]
    inputs = bundle.manifest.graphs[GraphName.MASK_DECODER].inputs
    types = {spec.name: np.dtype(spec.dtype.value) for spec in inputs}
    scenes: dict[Path, _Tensors] = {}
    own: dict[GraphName, list[Deviation]] = {}
    effect: dict[GraphName, list[Deviation]] = {}

    def decode(text: _Tensors, scene: _Tensors) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # what float16 cannot hold shows as infinity
            typed = {name: value.astype(types[name]) for name, value in (text | scene).items()}
        logits = mask_decoder.run(typed)["logits"]
        return np.asarray(logits[0, 0], dtype=np.float32)

    for reference in references:
        if reference.scene is None or reference.text is None:
            continue
        if reference.path not in scenes:
            pixels = images.normalise(engine.prepare(reference.path).square)
            scenes[reference.path] = dict(image_encoder.run({"image": pixels[None]}))
        scene = scenes[reference.path]
        (prompt,) = engine.read_expressions([reference.sample.expression])
        text = dict(text_encoder.run({"tokens": prompt.tokens[None]}))
        alone = decode(reference.text, reference.scene)
        decoder = Deviation.of(alone, reference.logits)
        # All effects are on the logits and in one unit, so that the stages can be compared.
        for stage, deviation, moved in (
            (
                GraphName.IMAGE_ENCODER,
                _deviation(scene, reference.scene),
                Deviation.of(decode(reference.text, scene), alone, scale=reference.logits),
            ),
            (
                GraphName.TEXT_ENCODER,
                _deviation(text, reference.text),
                Deviation.of(decode(text, reference.scene), alone, scale=reference.logits),
            ),
            (GraphName.MASK_DECODER, decoder, decoder),
        ):
            own.setdefault(stage, []).append(deviation)
            effect.setdefault(stage, []).append(moved)
    return tuple(
        StageParity(
            stage,
            finite(Deviation.worst(own[stage]).relative),
            finite(Deviation.worst(own[stage]).largest),
            finite(Deviation.worst(effect[stage]).relative),
        )
        for stage in own
    )


def _deviation(found: _Tensors, reference: _Tensors) -> Deviation:
    """The worst of a stage's outputs."""
    return Deviation.worst(Deviation.of(found[name], reference[name]) for name in reference)


def _routes(samples: Sequence[SampleCheck]) -> tuple[RouteParity, ...]:
    routes = []
    for route in Route:
        mine = [sample for sample in samples if sample.route is route]
        if mine:
            ious = [sample.iou for sample in mine]
            error = max((sample.logit_error for sample in mine), key=_size)
            routes.append(RouteParity(route, float(np.mean(ious)), min(ious), error))
    return tuple(routes)


def _size(error: float | None) -> float:
    """Order errors, with None, which stands for NaN and infinity, above all numbers."""
    return math.inf if error is None else error


def _problem(
    samples: Sequence[SampleCheck],
    routes: Sequence[RouteParity],
    stages: Sequence[StageParity],
    min_iou: float,
) -> str | None:
    """Say what failed. NaN comes before the budget: an empty mask may hide it."""
    culprit = worst_stage(stages)
    broken = culprit is not None and culprit.relative_error is None
    for route in routes:
        if route.max_logit_error is None:
            mine = [sample for sample in samples if sample.route is route.route]
            bad = sum(sample.logit_error is None for sample in mine)
            where = f"; they begin in {culprit.stage}" if culprit is not None and broken else ""
            return (
                f"the logits of {bad} of {len(mine)} samples hold NaN or infinity, by the "
                f"{_WAYS[route.route]}{where}"
            )
    if culprit is not None and broken:
        return f"the outputs of {culprit.stage} hold NaN or infinity"
    below = [route for route in routes if route.mean_iou < min_iou]
    if not below:
        return None
    lowest = min(below, key=lambda route: route.mean_iou)
    worst = min((s for s in samples if s.route is lowest.route), key=lambda s: s.iou)
    text = (
        f"mean mask IoU {lowest.mean_iou:.4f} by the {_WAYS[lowest.route]} is below the budget "
        f"of {min_iou:g}; worst {worst.iou:.4f} on {worst.image}, {worst.expression!r}"
    )
    if Route.STAGES not in [route.route for route in below]:
        return f"{text}; the stages meet it, so the fault is in how they are joined"
    if culprit is None:
        return text
    moved = culprit.logit_error
    share = "" if moved is None else f", which alone moves the logits by {moved:.2%}"
    return f"{text}; worst stage {culprit.stage}{share}"
