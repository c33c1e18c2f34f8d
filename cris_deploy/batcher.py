"""Calls of many threads and coroutines, merged into batches by stage.

A request's words are tokenised where it is made; its image is decoded and letterboxed by a pool of
threads. Then it waits, in the order of arrival, for a worker, of which there are enough to keep the
engine's streams busy. A worker takes what is waiting: images, each once, go through the image
encoder together, then all their expressions through the mask decoder, those of one image side by
side, since the graph takes that image's features once for all of them. A request of many
expressions is split, and what is left of it waits behind the others.

On a GPU a batch costs less than its parts, so a worker may wait a moment for company. On a CPU it
does not: what pays there is only what several expressions of one image share.
"""

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from threading import Thread
from types import TracebackType
from typing import Final, overload

from cris_deploy import arguments
from cris_deploy.engine import Engine
from cris_deploy.errors import BusyError, EngineTimeoutError, InputError
from cris_deploy.execution import interruptible
from cris_deploy.execution.backends import Device
from cris_deploy.execution.cache import PixelKey
from cris_deploy.execution.interruptible import Condition, Workers
from cris_deploy.execution.steps import Picture, Prompt, Steps
from cris_deploy.pixels.image import ImageInput
from cris_deploy.results.segmentation import Segmentation


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may become, and what may wait.

    Attributes:
        images: That differ, in a run of the image encoder.
        pairs: Of image and expression, in a run of the mask decoder.
        delay: Seconds that a worker waits, after the first request, for a batch to become full.
        waiting: Requests that may be unanswered at once; further ones are refused.
    """

    images: int
    pairs: int
    delay: float = 0.0
    waiting: int = 256

    @classmethod
    def of(cls, device: Device) -> "BatchLimits":
        """Give the limits that suit a device.

        On a CPU a batch of images costs what its parts do, so it is kept short for the sake of
        those that wait for all of it. On a GPU these have not been measured.
        """
        return cls(4, 16) if device is Device.CPU else cls(8, 32, delay=0.002)

    def __post_init__(self) -> None:
        for name in ("images", "pairs", "waiting"):
            arguments.whole(name, getattr(self, name), 1)
        if not 0 <= self.delay < math.inf:
            raise InputError(f"delay is {self.delay}: give seconds, 0 or more")


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """What a batcher has done since it was made, and what is waiting now.

    `images` and `pairs` went through the network in so many `image_runs` and `pair_runs`;
    `cancelled` and `late` requests were given up, `refused` ones never taken.
    """

    waiting: int = 0
    answered: int = 0
    failed: int = 0
    cancelled: int = 0
    late: int = 0
    refused: int = 0
    image_runs: int = 0
    images: int = 0
    pair_runs: int = 0
    pairs: int = 0


@dataclass(eq=False, slots=True)
class _Request:
    future: "Future[list[Segmentation]]"
    prompts: list[Prompt]
    deadline: float
    timeout: float | None
    results: dict[int, Segmentation] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request whose picture is decoded; the first `taken` prompts are in a batch, or were."""

    request: _Request
    picture: Picture
    key: PixelKey
    taken: int = 0


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of a request's prompts, from `start` on, for one batch."""

    request: _Request
    key: PixelKey
    start: int
    prompts: list[Prompt]


