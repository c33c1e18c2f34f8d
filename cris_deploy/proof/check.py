"""A bundle's own test: its samples, run by what will serve, against FP32 PyTorch's answers.

The answers lie in the bundle, so this needs neither PyTorch nor the checkpoint. Four questions:

    end to end   does an engine with this backend give masks and logits, and does the full graph?
    by stage     given PyTorch's own features, does each stage give PyTorch's outputs?
    whose fault  how far do the logits move if one stage's outputs replace PyTorch's?
    which layer  are the weights those that were exported?

How good is good enough lies in `gate.py`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cris_deploy.arguments import fraction_or_none, shown
from cris_deploy.bundle.fingerprints import ChangedWeight, changed_weights
from cris_deploy.bundle.manifest import (
    GraphName,
    Precision,
    Proof,
    Route,
    RouteParity,
    StageParity,
)
from cris_deploy.bundle.reading import Bundle
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import AUTO, Choice, Device, Graph, close_graphs, load_graphs
from cris_deploy.machine.cpu import this_cpu
from cris_deploy.pixels import image as images
from cris_deploy.pixels.mask import mask_from_logits
from cris_deploy.proof.deviation import Deviation, finite
from cris_deploy.proof.gate import (
    Bound,
    SampleCheck,
    budget_of,
    check_logit_budget,
    judge,
    route_parities,
    visible_share,
)
from cris_deploy.proof.references import ENCODERS, Reference, Tensors, read_references
from cris_deploy.words.tokenizer import Tokenizer, TruncationWarning


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What one backend made of a bundle's samples.

    `logit_budget` is that of `relative_error` in each sample, `visible_share` the share of
    samples whose mask in FP32 PyTorch is neither empty nor full. `unproved` says what could not be
    run, and why; `missed` which bound was missed, if any, and `problem` by what. `changed` are the
    weights that are not what was exported. `choice.reason` says why this backend was taken.
    """

    bundle: Path
    precision: Precision
    choice: Choice
    min_iou: float
    logit_budget: float
    visible_share: float
    samples: tuple[SampleCheck, ...]
    routes: tuple[RouteParity, ...]
    stages: tuple[StageParity, ...]
    unproved: tuple[str, ...]
    changed: tuple[ChangedWeight, ...]
    missed: Bound | None
    problem: str | None

    @property
    def passed(self) -> bool:
        """True if nothing failed."""
        return self.problem is None

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
            logit_budget=self.logit_budget,
            instructions=this_cpu().instructions if self.choice.device is Device.CPU else None,
        )


