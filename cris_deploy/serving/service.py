"""What a worker process serves with: an engine and its batcher, from start to end."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cris_deploy.batcher import Batcher
from cris_deploy.bundle.reading import Bundle
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError, BusyError, CrisError
from cris_deploy.execution.steps import Picture
from cris_deploy.pixels.mask import overlap
from cris_deploy.results.engine_info import CacheInfo
from cris_deploy.results.segmentation import Segmentation
from cris_deploy.serving.answers import Refused
from cris_deploy.serving.images import ImageStore, image_id
from cris_deploy.serving.metrics import Metrics
from cris_deploy.serving.options import ServeOptions
from cris_deploy.serving.self_test import self_test
from cris_deploy.serving.traces import span

_log = logging.getLogger(__name__)
_DECODERS: Final = 4
_SMALL: Final = 2**18
_PROBES: Final = 16
"""Requests beyond those that may wait: probes are answered where clients are refused."""
_WARM_WORDS: Final = "the red object on the left"


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A question for probes: a picture, words, and the mask that they had when it was loaded."""

    picture: Picture
    words: str
    mask: NDArray[np.bool_]
    least_iou: float


@dataclass(eq=False)
class _Loaded:
    """An engine that serves, and what belongs to it; `users` are requests that began with it.

    Pictures have the size of its model's input, so another engine has others.
    """

    engine: Engine
    batcher: Batcher
    images: ImageStore
    counted: CacheInfo
    known: _Known
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Answered:
    """An image as it is known here, and its masks in the order of the expressions."""

    image_id: str
    picture: Picture
    results: list[Segmentation]


