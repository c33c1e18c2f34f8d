"""The engine: a bundle, an image and expressions in, masks out.

One picture's way: `image.decode` and `letterbox`, the image encoder (or the cache), the text
encoder (or the cache), the mask decoder and the mask step. What follows the letterbox is done by
the executor of the device: `execution.executor.HostExecutor`, or
`execution.cuda.executor.DeviceExecutor`, on which nothing leaves the GPU in between.
"""

import logging
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, overload

import numpy as np

from cris_deploy import arguments
from cris_deploy.bundle.manifest import GraphName, ModelFacts
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import (
    BackendError,
    BundleError,
    CrisError,
    ExpressionError,
    InputError,
)
from cris_deploy.execution.backends import AUTO, Choice, Device, Graph, load_graphs
from cris_deploy.execution.cache import LruCache, PixelKey
from cris_deploy.execution.executor import Decoded, Executor, Features, HostExecutor
from cris_deploy.pixels import image as images
from cris_deploy.pixels.image import ImageInput
from cris_deploy.results.engine_info import EngineInfo
from cris_deploy.results.scene import Picture, Prompt, Scene
from cris_deploy.results.segmentation import Segmentation
from cris_deploy.words.tokenizer import Tokenizer, TruncationWarning

if TYPE_CHECKING:
    from cris_deploy.execution.cuda.executor import DeviceExecutor
    from cris_deploy.results.device_segmentation import DeviceSegmentation

__all__ = ["Engine", "EngineInfo", "Picture", "Prompt", "Scene"]

_log = logging.getLogger("cris_deploy")