class Batcher:
    """Segments for many callers at once; see the module for how.

    Args:
        engine: With which, or its steps. It stays the caller's, who closes it after the batcher.
        limits: Of batches and of what waits; None takes `BatchLimits.of` the engine's device.
        workers: Batches in hand at once; None for what suits the engine's streams.
        decode_threads: Images that are decoded at once.
    """

    def __init__(
        self,
        engine: Engine | Steps,
        limits: BatchLimits | None = None,
        *,
        workers: int | None = None,
        decode_threads: int = 4,
    ) -> None:
        info = engine.info if isinstance(engine, Engine) else None
        if workers is None:
            streams = 1 if info is None else info.streams
            # One more than streams: while they run, it does what is before and after a run.
            workers = streams + 1 if streams > 1 else 1
        workers = arguments.whole("workers", workers, 1, arguments.MOST_THREADS)
        decode_threads = arguments.whole(
            "decode_threads", decode_threads, 1, arguments.MOST_THREADS
        )
        self._process: Final = os.getpid()
        self._steps: Final = engine.pipeline if isinstance(engine, Engine) else engine
        self.limits: Final = limits or BatchLimits.of(Device.CPU if info is None else info.device)
        self._changed: Final = Condition()
        self._queue: deque[_Waiting] = deque()
        self._open: set[Future[list[Segmentation]]] = set()
        self._counts: Final = dict.fromkeys(BatchCounts.__dataclass_fields__, 0)
        self._closing = False  # no more requests
        self._complete = False  # and none that is still being decoded
        self._decoders: Final = Workers(decode_threads, "cris-decode")
        self._workers: Final = [
            Thread(target=self._work, name=f"cris-batch-{number}", daemon=True)
            for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(
        self,
        image: ImageInput | Picture,
        expression: str | Sequence[str],
        *,
        timeout: float | None = None,
        threshold: float | None = None,
    ) -> "Future[list[Segmentation]]":
        """Ask for the masks of one image, and go on: the future has one result per expression.

        A future that is cancelled, or whose `timeout` in seconds is over before a run with it
        begins, costs no run; the second has an EngineTimeoutError. It has what `Engine.segment`
        raises for a bad image. `image`, or what `Steps.prepare` made of it, must not be changed
        until then. `threshold` is as in `Engine.segment`; requests that differ in it share runs.

        Raises:
            BusyError: too much is waiting.
            ExpressionError: an expression is unusable.
            InputError: the timeout is no number of seconds, or the batcher is closed.
        """
        if timeout is not None and not 0 < timeout < math.inf:
            raise InputError(f"timeout is {timeout}: give seconds above 0, or None for no end")
        prompts = self._steps.read_expressions(expression, threshold)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        future = interruptible.Future[list[Segmentation]]()
        request = _Request(future, prompts, deadline, timeout)
        if os.getpid() != self._process:
            raise InputError(
                "batcher was made before this process was forked, and its threads are not here: "
                "make a new Engine and a new Batcher in this process"
            )
        with self._changed:
            if self._closing:
                raise InputError("batcher is closed: make a new Batcher")
            if len(self._open) >= self.limits.waiting:
                self._counts["refused"] += 1
                raise BusyError(
                    f"{len(self._open)} requests wait already: try again later, or add an engine"
                )
            try:
                self._open.add(future)
                if isinstance(image, Picture):
                    self._enqueue(request, image)
                else:
                    self._decoders.submit(self._prepare, request, image)
            except BaseException:  # Ctrl-C, too: what nobody will answer takes no place
                self._open.discard(future)
                raise
        # What the future keeps must not lead back to it: its masks would stay until the garbage
        # collector comes, which counts objects and not their megabytes.
        future.add_done_callback(self._let_go)
        return future

    @overload
    async def segment(  # type: ignore[overload-overlap]
        self,
        image: ImageInput | Picture,
        expression: str,
        *,
        timeout: float | None = None,
        threshold: float | None = None,
    ) -> Segmentation: ...
    @overload
    async def segment(
        self,
        image: ImageInput | Picture,
        expression: Sequence[str],
        *,
        timeout: float | None = None,
        threshold: float | None = None,
    ) -> list[Segmentation]: ...
    async def segment(
        self,
        image: ImageInput | Picture,
        expression: str | Sequence[str],
        *,
        timeout: float | None = None,
        threshold: float | None = None,
    ) -> Segmentation | list[Segmentation]:
        """Segment as `Engine.segment` does, from a coroutine; cancelling it cancels the request.

        Raises what `submit` and its future do; an EngineTimeoutError comes on time, also while a
        run is under way.
        """
        future = self.submit(image, expression, timeout=timeout, threshold=threshold)
        end = None
        if timeout is not None:
            loop = asyncio.get_running_loop()
            end = loop.call_later(timeout, _settle, future, _late(timeout))
        try:
            results = await asyncio.wrap_future(future)
        finally:
            if end is not None:
                end.cancel()
        return results[0] if isinstance(expression, str) else results

    def counts(self) -> BatchCounts:
        """Say what has been done, and what is waiting."""
        with self._changed:
            return BatchCounts(**{**self._counts, "waiting": len(self._open)})

    def close(self) -> None:
        """Take no more requests, answer those that were taken, and end the threads."""
        with self._changed:
            self._closing = True
        self._decoders.close()
        with self._changed:
            self._complete = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _let_go(self, future: "Future[list[Segmentation]]") -> None:
        with self._changed:
            self._open.discard(future)
            if future.cancelled():
                outcome = "cancelled"
            elif (error := future.exception()) is None:
                outcome = "answered"
            else:
                outcome = "late" if isinstance(error, EngineTimeoutError) else "failed"
            self._counts[outcome] += 1

    def _prepare(self, request: _Request, image: ImageInput) -> None:
        if _given_up(request):
            return
        try:
            picture = self._steps.prepare(image)
        except Exception as error:
            _settle(request.future, error)
            return
        with self._changed:
            self._enqueue(request, picture)

    def _enqueue(self, request: _Request, picture: Picture) -> None:
        if not request.prompts:
            _settle(request.future, [])
            return
        self._queue.append(_Waiting(request, picture, PixelKey(picture.square)))
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._complete:
                        return
                    self._changed.wait()
                self._wait_for_company()
                pictures, parts, dropped = self._take()
            for request in dropped:
                _given_up(request)
            if parts:
                self._run(pictures, parts)
            del pictures, parts, dropped  # while it waits it keeps no mask alive

    def _wait_for_company(self) -> None:
        end = time.monotonic() + self.limits.delay
        while not self._closing and (left := end - time.monotonic()) > 0:
            pairs = sum(len(entry.request.prompts) - entry.taken for entry in self._queue)
            images = len({entry.key for entry in self._queue})
            # One image alone may yet be asked for more, also where a batch has room for one only.
            if pairs >= self.limits.pairs or images >= max(2, self.limits.images):
                return
            self._changed.wait(left)

    def _take(self) -> tuple[dict[PixelKey, Picture], list[_Part], list[_Request]]:
        """Take a batch from the queue, in its order; an image that is in it already is free."""
        pictures: dict[PixelKey, Picture] = {}
        parts: list[_Part] = []
        given_up: list[_Request] = []
        passed_over: list[_Waiting] = []
        unfinished: list[_Waiting] = []
        room = self.limits.pairs
        while self._queue and room:
            entry = self._queue.popleft()
            request, key = entry.request, entry.key
            if request.future.done() or time.monotonic() > request.deadline:
                given_up.append(request)
            elif key not in pictures and len(pictures) == self.limits.images:
                passed_over.append(entry)
            else:
                pictures.setdefault(key, entry.picture)
                prompts = request.prompts[entry.taken : entry.taken + room]
                parts.append(_Part(request, key, entry.taken, prompts))
                entry.taken += len(prompts)
                room -= len(prompts)
                if entry.taken < len(request.prompts):
                    unfinished.append(entry)
        self._queue.extendleft(reversed(passed_over))
        self._queue.extend(unfinished)
        return pictures, parts, given_up

    def _run(self, pictures: dict[PixelKey, Picture], parts: list[_Part]) -> None:
        try:
            encoded = self._steps.encode_pictures(list(pictures.values()))
            self._count("image", len(encoded))
            parts = [part for part in parts if not _given_up(part.request)]
            scenes = dict(zip(pictures, encoded, strict=True))
            # Side by side what has one image: its features are given to the graph once.
            by_image = [part for key in pictures for part in parts if part.key == key]
            pairs = [(scenes[part.key], prompt) for part in by_image for prompt in part.prompts]
            if not pairs:
                return
            decoded = self._steps.decode_masks(
                [scene for scene, _ in pairs], [prompt for _, prompt in pairs]
            )
            self._count("pair", len(pairs))
            masks = zip(decoded, (prompt for _, prompt in pairs), strict=True)
            found = iter([Segmentation.of(*item) for item in masks])
        except Exception as error:
            for part in parts:
                _settle(part.request.future, error)
            return
        for part in by_image:
            request = part.request
            for index in range(part.start, part.start + len(part.prompts)):
                request.results[index] = next(found)
            if len(request.results) == len(request.prompts):
                _settle(request.future, [request.results[i] for i in range(len(request.prompts))])

    def _count(self, what: str, size: int) -> None:
        with self._changed:
            self._counts[f"{what}_runs"] += 1
            self._counts[f"{what}s"] += size


def _given_up(request: _Request) -> bool:
    """Whether nobody waits for it any more; one that is late is told."""
    if not request.future.done() and time.monotonic() > request.deadline:
        _settle(request.future, _late(request.timeout))
    return request.future.done()


def _late(timeout: float | None) -> EngineTimeoutError:
    return EngineTimeoutError(
        f"the request has not been answered in {timeout} s: raise timeout, or add an engine"
    )


def _settle(future: "Future[list[Segmentation]]", outcome: list[Segmentation] | Exception) -> None:
    try:
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass  # cancelled, or told that it is late, a moment ago
