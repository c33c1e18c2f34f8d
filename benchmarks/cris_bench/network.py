"""The paper's speed test: the network alone, batch 1, PyTorch eager against the engine's graphs."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cris_bench.machine import Machine, describe
from cris_bench.timing import Timing, interleave, paired_ratio
from cris_deploy.backends import load_graphs
from cris_deploy.bundle import Bundle
from cris_deploy.errors import InputError
from cris_deploy.manifest import GraphName
from cris_export.export import ExportOptions, export
from cris_train import checkpoint as checkpoints
from cris_train.model import TABLE_1, Cris, CrisConfig

EAGER = "PyTorch eager fp32"
ENGINE = "cris-deploy, ONNX Runtime fp32"
# CRIS, Table 1, the full model: RN50, contrastive, 3 decoder layers, on a V100.
PAPER_FPS = next(row.fps for row in TABLE_1 if row.config == CrisConfig.rn50())


@dataclass(frozen=True)
class NetworkOptions:
    """How to run the test.

    Attributes:
        checkpoint: Model to time; None for the full-size RN50 with random weights.
        warmup: Untimed rounds (the reference has 100, on a GPU).
        iterations: Timed rounds (the reference has 400).
        threads: CPU threads of either contestant; None for all cores.
    """

    checkpoint: Path | None = None
    warmup: int = 5
    iterations: int = 30
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise InputError(f"--warmup must be 0 or more, not {self.warmup}")
        if self.iterations < 1:
            raise InputError(f"--iterations must be 1 or more, not {self.iterations}")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"--threads must be 1 or more, not {self.threads}")


@dataclass(frozen=True)
class NetworkResult:
    """One run of the test.

    Attributes:
        architecture: Of the image encoder.
        input_size: Side of the image, pixels.
        word_len: Tokens of the expression.
        parameters: Of the model.
        warmup: Untimed rounds.
        timings: Raw times of every contestant.
        speedup: Engine over PyTorch eager, median of paired rounds.
        logit_error: Largest difference of the contestants' logits on the timed input.
        paper_fps: The paper's figure for the full RN50 model on a V100; None for another model.
        machine: What it ran on.
        created: UTC time.
    """

    architecture: str
    input_size: int
    word_len: int
    parameters: int
    warmup: int
    timings: tuple[Timing, ...]
    speedup: float
    logit_error: float
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
        bundle = Path(folder) / "model.bundle"
        export(ExportOptions(path, output=bundle), step)
        model = checkpoints.build(checkpoints.load(path))
        return _race(model, bundle, options, step, tick)


def _race(
    model: Cris,
    bundle: Path,
    options: NetworkOptions,
    step: Callable[[str], None],
    tick: Callable[[], object],
) -> NetworkResult:
    config = model.config
    # The reference's protocol: a random image, random tokens, the forward pass and nothing else.
    random = np.random.default_rng(0)
    image = random.standard_normal((1, 3, config.input_size, config.input_size), np.float32)
    tokens = random.integers(1, config.vocab_size - 1, (1, config.word_len))
    tensors = torch.from_numpy(image), torch.from_numpy(tokens)
    graphs, _ = load_graphs(
        Bundle.open(bundle),
        [GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER, GraphName.MASK_DECODER],
        device="cpu",
        threads=options.threads,
    )

    def eager() -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(*tensors).numpy()
        return logits

    def engine() -> np.ndarray:
        features = graphs[GraphName.IMAGE_ENCODER].run({"image": image})
        text = graphs[GraphName.TEXT_ENCODER].run({"tokens": tokens})
        logits: np.ndarray = graphs[GraphName.MASK_DECODER].run({**features, **text})["logits"]
        return logits

    error = float(np.abs(eager() - engine()).max())
    step(f"timing {options.warmup} + {options.iterations} rounds, interleaved")
    timings = interleave(
        {EAGER: eager, ENGINE: engine},
        warmup=options.warmup,
        iterations=options.iterations,
        tick=tick,
    )
    return NetworkResult(
        architecture=config.architecture,
        input_size=config.input_size,
        word_len=config.word_len,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        warmup=options.warmup,
        timings=tuple(timings),
        speedup=paired_ratio(*timings),
        logit_error=error,
        paper_fps=PAPER_FPS if config == CrisConfig.rn50() else None,
        machine=describe(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _random_model() -> Cris:
    torch.manual_seed(0)
    return Cris(CrisConfig.rn50()).eval()
