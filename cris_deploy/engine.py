"""The engine: a bundle, an image and expressions in, masks out.

This is what a user calls. The steps behind it are in `execution.pipeline`.
"""

import logging
import string
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, overload

import numpy as np

from cris_deploy import arguments
from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import CrisError, InputError
from cris_deploy.execution.backends import AUTO, load_graphs
from cris_deploy.execution.pipeline import STAGES, OnStage, Pipeline, check_interfaces
from cris_deploy.execution.steps import Picture
from cris_deploy.pixels.image import MAX_PIXELS, ImageInput
from cris_deploy.results.engine_info import CacheInfo, EngineInfo, MemoryUse, memory_use
from cris_deploy.results.scene import Scene, segment_prompts
from cris_deploy.results.segmentation import Segmentation
from cris_deploy.words.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cris_deploy.results.device_segmentation import DeviceSegmentation

_log = logging.getLogger("cris_deploy")
_LETTERS: Final = string.ascii_lowercase


class Engine:
    """Runs a bundle. May be used from many threads, and as a context manager.

    Args:
        bundle: the directory cris-export wrote, or an opened `Bundle`. Raises BundleError if it is
            incomplete or changed (`verify` off skips the hashes, not the rest). What is loaded
            later is of this bundle, or a BundleError says that it was replaced.
        backend: "auto" chooses and logs why (also in `info`), as a warning if it leaves a GPU
            unused; anything else is had or refused with a BackendError. So are the next two.
        device: "cpu", "cuda", or "cuda:1" for the second of the GPUs that CUDA_VISIBLE_DEVICES
            leaves.
        precision: the arithmetic; "auto" keeps what the bundle's parity was proved in, but computes
            int8 in float32 where this processor is slower in int8.
        threads: CPU threads for one graph; None leaves it to the runtime.
        streams: runs that may go on at once, for more images per second from several calling
            threads: on a CPU (backend openvino) they share its threads, so each is slower; on a GPU
            each has buffers of its own.
        cuda_graphs: capture a GPU's work for each batch size when it is first seen, and replay it.
        cache: keep features of the last images and expressions, `image_cache` and `text_cache`
            many.
        max_pixels: images above are refused before they are decoded.
        manifest_sha256: the hash that manifest.json has to have, so that the bundle is the one that
            is meant: the hashes in it only prove that its files belong together.
        require_signature: public key of minisign, its text or its file, that has to have signed the
            bundle (`cris-export sign`); needs the extra `sign`. Nothing unsigned is loaded then, so
            it goes neither with `verify` off nor with `trust_plans`.
        trust_plans: take TensorRT plans that the manifest does not list, too. A plan is code.
        allow_plan_code: run the machine code that version-compatible TensorRT plans bring for this
            computer's processor. Whoever wrote the plan then runs code in this process.
        timeout: seconds that any one wait may take (for a free stream, for what a GPU computes),
            then it ends with an EngineTimeoutError; None waits for as long as it takes.
        on_stage: called after every run of a stage, in the thread that ran it: the stage's
            `GraphName`, seconds with copies, waits and (mask decoder) the mask step, and how many
            images, expressions or pairs it had. What a cache gave is no run. It must not raise.
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
        max_pixels: int = MAX_PIXELS,
        verify: bool = True,
        manifest_sha256: str | None = None,
        require_signature: str | Path | None = None,
        trust_plans: bool = False,
        allow_plan_code: bool = False,
        timeout: float | None = None,
        on_stage: OnStage | None = None,
    ) -> None:
        arguments.flag("cache", cache)
        image_cache = arguments.whole("image_cache", image_cache, 0)
        text_cache = arguments.whole("text_cache", text_cache, 0)
        max_pixels = arguments.whole("max_pixels", max_pixels, 1)
        opened = bundle
        if not isinstance(opened, Bundle):
            if require_signature is not None and not arguments.flag("verify", verify):
                raise InputError("require_signature proves nothing with verify off: leave it on")
            opened = Bundle.open(opened, verify, manifest_sha256, require_signature)
        elif manifest_sha256 not in (None, opened.manifest_sha256):
            raise InputError("manifest_sha256 goes with a path: the bundle is opened already")
        elif require_signature is not None:
            raise InputError("require_signature goes with a path: the bundle is opened already")
        if opened.signed and trust_plans:
            raise InputError(
                "trust_plans takes plans that nobody signed, and a signature is required: leave "
                "one of the two out"
            )
        check_interfaces(opened)
        manifest = opened.manifest
        tokenizer = Tokenizer.from_file(opened.tokenizer, manifest.model.word_len)
        graphs, choice = load_graphs(
            opened,
            STAGES,
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
        self.pipeline: Final = Pipeline(
            opened,
            tokenizer,
            graphs,
            choice.device,
            threads,
            image_cache=image_cache if cache else 0,
            text_cache=text_cache if cache else 0,
            max_pixels=max_pixels,
            on_stage=on_stage,
        )
        """The steps behind the calls, for what is built on an engine."""
        self.max_pixels: Final = max_pixels
        self.info: Final = EngineInfo(
            opened.path,
            manifest.model,
            manifest.precision,
            choice,
            threads,
            streams,
            manifest.versions,
            self.pipeline.mask_device,
        )
        """What runs, on what, and why."""
        _log.info(
            "%s on %s in %s (%s)", choice.backend, choice.place, choice.compute, choice.reason
        )
        if choice.warning is not None:
            _log.warning("%s", choice.warning)
        if self.pipeline.mask_device is not choice.device:
            _log.warning(
                "the mask step runs on the CPU, cris_deploy._kernels was built without CUDA: "
                "install with nvcc on PATH (pip install . -C cmake.define.CRIS_CUDA=ON)"
            )

    @overload
    def segment(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        expression: str,
        *,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> Segmentation: ...
    @overload
    def segment(
        self,
        image: ImageInput,
        expression: Sequence[str],
        *,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> list[Segmentation]: ...
    def segment(
        self,
        image: ImageInput,
        expression: str | Sequence[str],
        *,
        threshold: float | None = None,
        probabilities: bool = False,
    ) -> Segmentation | list[Segmentation]:
        """Segment an image with one expression, or with several to get a list in their order.

        Args:
            image: a path, the bytes of a file, a PIL image, or (H, W, 3) uint8 RGB.
            threshold: probability, 0 to 1, above which a pixel is in the mask; None for the one
                that the checkpoint was trained and measured with.
            probabilities: keep the map of probabilities at image size, too (4 bytes a pixel).

        Raises ImageError, ExpressionError, BackendError.
        """
        # Expressions first: refusing one is cheap, encoding an image is not.
        prompts = self.pipeline.read_expressions(expression, threshold, probabilities)
        results = segment_prompts(self.encode_image(image), prompts)
        return results[0] if isinstance(expression, str) else results

    def encode_image(self, image: ImageInput) -> Scene:
        """Compute what depends on the image alone, once for any number of expressions."""
        pipeline = self.pipeline
        pipeline.require_open()  # before the work on the picture
        return Scene(pipeline, pipeline.encode_pictures([pipeline.prepare(image)])[0])

    @overload
    def segment_on_device(  # type: ignore[overload-overlap]
        self,
        image: object,
        expression: str,
        *,
        stream: object = None,
        threshold: float | None = None,
    ) -> "DeviceSegmentation": ...
    @overload
    def segment_on_device(
        self,
        image: object,
        expression: Sequence[str],
        *,
        stream: object = None,
        threshold: float | None = None,
    ) -> "list[DeviceSegmentation]": ...
    def segment_on_device(
        self,
        image: object,
        expression: str | Sequence[str],
        *,
        stream: object = None,
        threshold: float | None = None,
    ) -> "DeviceSegmentation | list[DeviceSegmentation]":
        """Segment an image that is on the GPU, and leave the masks there.

        Args:
            image: (H, W, 3) uint8 RGB, C-contiguous, with DLPack or `__cuda_array_interface__`
                (PyTorch, CuPy, pycuda, Numba).
            stream: the CUDA stream the image is made on and the masks are used on: its address, or
                a stream of PyTorch, CuPy, pycuda or cuda-python. The call then waits for nothing,
                and what is queued on that stream later finds the masks; the stream has to live as
                long as they do. Without it, the image must be ready in the order of the default
                stream, or of the one it names itself, and the call returns when the masks are
                there.
            threshold: as in `segment`.

        Such an image is not looked up in the cache; `encode_device_image` keeps its features.
        Raises ImageError, ExpressionError, InputError, and BackendError if the engine is not on a
        GPU or the extension was built without CUDA.
        """
        self.pipeline.device_executor()
        self.pipeline.read_expressions(expression, threshold)
        return self.encode_device_image(image, stream=stream).segment_on_device(
            expression, stream=stream, threshold=threshold
        )

    def encode_device_image(self, image: object, *, stream: object = None) -> Scene:
        """Encode an image that is on the GPU; arguments and errors as in `segment_on_device`."""
        return Scene(self.pipeline, self.pipeline.encode_device_image(image, stream))

    @overload
    def stream(
        self,
        pairs: Iterable[tuple[ImageInput, str]],
        batch_size: int = 8,
        *,
        on_error: Literal["raise"] = "raise",
        decode_threads: int | None = None,
        threshold: float | None = None,
    ) -> Generator[Segmentation, None, None]: ...
    @overload
    def stream(
        self,
        pairs: Iterable[tuple[ImageInput, str]],
        batch_size: int = 8,
        *,
        on_error: Literal["yield"],
        decode_threads: int | None = None,
        threshold: float | None = None,
    ) -> Generator[Segmentation | CrisError, None, None]: ...
    def stream(
        self,
        pairs: Iterable[tuple[ImageInput, str]],
        batch_size: int = 8,
        *,
        on_error: Literal["raise", "yield"] = "raise",
        decode_threads: int | None = None,
        threshold: float | None = None,
    ) -> Generator[Segmentation | CrisError, None, None]:
        """Segment (image, expression) pairs in batches, results in the order of the pairs.

        Args:
            pairs: up to 2 * batch_size are drawn ahead, in the calling thread. An array, a PIL
                image, a bytearray may be changed as soon as the next pair is drawn, so one buffer
                serves for all frames of a camera. A file is read later, and has to stay what it is.
            on_error: an error in one pair comes in its place, after all earlier results: "raise"
                raises it, which ends the iterator, "yield" gives it as the item and goes on. What
                `pairs` itself raises is an end in both.
            decode_threads: files, and bytes of files, are decoded in so many threads; None for one
                per core, at most 4. They end when the iterator is closed.
            threshold: as in `segment`.

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
        self.pipeline.require_open()
        limit = arguments.fraction_or_none("threshold", threshold, "the model's own")
        items = segment_pairs(
            self.pipeline, Segmentation.of, iter(pairs), batch_size, threads, limit
        )
        return items if on_error == "yield" else _raising(items)

    def warm_up(self, batch_sizes: Sequence[int] = (1,), expressions: Sequence[int] = (1,)) -> None:
        """Run the network on noise, so that no later call of these shapes is the first of its kind.

        Args:
            batch_sizes: images that come together (a stream's `batch_size`, a batcher's `images`).
            expressions: expressions that come with one image.

        What a first call costs is compiling (OpenVINO's text encoder for several expressions,
        TensorRT-RTX's kernels), capturing (CUDA graphs) and memory. The caches are empty
        afterwards. Raises InputError for a number below 1, BackendError if the runtime fails.
        """
        for name, counts in (("batch_sizes", batch_sizes), ("expressions", expressions)):
            for count in counts:
                arguments.whole(name, count, 1, len(_LETTERS) ** 2)
        pipeline, side = self.pipeline, self.info.model.input_size
        rng = np.random.default_rng(0)
        try:
            for images, words in (*((n, 1) for n in batch_sizes), *((1, n) for n in expressions)):
                noise = rng.integers(0, 256, (images, side, side, 3), np.uint8)
                scenes = pipeline.encode_pictures([Picture(square, side, side) for square in noise])
                # No two are of equal tokens, so all of them are run.
                texts = [f"{first} {second}" for first in _LETTERS for second in _LETTERS]
                prompts = pipeline.read_expressions(texts[: images * words])
                pipeline.decode_masks(scenes * words, prompts)
                pipeline.forget()
        finally:
            pipeline.forget()

    def cache_info(self) -> CacheInfo:
        """What the caches of images and expressions hold, and how often they were asked in vain."""
        return CacheInfo(*self.pipeline.caches)

    def memory(self) -> MemoryUse:
        """What the process and, on a GPU, the device hold now; see `MemoryUse`."""
        return memory_use(self.pipeline)

    def close(self) -> None:
        """Release the graphs and caches; any later use raises InputError."""
        self.pipeline.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _raising(
    items: Generator[Segmentation | CrisError, None, None],
) -> Generator[Segmentation, None, None]:
    with closing(items):
        for item in items:
            if isinstance(item, CrisError):
                raise item
            yield item