class Service:
    """Answers requests with one engine, which can be replaced under them.

    Its methods are for the event loop's thread; what takes time goes to threads.
    """

    def __init__(self, options: ServeOptions, metrics: Metrics) -> None:
        self.options: Final = options
        self._metrics = metrics
        self._decoders: Final = ThreadPoolExecutor(_DECODERS, "cris-decode")
        self._loaded: _Loaded | None = None
        self._waiting = 0
        self._replacing = asyncio.Lock()

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self._loaded is not None

    @property
    def engine(self) -> Engine:
        """The engine that serves now. Raises Refused if there is none yet."""
        return self._current().engine

    async def start(self) -> None:
        """Load the bundle, warm the engine up and test it; then it is ready."""
        self._loaded = await asyncio.to_thread(self._load)

    async def replace(self) -> None:
        """Load the bundle again and serve with it from then on; on an error the old one stays."""
        async with self._replacing:
            try:
                new = await asyncio.to_thread(self._load)
            except CrisError:
                _log.exception("the bundle was not replaced")
                return
            old, self._loaded = self._loaded, new
            _log.info("the bundle was replaced")
            if old is not None:
                await self._let_go(old)

    async def stop(self) -> None:
        """Answer what was taken, and close the engine."""
        old, self._loaded = self._loaded, None
        if old is not None:
            await self._let_go(old)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def segment(
        self,
        image: bytes | None,
        identity: str | None,
        expressions: Sequence[str],
        threshold: float | None = None,
    ) -> Answered:
        """Segment an image that is sent, or one that was.

        Raises Refused (404) for an image that is not known here, and what an engine raises.
        """
        async with self._using() as loaded:
            began, engine, images = time.monotonic(), loaded.engine, loaded.images
            # Refusing an expression is cheap, decoding an image is not.
            engine.pipeline.read_expressions(expressions, threshold)
            if identity is None:
                assert image is not None
                # A thread costs more than the hash of a usual picture.
                small = len(image) <= _SMALL
                identity = image_id(image) if small else await asyncio.to_thread(image_id, image)
            picture = images.get(identity)
            self._metrics.lookup("pictures", found=picture is not None)
            if picture is None:
                if image is None:
                    raise Refused(404, "the image is not known here any more: send it again")
                with span("decode", bytes=len(image)):
                    picture = await self._decode(engine, image)
                images.put(identity, picture)
            left = self.options.timeout - (time.monotonic() - began)
            with span("segment", expressions=len(expressions)):
                results = await loaded.batcher.segment(
                    picture, expressions, timeout=max(left, 1e-3), threshold=threshold
                )
            self._metrics.truncated.inc(sum(result.truncated for result in results))
            return Answered(identity, picture, results)

    async def segment_pixels(
        self, pixels: np.ndarray, expressions: Sequence[str]
    ) -> list[Segmentation]:
        """Segment an image that comes as (H, W, 3) uint8 RGB."""
        async with self._using() as loaded:
            picture = await self._decode(loaded.engine, pixels)
            timeout = self.options.timeout
            return await loaded.batcher.segment(picture, expressions, timeout=timeout)

    async def infers(self) -> None:
        """Ask for a known mask, however much is waiting.

        Raises what an engine raises, and BackendError if it is another mask.
        """
        async with self._using(bounded=False) as loaded:
            known, timeout = loaded.known, self.options.timeout
            found = await loaded.batcher.segment(known.picture, known.words, timeout=timeout)
            if overlap(found.mask, known.mask).iou < known.least_iou:
                raise BackendError("the network gives another mask than when it was loaded")

    @asynccontextmanager
    async def _using(self, *, bounded: bool = True) -> AsyncIterator[_Loaded]:
        loaded = self._current()
        if bounded and self._waiting >= self.options.waiting:
            raise BusyError(f"{self._waiting} requests wait already: try again later")
        self._waiting += 1
        loaded.users += 1
        self._metrics.waiting.inc()
        try:
            yield loaded
        finally:
            now = loaded.engine.cache_info()
            self._metrics.caches(loaded.counted, now)
            loaded.counted = now
            self._metrics.waiting.dec()
            self._waiting -= 1
            loaded.users -= 1
            if not loaded.users:
                loaded.idle.set()

    def _current(self) -> _Loaded:
        if self._loaded is None:
            raise Refused(503, "the engine is not ready", {"retry-after": "1"})
        return self._loaded

    async def _decode(self, engine: Engine, image: bytes | np.ndarray) -> Picture:
        def decode() -> Picture:
            began = time.perf_counter()
            picture = engine.pipeline.prepare(image)
            self._metrics.observe_run("decode", time.perf_counter() - began, 1)
            return picture

        return await asyncio.get_running_loop().run_in_executor(self._decoders, decode)

    async def _let_go(self, loaded: _Loaded) -> None:
        while loaded.users:
            loaded.idle.clear()
            await loaded.idle.wait()
        await asyncio.to_thread(loaded.batcher.close)
        await asyncio.to_thread(loaded.engine.close)

    def _load(self) -> _Loaded:
        options, metrics = self.options, self._metrics
        began = time.perf_counter()
        bundle = options.open_bundle()
        engine = Engine(
            bundle,
            backend=options.backend,
            device=options.device,
            precision=options.precision,
            threads=options.threads,
            streams=options.streams,
            max_pixels=options.max_pixels,
            timeout=options.timeout,
            on_stage=lambda stage, seconds, rows: metrics.observe_run(str(stage), seconds, rows),
        )
        try:
            limits = options.batch_limits(engine.info.device, reserved=_PROBES)
            engine.warm_up(sorted({1, limits.images}), sorted({1, 2, limits.pairs}))
            if options.self_test:
                self_test(engine, bundle)
            known = _ask_known(engine, bundle)
        except BaseException:
            engine.close()
            raise
        batcher = Batcher(engine, limits)
        info = engine.info
        _log.info(
            "ready: %s on %s in %s",
            info.backend,
            info.device,
            info.compute,
            extra={"seconds": round(time.perf_counter() - began, 3)},
        )
        images = ImageStore(options.kept_images, options.kept_seconds)
        # What the warm-up and the self-test looked up is no client's.
        return _Loaded(engine, batcher, images, engine.cache_info(), known)


def _ask_known(engine: Engine, bundle: Bundle) -> _Known:
    """Segment the bundle's first sample; a gray picture if it has none.

    Alone and in a batch a mask may differ at its rim: by no more than an export may from PyTorch.
    """
    parity = bundle.manifest.parity
    least = 0.0 if parity is None else parity.min_iou
    if bundle.manifest.samples:
        sample = bundle.manifest.samples[0]
        picture = engine.pipeline.prepare(bundle.sample_image(sample))
        words = sample.expression
    else:
        side = engine.info.model.input_size
        picture, words = Picture(np.full((side, side, 3), 127, np.uint8), side, side), _WARM_WORDS
    prompts = engine.pipeline.read_expressions(words)
    scenes = engine.pipeline.encode_pictures([picture])
    found = Segmentation.of(engine.pipeline.decode_masks(scenes, prompts)[0], prompts[0])
    return _Known(picture, words, found.mask, least)