def check(
    bundle: str | Path | Bundle,
    *,
    backend: str = AUTO,
    device: str = AUTO,
    precision: str = AUTO,
    min_iou: float | None = None,
    max_logit_error: float | None = None,
    trust_plans: bool = False,
    allow_plan_code: bool = False,
    verify: bool = True,
    step: Callable[[str], None] = lambda _: None,
) -> CheckReport:
    """Run a bundle's samples and compare them with FP32 PyTorch's answers.

    Args:
        bundle: The directory cris-export wrote, or an opened `Bundle`.
        backend: As `Engine` takes it.
        device: As `Engine` takes it.
        precision: As `Engine` takes it.
        min_iou: Least mean mask IoU, 0 to 1; None for the budget the bundle was exported with.
        max_logit_error: Largest error of a sample's logits (root mean square), relative to the
            standard deviation that they have in FP32 PyTorch; None for the budget that the bundle
            was exported with in the arithmetic that runs, or this version's. In float32 each
            stage's outputs are held to it as well, relative to their size.
        trust_plans: As `Engine` takes it.
        allow_plan_code: As `Engine` takes it.
        verify: Off skips the files' hashes, and those of single weights unless something is wrong.
        step: Called with a short line before the samples are run, for progress.

    Raises:
        InputError: an argument is unusable.
        BundleError: the bundle is damaged, or has no samples.
        BackendError: the backend cannot be had here, or failed.
    """
    if not callable(step):
        raise InputError(f"step is {shown(step)}: give a function that takes a line of text")
    min_iou = fraction_or_none("min_iou", min_iou, "the budget it was exported with")
    check_logit_budget(max_logit_error)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify)
    references = read_references(opened)
    unproved = []
    with Engine(
        opened,
        backend=backend,
        device=device,
        precision=precision,
        cache=False,
        trust_plans=trust_plans,
        allow_plan_code=allow_plan_code,
    ) as engine:
        choice = engine.info.choice
        step(f"running {len(references)} samples with {choice.backend} on {choice.place}")
        samples = _by_stages(engine, references)
        stages = _prove_stages(opened, engine, references)
    if not stages:
        unproved.append(
            "stages one by one: the bundle holds no features of PyTorch's: export again"
        )
    try:
        graphs, _ = load_graphs(
            opened,
            [GraphName.FULL],
            choice.backend,
            choice.place,
            choice.compute,
            trust_plans=trust_plans,
            allow_plan_code=allow_plan_code,
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
    budget = budget_of(opened.manifest, choice.compute, min_iou, max_logit_error)
    routes = route_parities(samples)
    miss = judge(samples, routes, stages, budget)
    changed = _changed_weights(opened, routes) if verify or miss is not None else ()
    if changed:
        miss = judge(samples, routes, stages, budget, changed)
    return CheckReport(
        bundle=opened.path,
        precision=opened.manifest.precision,
        choice=choice,
        min_iou=budget.min_iou,
        logit_budget=budget.logit_error,
        visible_share=visible_share(samples),
        samples=tuple(samples),
        routes=routes,
        stages=stages,
        unproved=tuple(unproved),
        changed=changed,
        missed=None if miss is None else miss.bound,
        problem=None if miss is None else miss.text,
    )


def _changed_weights(bundle: Bundle, routes: Sequence[RouteParity]) -> tuple[ChangedWeight, ...]:
    """Look at the weights of the graphs that ran."""
    whole = any(route.route is Route.FULL for route in routes)
    files = {name: graph.file for name, graph in bundle.manifest.graphs.items()}
    recorded = {
        name: weights
        for name, weights in bundle.manifest.weights.items()
        if whole or name is not GraphName.FULL
    }
    return changed_weights(bundle.path, files, recorded)


def _by_stages(engine: Engine, references: Sequence[Reference]) -> list[SampleCheck]:
    """Every sample as a caller of the engine gets it."""
    checks = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)  # PyTorch saw the same beginning
        for reference in references:
            result = engine.segment(reference.path, reference.sample.expression)
            checks.append(reference.compare(Route.STAGES, result.mask, result.logits))
    return checks


def _by_full_graph(
    bundle: Bundle, graph: Graph, references: Sequence[Reference], batch_size: int
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
    bundle: Bundle, engine: Engine, references: Sequence[Reference]
) -> tuple[StageParity, ...]:
    """Each stage on FP32 PyTorch's inputs, for the samples that have them."""
    steps = engine.pipeline
    graphs = steps.stages  # those that serve: a second set would need the memory again
    image_encoder, text_encoder = (graphs[name] for name in ENCODERS)
    mask_decoder = graphs[GraphName.MASK_DECODER]
    inputs = bundle.manifest.graphs[GraphName.MASK_DECODER].inputs
    types = {spec.name: np.dtype(spec.dtype.value) for spec in inputs}
    scenes: dict[Path, Tensors] = {}
    own: dict[GraphName, list[Deviation]] = {}
    effect: dict[GraphName, list[Deviation]] = {}

    def decode(text: Tensors, scene: Tensors) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):  # what float16 cannot hold shows as infinity
            typed = {name: value.astype(types[name]) for name, value in (text | scene).items()}
        logits = mask_decoder.run(typed)["logits"]
        return np.asarray(logits[0, 0], dtype=np.float32)

    for reference in references:
        if reference.scene is None or reference.text is None:
            continue
        if reference.path not in scenes:
            pixels = images.normalise(steps.prepare(reference.path).square)
            scenes[reference.path] = dict(image_encoder.run({"image": pixels[None]}))
        scene = scenes[reference.path]
        (prompt,) = steps.read_expressions([reference.sample.expression])
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


def _deviation(found: Tensors, reference: Tensors) -> Deviation:
    """The worst of a stage's outputs."""
    return Deviation.worst(Deviation.of(found[name], reference[name]) for name in reference)
