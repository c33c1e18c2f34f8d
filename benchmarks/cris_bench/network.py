"""The paper's speed test: the network alone, batch 1, PyTorch eager against the engine's graphs.

Every CPU backend that is installed takes part in every arithmetic it has, and with `--int8` a
quantised export of the same model.
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cris_bench.machine import Machine, describe
from cris_bench.timing import Timing, interleave, paired_ratio
from cris_deploy.backends import BackendName, Compute, Device, Graph, load_graphs, status
from cris_deploy.bundle import Bundle
from cris_deploy.errors import BackendError, InputError
from cris_deploy.manifest import GraphName, Precision
from cris_export.export import ExportOptions, export
from cris_export.samples import PACKAGED
from cris_train import checkpoint as checkpoints
from cris_train.model import TABLE_1, Cris, CrisConfig

EAGER = "PyTorch eager fp32"
STAGES = (GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER, GraphName.MASK_DECODER)
# CRIS, Table 1, the full model: RN50, contrastive, 3 decoder layers, on a V100.
PAPER_FPS = next(row.fps for row in TABLE_1 if row.config == CrisConfig.rn50())


@dataclass(frozen=True)
class NetworkOptions:
    """How to run the test.

    Attributes:
        checkpoint: Model to time; None for the full-size RN50 with random weights.
        warmup: Untimed rounds (the reference has 100, on a GPU).
        iterations: Timed rounds (the reference has 400).
        threads: CPU threads of each contestant; None for all cores.
        int8: Also time an int8 export, calibrated on the packaged photographs.
        expressions: Also time the engine with so many expressions on the one image, per mask.
    """

    checkpoint: Path | None = None
    warmup: int = 5
    iterations: int = 30
    threads: int | None = None
    int8: bool = False
    expressions: int = 1

    def __post_init__(self) -> None:
        if self.expressions < 1:
            raise InputError(f"--expressions must be 1 or more, not {self.expressions}")
        if self.warmup < 0:
            raise InputError(f"--warmup must be 0 or more, not {self.warmup}")
        if self.iterations < 1:
            raise InputError(f"--iterations must be 1 or more, not {self.iterations}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads must be 1 or more, not {self.threads}")


@dataclass(frozen=True)
class Contestant:
    """One way to run the model, and what came of it.

    Attributes:
        timing: Raw times of a pass.
        expressions: Masks that a pass makes, all of one image.
        ratio: How many times faster than PyTorch eager a mask is made, median of paired rounds.
        logit_error: Largest difference from PyTorch's logits on the timed input.
    """

    timing: Timing
    expressions: int
    ratio: float
    logit_error: float

    @property
    def mask_ms(self) -> float:
        """Median time of a mask, milliseconds."""
        return self.timing.median_ms / self.expressions


@dataclass(frozen=True)
class NetworkResult:
    """One run of the test.

    Attributes:
        architecture: Of the image encoder.
        input_size: Side of the image, pixels.
        word_len: Tokens of the expression.
        parameters: Of the model.
        warmup: Untimed rounds.
        contestants: PyTorch eager first.
        paper_fps: The paper's figure for the full RN50 model on a V100; None for another model.
        machine: What it ran on.
        created: UTC time.
    """

    architecture: str
    input_size: int
    word_len: int
    parameters: int
    warmup: int
    contestants: tuple[Contestant, ...]
    paper_fps: float | None
    machine: Machine
    created: str


def run(
    options: NetworkOptions, step: Callable[[str], None], tick: Callable[[], object]
) -> NetworkResult:
    """Export the model into a temporary bundle, then time both in one process.

    Args:
        options: What to time.
        step: Called with a line before each step.
        tick: Called after every pass.

    Raises:
        CheckpointError: the checkpoint cannot be used.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="cris-bench-") as folder:
        path = options.checkpoint
        if path is None:
            step("making the full-size RN50 with random weights")
            path = checkpoints.save(Path(folder) / "random.pth", _random_model())
        bundles = [Path(folder) / "float.bundle"]
        export(ExportOptions(path, output=bundles[0]), step)
        if options.int8:
            bundles.append(Path(folder) / "int8.bundle")
            quantised = ExportOptions(
                path,
                output=bundles[1],
                precision=Precision.INT8,
                calibration=PACKAGED,
                min_iou=0.0,  # random weights put most pixels near the threshold
            )
            export(quantised, step)
        model = checkpoints.build(checkpoints.load(path))
        return _race(model, bundles, options, step, tick)


def _race(
    model: Cris,
    bundles: Sequence[Path],
    options: NetworkOptions,
    step: Callable[[str], None],
    tick: Callable[[], object],
) -> NetworkResult:
    config = model.config
    # The reference's protocol: a random image, random tokens, the forward pass and nothing else.
    random = np.random.default_rng(0)
    image = random.standard_normal((1, 3, config.input_size, config.input_size), np.float32)
    tokens = random.integers(1, config.vocab_size - 1, (options.expressions, config.word_len))
    tensors = torch.from_numpy(image), torch.from_numpy(tokens[:1])

    def eager() -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(*tensors).numpy()
        return logits

    passes: dict[str, Callable[[], np.ndarray]] = {EAGER: eager}
    counts = {EAGER: 1}
    for bundle in bundles:
        for name, graphs in _engines(Bundle.open(bundle), options.threads):
            for count in sorted({1, options.expressions}):
                label = name if count == 1 else f"{name}, {count} expressions"
                passes[label] = _pass(graphs, image, tokens[:count])
                counts[label] = count
    expected = eager()
    errors = {name: float(np.abs(run()[:1] - expected).max()) for name, run in passes.items()}
    step(f"timing {options.warmup} + {options.iterations} rounds of {len(passes)}, interleaved")
    timings = interleave(passes, warmup=options.warmup, iterations=options.iterations, tick=tick)
    contestants = tuple(
        Contestant(
            timing,
            counts[timing.name],
            paired_ratio(timings[0], timing) * counts[timing.name],
            errors[timing.name],
        )
        for timing in timings
    )
    return NetworkResult(
        architecture=config.architecture,
        input_size=config.input_size,
        word_len=config.word_len,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        warmup=options.warmup,
        contestants=contestants,
        paper_fps=PAPER_FPS if config == CrisConfig.rn50() else None,
        machine=describe(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _engines(
    bundle: Bundle, threads: int | None
) -> Iterator[tuple[str, Mapping[GraphName, Graph]]]:
    """Every installed CPU backend in every arithmetic that it has for this bundle."""
    for backend in BackendName:
        if Device.CPU not in status(backend).devices:
            continue
        for compute in Compute:
            try:
                graphs, _ = load_graphs(bundle, STAGES, backend, Device.CPU, compute, threads)
            except BackendError:  # not an arithmetic that this backend has for this bundle
                continue
            yield f"{backend} {compute}", graphs


def _pass(
    graphs: Mapping[GraphName, Graph], image: np.ndarray, tokens: np.ndarray
) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        features = graphs[GraphName.IMAGE_ENCODER].run({"image": image})
        text = graphs[GraphName.TEXT_ENCODER].run({"tokens": tokens})
        logits: np.ndarray = graphs[GraphName.MASK_DECODER].run({**features, **text})["logits"]
        return logits

    return run


def _random_model() -> Cris:
    """The full-size model, as it would compute if it were trained.

    CLIP starts training with residual branches of zero scale, which a runtime may leave out:
    OpenVINO does so in int8, and would be timed on half an image encoder.
    """
    torch.manual_seed(0)
    model = Cris(CrisConfig.rn50()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.1)
    return model