_SCENE = ("f3", "f4", "f5")
_TEXT = ("words", "sentence", "padding")
_INTERFACES: Final[Mapping[GraphName, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    GraphName.IMAGE_ENCODER: (("image",), _SCENE),
    GraphName.TEXT_ENCODER: (("tokens",), _TEXT),
    GraphName.MASK_DECODER: ((*_TEXT, *_SCENE), ("logits",)),
}
_WARNED = 4096


class Engine:
    """Runs a bundle. May be used from many threads, and as a context manager.

    bundle: the directory cris-export wrote, or an opened `Bundle`. Raises BundleError if it is
        incomplete or changed (`verify` off skips the hashes, not the rest). What is loaded later
        is of this bundle, or a BundleError says that it was replaced.
    backend, device, precision: "auto" chooses and logs why (also in `info`), as a warning if it
        leaves a GPU unused; anything else is had or refused with a BackendError. `device` is "cpu",
        "cuda", or "cuda:1" for the second of the GPUs that CUDA_VISIBLE_DEVICES leaves. `precision`
        is the arithmetic: "auto" keeps what the bundle's parity was proved in.
    threads: CPU threads for one graph; None leaves it to the runtime.
    streams: runs that may go on at once, for more images per second from several calling threads:
        on a CPU (backend openvino) they share its threads, so each is slower; on a GPU each has
        buffers of its own.
    cuda_graphs: capture a GPU's work for each batch size when it is first seen, and replay it.
    cache: keep features of the last images and expressions, `image_cache` and `text_cache` many.
    max_pixels: images above are refused before they are decoded.
    manifest_sha256: the hash that manifest.json has to have, so that the bundle is the one that is
        meant: the hashes in it only prove that its files belong together.
    trust_plans: take TensorRT plans that the manifest does not list, too. A plan is code.
    allow_plan_code: run the machine code that version-compatible TensorRT plans bring for this
        computer's processor. Whoever wrote the plan then runs code in this process.
    timeout: seconds that any one wait may take (for a free stream, for what a GPU computes), then
        it ends with an EngineTimeoutError; None waits for as long as it takes.
    """

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        backend: str = AUTO,
        device: str = AUTO,
        precision: str = AUTO,
        threads: int | None = None,
        streams: int = 1,
        cuda_graphs: bool = True,
        cache: bool = True,
        image_cache: int = 16,
        text_cache: int = 1024,
        max_pixels: int = images.MAX_PIXELS,
        verify: bool = True,
        manifest_sha256: str | None = None,
        trust_plans: bool = False,
        allow_plan_code: bool = False,
        timeout: float | None = None,
    ) -> None:
        arguments.flag("cache", cache)
        image_cache = arguments.whole("image_cache", image_cache, 0)
        text_cache = arguments.whole("text_cache", text_cache, 0)
        max_pixels = arguments.whole("max_pixels", max_pixels, 1)
        opened = bundle
        if not isinstance(opened, Bundle):
            opened = Bundle.open(opened, verify, manifest_sha256)
        elif manifest_sha256 not in (None, opened.manifest_sha256):
            raise InputError("manifest_sha256 goes with a path: the bundle is opened already")
        _check_interfaces(opened)
        self._bundle: Final = opened
        manifest = opened.manifest
        self._model: Final = manifest.model
        self._tokenizer = Tokenizer.from_file(opened.tokenizer, self._model.word_len)
        self._graphs: dict[GraphName, Graph] | None
        self._graphs, choice = load_graphs(
            opened,
            _INTERFACES,
            backend,
            device,
            precision,
            threads,
            streams,
            cuda_graphs,
            trust_plans,
            allow_plan_code,
            timeout,
        )
        self._executor: Final = _executor(choice, self._graphs, self._model, threads)
        self.max_pixels: Final = max_pixels
        self.info: Final = EngineInfo(
            opened.path,
            manifest.model,
            manifest.precision,
            choice,
            threads,
            streams,
            manifest.versions,
            self._executor.mask_device,
        )
        # Keys are the pixels and the tokens themselves: no collisions.
        self._scenes: LruCache[PixelKey, Features] = LruCache(image_cache if cache else 0)
        self._texts: LruCache[bytes, Features] = LruCache(text_cache if cache else 0)
        self._warned: LruCache[str, bool] = LruCache(_WARNED)
        _log.info(
            "%s on %s in %s (%s)", choice.backend, choice.place, choice.compute, choice.reason
        )
        if choice.warning is not None:
            _log.warning("%s", choice.warning)
        if self._executor.mask_device is not choice.device:
            _log.warning(
                "the mask step runs on the CPU, cris_deploy._kernels was built without CUDA: "
                "install with nvcc on PATH (pip install . -C cmake.define.CRIS_CUDA=ON)"
            )

    @overload
    def segment(  # type: ignore[overload-overlap]
        self, image: ImageInput, expression: str
    ) -> Segmentation: ...
    @overload
    def segment(self, image: ImageInput, expression: Sequence[str]) -> list[Segmentation]: ...
    def segment(
        self, image: ImageInput, expression: str | Sequence[str]
    ) -> Segmentation | list[Segmentation]:
        """Segment an image with one expression, or with several to get a list in their order.

        image: a path, the bytes of a file, a PIL image, or (H, W, 3) uint8 RGB.
        Raises ImageError, ExpressionError, BackendError.
        """
        # Expressions first: refusing one is cheap, encoding an image is not.
        prompts = self.read_expressions(expression)
        scene = self.encode_image(image)
        results = self.decode_masks([scene] * len(prompts), prompts)
        return results[0] if isinstance(expression, str) else results

    def encode_image(self, image: ImageInput) -> Scene:
        """Compute what depends on the image alone, once for any number of expressions."""
        self._stages()
        return self.encode_pictures([self.prepare(image)])[0]

    @overload
    def segment_on_device(  # type: ignore[overload-overlap]
        self, image: object, expression: str, *, stream: object = None
    ) -> "DeviceSegmentation": ...
    @overload
    def segment_on_device(
        self, image: object, expression: Sequence[str], *, stream: object = None
    ) -> "list[DeviceSegmentation]": ...
    def segment_on_device(
        self, image: object, expression: str | Sequence[str], *, stream: object = None
    ) -> "DeviceSegmentation | list[DeviceSegmentation]":
        """Segment an image that is on the GPU, and leave the masks there.

        image: (H, W, 3) uint8 RGB, C-contiguous, with DLPack or `__cuda_array_interface__`
            (PyTorch, CuPy, pycuda, Numba).
        stream: the CUDA stream the image is made on and the masks are used on: its address, or a
            stream of PyTorch, CuPy, pycuda or cuda-python. The call then waits for nothing, and
            what is queued on that stream later finds the masks; the stream has to live as long as
            they do. Without it, the image must be ready in the order of the default stream, or of
            the one it names itself, and the call returns when the masks are there.
        Such an image is not looked up in the cache; `encode_device_image` keeps its features.
        Raises ImageError, ExpressionError, InputError, and BackendError if the engine is not on a
        GPU or the extension was built without CUDA.
        """
        self._device_executor()
        self.read_expressions(expression)
        return self.encode_device_image(image, stream=stream).segment_on_device(
            expression, stream=stream
        )

    def encode_device_image(self, image: object, *, stream: object = None) -> Scene:
        """Encode an image that is on the GPU; arguments and errors as in `segment_on_device`."""
        executor, graph = self._device_executor(), self._stages()[GraphName.IMAGE_ENCODER]
        with self._forgetting():
            features, size = executor.encode_device_image(graph, image, stream, self.max_pixels)
        return Scene(self, features, *size)

    @overload
    def stream(
        self,
        pairs: Iterable[tuple[ImageInput, str]],
        batch_size: int = 8,
        *,
        on_error: Literal["raise"] = "raise",
        decode_threads: int | None = None,
    ) -> Generator[Segmentation, None, None]: ...
    @overload
    def stream(
        self,
        pairs: Iterable[tuple[ImageInput, str]],
        batch_size: int = 8,
        *,
        on_error: Literal["yield"],
        decode_threads: int | None = None,
    ) -> Generator[Segmentation | CrisError, None, None]: ...
    def stream(
        self,
        pairs: Iterable[tuple[ImageInput, str]],
        batch_size: int = 8,
        *,
        on_error: Literal["raise", "yield"] = "raise",
        decode_threads: int | None = None,
    ) -> Generator[Segmentation | CrisError, None, None]:
        """Segment (image, expression) pairs in batches, results in the order of the pairs.

        pairs: up to 2 * batch_size are drawn ahead, in the calling thread. An array, a PIL image, a
            bytearray may be changed as soon as the next pair is drawn, so one buffer serves for
            all frames of a camera. A file is read later, and has to stay what it is.
        on_error: an error in one pair comes in its place, after all earlier results: "raise" raises
            it, which ends the iterator, "yield" gives it as the item and goes on. What `pairs`
            itself raises is an end in both.
        decode_threads: files, and bytes of files, are decoded in so many threads; None for one per
            core, at most 4. They end when the iterator is closed.
        Repeated images are encoded once.
        """
        from cris_deploy.execution.stream import segment_pairs

        batch_size = arguments.whole("batch_size", batch_size, 1)
        threads = arguments.whole_or_none(
            "decode_threads", decode_threads, 1, arguments.MOST_THREADS, "one per core, at most 4"
        )
        if on_error not in ("raise", "yield"):
            raise InputError(f"on_error is {arguments.shown(on_error)}: give 'raise' or 'yield'")
        if not isinstance(pairs, Iterable):
            raise InputError(
                f"pairs is {arguments.shown(pairs)}: give (image, expression) tuples in a list, a "
                "generator or the like"
            )
        self._stages()
        items = segment_pairs(self, iter(pairs), batch_size, threads)
        return items if on_error == "yield" else _raising(items)

    def close(self) -> None:
        """Release the graphs and caches; any later use raises InputError."""
        graphs, self._graphs = self._graphs, None
        self._scenes.clear()
        self._texts.clear()
        if graphs is not None:
            self._executor.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # The steps, in their order. `stream` calls them, too; they are not for users.

    def read_expressions(self, expression: str | Sequence[str]) -> list[Prompt]:
        """Tokenise; raises ExpressionError for the first that cannot be used."""
        expressions = [expression] if isinstance(expression, str) else _checked_list(expression)
        batch = self._tokenizer.encode(expressions)
        return [
            Prompt(*item) for item in zip(expressions, batch.tokens, batch.truncated, strict=True)
        ]

    def prepare(self, image: ImageInput) -> Picture:
        """Decode and letterbox."""
        rgb = images.decode(image, self.max_pixels)
        square = images.letterbox(rgb, self._model.input_size)
        return Picture(square, rgb.shape[0], rgb.shape[1])

    def encode_pictures(self, pictures: Sequence[Picture]) -> list[Scene]:
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
            Scene(self, found[key], picture.height, picture.width)
            for key, picture in zip(keys, pictures, strict=True)
        ]

    def decode_masks(
        self, scenes: Sequence[Scene], prompts: Sequence[Prompt]
    ) -> list[Segmentation]:
        """Segment each scene with the expression in its place."""
        self._warn_of_truncated(prompts)
        texts = self._encode_prompts(prompts)
        graph = self._stages()[GraphName.MASK_DECODER]
        sizes = [(scene.height, scene.width) for scene in scenes]
        with self._forgetting():
            decoded = self._executor.decode(
                graph, [scene.features for scene in scenes], texts, sizes
            )
        return [_segmentation(*item) for item in zip(decoded, prompts, strict=True)]

    def decode_masks_on_device(
        self, scenes: Sequence[Scene], prompts: Sequence[Prompt], stream: object
    ) -> "list[DeviceSegmentation]":
        """Segment each scene with the expression in its place; the masks stay on the GPU."""
        from cris_deploy.results.device_segmentation import DeviceSegmentation

        executor = self._device_executor()
        self._warn_of_truncated(prompts)
        texts = self._encode_prompts(prompts)
        features = [scene.features for scene in scenes]
        sizes = [(scene.height, scene.width) for scene in scenes]
        graph = self._stages()[GraphName.MASK_DECODER]
        with self._forgetting():
            found = executor.decode_on_device(graph, features, texts, sizes, stream)
        return [
            DeviceSegmentation(m.mask, m.logits, m.stats, prompt.expression, prompt.truncated)
            for m, prompt in zip(found, prompts, strict=True)
        ]

    def _run_image_encoder(self, pictures: Sequence[Picture]) -> list[Features]:
        if not pictures:
            return []
        graph = self._stages()[GraphName.IMAGE_ENCODER]
        with self._forgetting():
            return self._executor.encode_images(graph, [picture.square for picture in pictures])

    def _encode_prompts(self, prompts: Sequence[Prompt]) -> list[Features]:
        keys = [prompt.tokens.tobytes() for prompt in prompts]
        found = {key: value for key in keys if (value := self._texts.get(key)) is not None}
        missing = {k: p.tokens for k, p in zip(keys, prompts, strict=True) if k not in found}
        if missing:
            graph = self._stages()[GraphName.TEXT_ENCODER]
            with self._forgetting():
                rows = self._executor.encode_texts(graph, np.array(list(missing.values())))
            for key, features in zip(missing, rows, strict=True):
                found[key] = features
                self._texts.put(key, features)
        return [found[key] for key in keys]

    def _stages(self) -> dict[GraphName, Graph]:
        graphs = self._graphs
        if graphs is None:
            raise InputError("engine is closed: make a new Engine")
        return graphs

    def _device_executor(self) -> "DeviceExecutor":
        from cris_deploy.execution.cuda.executor import DeviceExecutor

        if not isinstance(self._executor, DeviceExecutor):
            raise BackendError(
                f"this engine runs on {self.info.device}: make one with device='cuda', or use "
                "segment"
            )
        return self._executor

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """If a run fails, forget what a GPU holds: it may be lost, or wanted for something else.

        On a CPU, refuse what was computed with weights that somebody wrote into.
        """
        try:
            yield
            if self.info.device is Device.CPU:
                self._bundle.require_unwritten()
        except BackendError:
            if self.info.device is Device.CUDA:
                self._scenes.clear()
                self._texts.clear()
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
                stacklevel=7,
            )
            return True

        self._warned.get_or_compute(expression, warn)


