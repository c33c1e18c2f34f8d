"""Batches across images, with files decoded in threads beside the network."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

from cris_deploy.errors import BackendError, CrisError, ExpressionError, InputError
from cris_deploy.execution.executor import Decoded
from cris_deploy.execution.interruptible import Future, Workers
from cris_deploy.execution.steps import Picture, Prompt, Steps
from cris_deploy.pixels.image import ImageInput

MOST_DECODERS: Final = 4
"""Threads that decode unless another number is asked for; fewer where there are fewer cores."""

_T = TypeVar("_T")
_FileState: TypeAlias = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A pair that was drawn; its picture may still be decoded."""

    picture: Future[Picture]
    prompt: Prompt


def segment_pairs(
    steps: Steps,
    result: Callable[[Decoded, Prompt], _T],
    pairs: Iterator[object],
    batch_size: int,
    threads: int | None,
    threshold: float | None = None,
) -> Generator[_T | CrisError, None, None]:
    """Give one item per pair, in their order: its result, or what is wrong with this pair.

    What concerns no pair is raised: an error of `pairs` itself, after the items of all pairs that
    came before it, or a closed engine. The threads end with the iterator.
    """
    cores = len(os.sched_getaffinity(0))
    pool = Workers(threads or min(cores, MOST_DECODERS), "cris-decode")
    drawer = _Drawer(steps, pool, threshold)
    ahead: deque[_Drawn | CrisError] = deque()
    ended: Exception | None = None
    drawing = True
    try:
        while True:
            # While the network runs a batch, the threads decode the next one.
            while drawing and len(ahead) < 2 * batch_size:
                try:
                    pair = next(pairs)
                except StopIteration:
                    drawing = False
                except Exception as error:
                    drawing, ended = False, error
                else:
                    ahead.append(drawer.draw(pair))
            if not ahead:
                break
            batch = deque(ahead.popleft() for _ in range(min(batch_size, len(ahead))))
            yield from _run_batch(steps, result, batch)
        if ended is not None:
            raise ended
    finally:
        pool.close(cancel=True)


def _run_batch(
    steps: Steps, result: Callable[[Decoded, Prompt], _T], batch: deque[_Drawn | CrisError]
) -> Iterator[_T | CrisError]:
    # An error holds the frames that it came through and those that called them. So that none of
    # them holds the error, which would keep all, and the pixels, until the collector comes: what
    # is given out is taken from a queue, and what fails is caught in functions of their own.
    errors: deque[CrisError | None] = deque()
    pictures: list[Picture] = []
    prompts: list[Prompt] = []
    while batch:
        _take(batch, errors, pictures, prompts)
    results = _segmented(steps, result, pictures, prompts) if pictures else deque()
    while errors:
        yield errors.popleft() or results.popleft()


def _take(
    batch: deque[_Drawn | CrisError],
    errors: deque[CrisError | None],
    pictures: list[Picture],
    prompts: list[Prompt],
) -> None:
    """Move the first of `batch`: to `pictures` and `prompts`, or what is wrong with it to `errors`,
    which gets None for what is right."""
    drawn = batch.popleft()
    if isinstance(drawn, CrisError):
        errors.append(drawn)
        return
    try:
        pictures.append(drawn.picture.result())
        prompts.append(drawn.prompt)
        errors.append(None)
    except CrisError as error:
        errors.append(error)
    finally:
        del drawn


def _segmented(
    steps: Steps,
    result: Callable[[Decoded, Prompt], _T],
    pictures: list[Picture],
    prompts: list[Prompt],
) -> deque[_T | CrisError]:
    try:
        decoded = steps.decode_masks(steps.encode_pictures(pictures), prompts)
        return deque(result(*item) for item in zip(decoded, prompts, strict=True))
    except BackendError as failure:
        return deque([failure] * len(pictures))


class _Drawer:
    """Takes from a pair, at once, what may change when the next one is drawn.

    Pixels are letterboxed: that costs the same for all sizes, where a copy of a 4K frame takes
    25 MB. Files and their bytes are decoded by the pool; a file that comes again at once is not
    decoded again.
    """

    def __init__(self, steps: Steps, pool: Workers, threshold: float | None) -> None:
        self._steps = steps
        self._threshold = threshold
        self._pool = pool
        self._last: tuple[_FileState, Future[Picture]] | None = None

    def draw(self, pair: Any) -> _Drawn | CrisError:
        """Take a pair, or say what is wrong with it."""
        try:
            try:
                image, expression = pair
            except (TypeError, ValueError):
                raise InputError(
                    f"pairs gave a {type(pair).__name__}: give (image, expression) tuples"
                ) from None
            if not isinstance(expression, str):
                raise ExpressionError(
                    f"expression is a {type(expression).__name__}: give one string per pair"
                )
            prompt = self._steps.read_expressions(expression, self._threshold)[0]
            return _Drawn(self._picture(image), prompt)
        except CrisError as error:
            return error

    def _picture(self, image: ImageInput) -> Future[Picture]:
        if isinstance(image, (bytes, bytearray, memoryview)):
            return self._pool.submit(self._steps.prepare, bytes(image))
        if not isinstance(image, (str, os.PathLike)):
            ready: Future[Picture] = Future()
            ready.set_result(self._steps.prepare(image))
            return ready
        state = _file_state(image)
        if state is not None and self._last is not None and self._last[0] == state:
            return self._last[1]
        decoding = self._pool.submit(self._steps.prepare, image)
        self._last = None if state is None else (state, decoding)
        return decoding


def _file_state(image: str | os.PathLike[str]) -> _FileState | None:
    try:
        status = Path(image).stat()
    except (OSError, ValueError):
        return None  # reading it will say what is wrong
    return str(image), status.st_ino, status.st_mtime_ns, status.st_size
