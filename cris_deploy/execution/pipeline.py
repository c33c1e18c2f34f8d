"""The steps behind an engine's calls: the three stages, and what is kept between calls.

One picture's way: `prepare` (decode and letterbox), `encode_pictures` (or the cache),
`encode_prompts` (or the cache), `decode` (mask decoder and mask step). What follows the letterbox
is done by the executor of the device: `execution.executor.HostExecutor`, or
`execution.cuda.executor.DeviceExecutor`, on which nothing leaves the GPU in between.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from cris_deploy import arguments
from cris_deploy.bundle.manifest import GraphName, ModelFacts
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BackendError, BundleError, ExpressionError, InputError
from cris_deploy.execution.backends import Device, Graph
from cris_deploy.execution.cache import CacheCounts, LruCache, PixelKey
from cris_deploy.execution.executor import (
    Decoded,
    Executor,
    Features,
    HostExecutor,
    MaskStep,
)
from cris_deploy.execution.steps import EncodedPicture, Picture, Prompt
from cris_deploy.machine.memory import enough_memory
from cris_deploy.pixels import image as images
from cris_deploy.pixels.image import ImageInput
from cris_deploy.words.tokenizer import Tokenizer, TruncationWarning

if TYPE_CHECKING:
    from cris_deploy.execution.cuda.executor import DeviceExecutor, DeviceMask

_SCENE = ("f3", "f4", "f5")
_TEXT = ("words", "sentence", "padding")
STAGES: Final[Mapping[GraphName, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    GraphName.IMAGE_ENCODER: (("image",), _SCENE),
    GraphName.TEXT_ENCODER: (("tokens",), _TEXT),
    GraphName.MASK_DECODER: ((*_TEXT, *_SCENE), ("logits",)),
}
"""The graphs that run, with the names of their inputs and outputs."""

OnStage: TypeAlias = Callable[[GraphName, float, int], None]
"""Told of a stage's run: which, seconds, how many images, expressions or pairs."""

_WARNED = 4096
_PACKAGE: Final = str(Path(__file__).parents[1]) + os.sep