def _check_interfaces(bundle: Bundle) -> None:
    for name, (inputs, outputs) in _INTERFACES.items():
        graph = bundle.manifest.graphs[name]
        found = ({spec.name for spec in graph.inputs}, {spec.name for spec in graph.outputs})
        if found != (set(inputs), set(outputs)):
            raise BundleError(
                f"bundle {bundle.path}: {name} has inputs {sorted(found[0])} and outputs "
                f"{sorted(found[1])}, expected {sorted(inputs)} and {sorted(outputs)}: export it "
                "again with this version"
            )


def _raising(
    items: Generator[Segmentation | CrisError, None, None],
) -> Generator[Segmentation, None, None]:
    with closing(items):
        for item in items:
            if isinstance(item, CrisError):
                raise item
            yield item


def _checked_list(expressions: object) -> list[str]:
    if not isinstance(expressions, Sequence) or isinstance(expressions, (bytes, bytearray)):
        raise ExpressionError(
            f"expression is a {type(expressions).__name__}: give a string such as "
            "'the man in red', or a list of strings"
        )
    return list(expressions)


def _executor(
    choice: Choice, graphs: Mapping[GraphName, Graph], model: ModelFacts, threads: int | None
) -> Executor:
    if choice.device is Device.CPU:
        return HostExecutor(model, threads)
    from cris_deploy.execution.cuda.executor import DeviceExecutor
    from cris_deploy.execution.cuda.graph import DeviceGraph

    stage = graphs[GraphName.IMAGE_ENCODER]
    assert isinstance(stage, DeviceGraph)  # what every backend gives for a GPU
    return DeviceExecutor(stage.device, model, threads)


def _segmentation(decoded: Decoded, prompt: Prompt) -> Segmentation:
    upsampled, logits = decoded
    assert upsampled.mask is not None  # it was asked for
    return Segmentation(
        upsampled.mask, logits, prompt.expression, prompt.truncated, upsampled.area, upsampled.box
    )
