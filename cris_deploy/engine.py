"""The engine: a bundle, an image and expressions in, masks out.

One picture's way: `image.decode` and `letterbox`, the image encoder (or the cache), the text
encoder (or the cache), the mask decoder, `mask.upsample_masks`.
"""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from cris_deploy import image as images
from cris_deploy import mask as masks
from cris_deploy.backends import AUTO, BackendName, Choice, Compute, Device, Graph, load_graphs
from cris_deploy.bundle import Bundle
from cris_deploy.cache import LruCache
from cris_deploy.errors import BundleError, ExpressionError, InputError
from cris_deploy.image import ImageInput, Pixels
from cris_deploy.manifest import GraphName, ModelFacts, Precision
from cris_deploy.segmentation import Segmentation
from cris_deploy.text import Tokenizer, TruncationWarning

_log = logging.getLogger("cris_deploy")

Features: TypeAlias = dict[str, NDArray[Any]]
"""Outputs of a stage by name, first axis the batch."""

_SCENE = ("f3", "f4", "f5")
_TEXT = ("words", "sentence", "padding")
_INTERFACES: Final[Mapping[GraphName, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    GraphName.IMAGE_ENCODER: (("image",), _SCENE),
    GraphName.TEXT_ENCODER: (("tokens",), _TEXT),
    GraphName.MASK_DECODER: ((*_TEXT, *_SCENE), ("logits",)),
}
# Expressions per run of the mask decoder: beyond this only the memory grows.
_CHUNK = 8
_WARNED = 4096


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine runs, and on what.

    `precision` is what the bundle stores, `choice` says which backend, device and arithmetic are in
    use, and why.
    """

    bundle: Path
    model: ModelFacts
    precision: Precision
    choice: Choice
    threads: int | None
    streams: int
    versions: Mapping[str, str]

    @property
    def backend(self) -> BackendName:
        """The runtime in use."""
        return self.choice.backend

    @property
    def device(self) -> Device:
        """The device in use."""
        return self.choice.device

    @property
    def compute(self) -> Compute:
        """The arithmetic in use."""
        return self.choice.compute

    @property
    def reason(self) -> str:
        """Why this backend, this device and this arithmetic."""
        return self.choice.reason


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image, letterboxed to (S, S, 3) uint8 RGB, and the size it had."""

    square: Pixels
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """An expression as it was given, its tokens (word_len,) int64, and whether they were cut."""

    expression: str
    tokens: NDArray[np.int64]
    truncated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """An image whose features are computed; segment it with any number of expressions."""

    engine: "Engine"
    features: Features
    height: int
    width: int

    @overload
    def segment(self, expression: str) -> Segmentation: ...  # type: ignore[overload-overlap]
    @overload
    def segment(self, expression: Sequence[str]) -> list[Segmentation]: ...
    def segment(self, expression: str | Sequence[str]) -> Segmentation | list[Segmentation]:
        """Segment with one expression, or with several to get a list in their order.

        Raises ExpressionError for an unusable expression, BackendError if the runtime fails.
        """
        prompts = self.engine.read_expressions(expression)
        results = self.engine.decode_masks([self] * len(prompts), prompts)
        return results[0] if isinstance(expression, str) else results


class Engine:
    """Runs a bundle. May be used from many threads, and as a context manager.

    bundle: the directory cris-export wrote. Raises BundleError if it is incomplete or changed
        (`verify` off skips the hashes, not the rest).
    backend, device, precision: "auto" chooses and logs why (also in `info`); anything else is had
        or refused with a BackendError. `precision` is the arithmetic: "auto" keeps what the
        bundle's parity was proved in.
    threads: CPU threads for one graph; None leaves it to the runtime.
    streams: runs that may go on at once on a CPU and share its threads: more images per second from
        several calling threads, each of them slower (backend openvino).
    cache: keep features of the last images and expressions, `image_cache` and `text_cache` many.
    max_pixels: images above are refused before they are decoded.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        backend: str = AUTO,
        device: str = AUTO,
        precision: str = AUTO,
        threads: int | None = None,
        streams: int = 1,
        cache: bool = True,
        image_cache: int = 16,
        text_cache: int = 1024,
        max_pixels: int = images.MAX_PIXELS,
        verify: bool = True,
    ) -> None:
        for name, value in (("image_cache", image_cache), ("text_cache", text_cache)):
            if value < 0:
                raise InputError(f"{name} is {value}: give 0 (off) or more")
        if max_pixels < 1:
            raise InputError(f"max_pixels is {max_pixels}: give at least 1")
        opened = Bundle.open(bundle, verify)
        _check_interfaces(opened)
        manifest = opened.manifest
        self._model: Final = manifest.model
        self._tokenizer = Tokenizer.from_file(opened.tokenizer, self._model.word_len)
        self._graphs: dict[GraphName, Graph] | None
        self._graphs, choice = load_graphs(
            opened, _INTERFACES, backend, device, precision, threads, streams
        )
        self.max_pixels: Final = max_pixels
        self.info: Final = EngineInfo(
            opened.path,
            manifest.model,
            manifest.precision,
            choice,
            threads,
            streams,
            manifest.versions,
        )
        # Keys are the pixels and the tokens themselves: no collisions, and hashing bytes is fast.
        self._scenes: LruCache[bytes, Features] = LruCache(image_cache if cache else 0)
        self._texts: LruCache[bytes, Features] = LruCache(text_cache if cache else 0)
        self._warned: LruCache[str, bool] = LruCache(_WARNED)
        _log.info(
            "%s on %s in %s (%s)", choice.backend, choice.device, choice.compute, choice.reason
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

    def stream(
        self, pairs: Iterable[tuple[ImageInput, str]], batch_size: int = 8
    ) -> Iterator[Segmentation]:
        """Segment (image, expression) pairs in batches, results in the order of the pairs.

        Images are decoded ahead in a thread, repeated ones are encoded once. An error in one pair
        is raised in its place, after all earlier results. Up to 2 * batch_size pairs are drawn
        ahead. Closing the iterator early ends the thread.
        """
        from cris_deploy.stream import outcomes

        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: give at least 1")
        self._stages()

        def results() -> Iterator[Segmentation]:
            with outcomes(self, pairs, batch_size) as stream:
                for outcome in stream:
                    if isinstance(outcome, BaseException):
                        raise outcome
                    yield outcome

        return results()

    def close(self) -> None:
        """Release the graphs and caches; any later use raises InputError."""
        self._graphs = None
        self._scenes.clear()
        self._texts.clear()

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
        keys = [picture.square.tobytes() for picture in pictures]
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
        for prompt in prompts:
            if prompt.truncated:
                self._warn(prompt.expression)
        texts = self._encode_prompts(prompts)
        results = []
        for start in range(0, len(scenes), _CHUNK):
            part = slice(start, start + _CHUNK)
            logits = self._run_mask_decoder(scenes[part], texts[part])
            upsampled = masks.upsample_masks(
                logits,
                [(scene.height, scene.width) for scene in scenes[part]],
                self._model.input_size,
                self._model.threshold,
                threads=self.info.threads,
            )
            results += [
                _segmentation(*item) for item in zip(upsampled, logits, prompts[part], strict=True)
            ]
        return results

    def _run_image_encoder(self, pictures: Sequence[Picture]) -> list[Features]:
        if not pictures:
            return []
        batch = np.stack([images.normalise(picture.square) for picture in pictures])
        outputs = self._stages()[GraphName.IMAGE_ENCODER].run({"image": batch})
        return _rows(outputs, len(pictures))

    def _encode_prompts(self, prompts: Sequence[Prompt]) -> list[Features]:
        keys = [prompt.tokens.tobytes() for prompt in prompts]
        found = {key: value for key in keys if (value := self._texts.get(key)) is not None}
        missing = {k: p.tokens for k, p in zip(keys, prompts, strict=True) if k not in found}
        if missing:
            tokens = np.stack(list(missing.values()))
            outputs = self._stages()[GraphName.TEXT_ENCODER].run({"tokens": tokens})
            for key, features in zip(missing, _rows(outputs, len(tokens)), strict=True):
                found[key] = features
                self._texts.put(key, features)
        return [found[key] for key in keys]

    def _run_mask_decoder(
        self, scenes: Sequence[Scene], texts: Sequence[Features]
    ) -> NDArray[np.float32]:
        """(n, h, w) float32 logits, writable by nobody but their owner."""
        inputs = _joined(texts)
        # One image for all expressions is not repeated: the graph broadcasts it.
        same = all(scene.features is scenes[0].features for scene in scenes)
        inputs |= _joined([scene.features for scene in (scenes[:1] if same else scenes)])
        logits = self._stages()[GraphName.MASK_DECODER].run(inputs)["logits"]
        return np.asarray(logits[:, 0], dtype=np.float32)  # (n, 1, h, w) -> (n, h, w)

    def _stages(self) -> dict[GraphName, Graph]:
        graphs = self._graphs
        if graphs is None:
            raise InputError("engine is closed: make a new Engine")
        return graphs

    def _warn(self, expression: str) -> None:
        def warn() -> bool:
            shown = expression if len(expression) <= 60 else expression[:57] + "..."
            warnings.warn(
                f"expression {shown!r} is longer than the model's {self._model.word_len} tokens: "
                "only its beginning is used",
                TruncationWarning,
                stacklevel=6,
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


def _checked_list(expressions: object) -> list[str]:
    if not isinstance(expressions, Sequence) or isinstance(expressions, (bytes, bytearray)):
        raise ExpressionError(
            f"expression is a {type(expressions).__name__}: give a string such as "
            "'the man in red', or a list of strings"
        )
    return list(expressions)


def _segmentation(
    upsampled: masks.UpsampledMask, logits: NDArray[np.float32], prompt: Prompt
) -> Segmentation:
    assert upsampled.mask is not None  # it was asked for
    return Segmentation(
        upsampled.mask, logits, prompt.expression, prompt.truncated, upsampled.area, upsampled.box
    )


def _rows(outputs: Mapping[str, NDArray[Any]], count: int) -> list[Features]:
    """Split a batch; copies, so that a cached row does not keep its whole batch alive."""
    if count == 1:
        return [dict(outputs)]
    return [{k: v[i : i + 1].copy() for k, v in outputs.items()} for i in range(count)]


def _joined(rows: Sequence[Features]) -> Features:
    if len(rows) == 1:
        return dict(rows[0])
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