class Pipeline:
    """Loaded stages and their caches; see `execution.steps.Steps`. May be used from many threads.

    bundle: What the stages are of.
    tokenizer: The bundle's.
    graphs: The stages, loaded.
    device: That they are loaded on.
    threads: CPU threads for the mask step; None for all.
    image_cache, text_cache: Features of so many images and expressions are kept.
    max_pixels: Images above are refused before they are decoded.
    on_stage: See `Engine`.
    """

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer,
        graphs: Mapping[GraphName, Graph],
        device: Device,
        threads: int | None,
        *,
        image_cache: int,
        text_cache: int,
        max_pixels: int,
        on_stage: OnStage | None = None,
    ) -> None:
        self._bundle = bundle
        self._model = bundle.manifest.model
        self._tokenizer = tokenizer
        self._stages: Mapping[GraphName, Graph] | None = graphs
        self._device = device
        self._executor = _executor(device, graphs, self._model, threads)
        self._max_pixels = max_pixels
        # Keys are the pixels and the tokens themselves: no collisions.
        self._scenes: LruCache[PixelKey, Features] = LruCache(image_cache)
        self._texts: LruCache[bytes, Features] = LruCache(text_cache)
        self._warned: LruCache[str, bool] = LruCache(_WARNED)
        self.on_stage = on_stage

    @property
    def stages(self) -> Mapping[GraphName, Graph]:
        """The graphs that serve; InputError once they are closed."""
        stages = self._stages
        if stages is None:
            raise InputError("engine is closed: make a new Engine")
        return stages

    def require_open(self) -> None:
        """Raise InputError once the stages are closed."""
        _ = self.stages

    def wrap_stages(self, wrap: Callable[[GraphName, Graph], Graph]) -> None:
        """Put something around each stage, such as a clock; before any call, of one thread."""
        self._stages = {name: wrap(name, graph) for name, graph in self.stages.items()}

    @property
    def mask_device(self) -> Device:
        """Where the mask step is done."""
        return self._executor.mask_device

    @property
    def caches(self) -> tuple[CacheCounts, CacheCounts]:
        """What the caches of images and of expressions hold, and have found."""
        return self._scenes.counts(), self._texts.counts()

    def device_memory(self) -> tuple[int, int] | None:
        """Free and all bytes of the GPU's memory, over all processes; None on a CPU."""
        if self._device is Device.CPU:
            return None
        return self.device_executor().memory()

    def feature_bytes(self) -> int:
        """Bytes of the features that are kept."""
        kept = [*self._scenes.values(), *self._texts.values()]
        return sum(int(tensor.nbytes) for features in kept for tensor in features.values())

    def forget(self) -> None:
        """Drop the features that are kept."""
        self._scenes.clear()
        self._texts.clear()

    def close(self) -> None:
        """Release the graphs and caches; any later use raises InputError."""
        stages, self._stages = self._stages, None
        self.forget()
        if stages is not None:
            self._executor.close()

    def read_expressions(
        self,
        expression: str | Sequence[str],
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> list[Prompt]:
        """Tokenise; raises ExpressionError for the first that cannot be used.

        Raises InputError for a threshold that is no probability.
        """
        threshold = arguments.fraction_or_none("threshold", threshold, "the model's own")
        arguments.flag("probabilities", probabilities)
        expressions = [expression] if isinstance(expression, str) else _checked_list(expression)
        batch = self._tokenizer.encode(expressions)
        return [
            Prompt(*item, threshold, probabilities)
            for item in zip(expressions, batch.tokens, batch.truncated, strict=True)
        ]

    def prepare(self, image: ImageInput) -> Picture:
        """Decode and letterbox; raises ImageError."""
        with enough_memory("a picture was read"):
            rgb = images.decode(image, self._max_pixels)
            square = images.letterbox(rgb, self._model.input_size)
        return Picture(square, rgb.shape[0], rgb.shape[1])

    def encode_pictures(self, pictures: Sequence[Picture]) -> list[EncodedPicture]:
        """Encode pictures, those of equal pixels once, those that are not cached in one run."""
        keys = [PixelKey(picture.square) for picture in pictures]
        if len(pictures) == 1:  # other threads that ask for the same picture wait for this one
            encode = lambda: self._run_image_encoder(pictures)[0]  # noqa: E731
            found = {keys[0]: self._scenes.get_or_compute(keys[0], encode)}
        else:
            found = {key: value for key in keys if (value := self._scenes.get(key)) is not None}
            missing = {k: p for k, p in zip(keys, pictures, strict=True) if k not in found}
            for key, features in zip(
                missing, self._run_image_encoder(list(missing.values())), strict=True
            ):
                found[key] = features
                self._scenes.put(key, features)
        return [
            EncodedPicture(found[key], picture.height, picture.width)
            for key, picture in zip(keys, pictures, strict=True)
        ]

    def encode_device_image(self, image: object, stream: object) -> EncodedPicture:
        """Encode an image that is on the GPU; see `Engine.segment_on_device`."""
        executor, graph = self.device_executor(), self.stages[GraphName.IMAGE_ENCODER]
        with self._running(GraphName.IMAGE_ENCODER, 1):
            features, size = executor.encode_device_image(graph, image, stream, self._max_pixels)
        return EncodedPicture(features, *size)

    def encode_prompts(self, prompts: Sequence[Prompt]) -> list[Features]:
        """Encode expressions, those of equal tokens once, those that are not cached in one run."""
        keys = [prompt.tokens.tobytes() for prompt in prompts]
        found = {key: value for key in keys if (value := self._texts.get(key)) is not None}
        missing = {k: p.tokens for k, p in zip(keys, prompts, strict=True) if k not in found}
        if missing:
            graph = self.stages[GraphName.TEXT_ENCODER]
            with self._running(GraphName.TEXT_ENCODER, len(missing)):
                rows = self._executor.encode_texts(graph, np.array(list(missing.values())))
            for key, features in zip(missing, rows, strict=True):
                found[key] = features
                self._texts.put(key, features)
        return [found[key] for key in keys]

    def decode(
        self,
        scenes: Sequence[EncodedPicture],
        texts: Sequence[Features],
        how: Sequence[MaskStep] | None = None,
    ) -> list[Decoded]:
        """Run the mask decoder and the mask step on each scene and the text in its place.

        Without `how`, the threshold is the model's.
        """
        how = how or [MaskStep(self._model.threshold)] * len(scenes)
        graph = self.stages[GraphName.MASK_DECODER]
        with self._running(GraphName.MASK_DECODER, len(scenes)):
            return self._executor.decode(graph, *_apart(scenes, texts), how)

    def decode_masks(
        self, scenes: Sequence[EncodedPicture], prompts: Sequence[Prompt]
    ) -> list[Decoded]:
        """Segment each scene with the expression in its place; one that was cut is a warning."""
        self._warn_of_truncated(prompts)
        return self.decode(scenes, self.encode_prompts(prompts), self._how(prompts))

    def decode_masks_on_device(
        self, scenes: Sequence[EncodedPicture], prompts: Sequence[Prompt], stream: object
    ) -> "list[DeviceMask]":
        """Segment as `decode_masks` does; the masks stay on the GPU, for use on `stream`."""
        executor = self.device_executor()
        self._warn_of_truncated(prompts)
        texts = self.encode_prompts(prompts)
        graph = self.stages[GraphName.MASK_DECODER]
        with self._running(GraphName.MASK_DECODER, len(scenes)):
            return executor.decode_on_device(
                graph, *_apart(scenes, texts), self._how(prompts), stream
            )

    def _how(self, prompts: Sequence[Prompt]) -> list[MaskStep]:
        own = self._model.threshold
        return [
            MaskStep(own if prompt.threshold is None else prompt.threshold, prompt.probabilities)
            for prompt in prompts
        ]

    def device_executor(self) -> "DeviceExecutor":
        """Give the executor of a GPU; BackendError if the stages are on the CPU."""
        from cris_deploy.execution.cuda.executor import DeviceExecutor

        if not isinstance(self._executor, DeviceExecutor):
            raise BackendError(
                f"this engine runs on {self._device}: make one with device='cuda', or use segment"
            )
        return self._executor

    def _run_image_encoder(self, pictures: Sequence[Picture]) -> list[Features]:
        if not pictures:
            return []
        graph = self.stages[GraphName.IMAGE_ENCODER]
        with self._running(GraphName.IMAGE_ENCODER, len(pictures)):
            return self._executor.encode_images(graph, [picture.square for picture in pictures])

    @contextmanager
    def _running(self, stage: GraphName, rows: int) -> Iterator[None]:
        """If a run fails, forget what a GPU holds: it may be lost, or wanted for something else.

        On a CPU, refuse what was computed with weights that somebody wrote into.
        """
        began = time.perf_counter()
        try:
            with enough_memory(f"the {stage} ran"):
                yield
            if self.on_stage is not None:
                self.on_stage(stage, time.perf_counter() - began, rows)
            if self._device is Device.CPU:
                self._bundle.require_unwritten()
        except BackendError:
            if self._device is Device.CUDA:
                self.forget()
            raise

    def _warn_of_truncated(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt.truncated:
                self._warn(prompt.expression)

    def _warn(self, expression: str) -> None:
        def warn() -> bool:
            shown = expression if len(expression) <= 60 else expression[:57] + "..."
            warnings.warn(
                f"expression {shown!r} is longer than the model's {self._model.word_len} tokens: "
                "only its beginning is used",
                TruncationWarning,
                stacklevel=_level_of_caller(),
            )
            return True

        self._warned.get_or_compute(expression, warn)


def check_interfaces(bundle: Bundle) -> None:
    """Raise BundleError unless a bundle's stages have the inputs and outputs of `STAGES`."""
    for name, (inputs, outputs) in STAGES.items():
        graph = bundle.manifest.graphs[name]
        found = ({spec.name for spec in graph.inputs}, {spec.name for spec in graph.outputs})
        if found != (set(inputs), set(outputs)):
            raise BundleError(
                f"bundle {bundle.path}: {name} has inputs {sorted(found[0])} and outputs "
                f"{sorted(found[1])}, expected {sorted(inputs)} and {sorted(outputs)}: export it "
                "again with this version"
            )


def _executor(
    device: Device, graphs: Mapping[GraphName, Graph], model: ModelFacts, threads: int | None
) -> Executor:
    if device is Device.CPU:
        return HostExecutor(model, threads)
    from cris_deploy.execution.cuda.executor import DeviceExecutor
    from cris_deploy.execution.cuda.graph import DeviceGraph

    stage = graphs[GraphName.IMAGE_ENCODER]
    assert isinstance(stage, DeviceGraph)  # what every backend gives for a GPU
    return DeviceExecutor(stage.device, model, threads)


def _apart(
    scenes: Sequence[EncodedPicture], texts: Sequence[Features]
) -> tuple[list[Features], Sequence[Features], list[tuple[int, int]]]:
    """Pairs as executors take them: features of scenes, of texts, (height, width) of images."""
    sizes = [(scene.height, scene.width) for scene in scenes]
    return [scene.features for scene in scenes], texts, sizes


def _checked_list(expressions: object) -> list[str]:
    if not isinstance(expressions, Sequence) or isinstance(expressions, (bytes, bytearray)):
        raise ExpressionError(
            f"expression is a {type(expressions).__name__}: give a string such as "
            "'the man in red', or a list of strings"
        )
    return list(expressions)


def _level_of_caller() -> int:
    """Count the frames from the calling one to the first outside of this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    return level
