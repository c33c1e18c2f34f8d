"""Batches across images, with decoding in a thread beside the network."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cris_deploy.errors import CrisError, ExpressionError, InputError
from cris_deploy.image import ImageInput
from cris_deploy.segmentation import Segmentation

if TYPE_CHECKING:
    from cris_deploy.engine import Engine, Picture, Prompt

Outcome: TypeAlias = Segmentation | Exception
_FileState: TypeAlias = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class _Prepared:
    picture: "Picture"
    prompt: "Prompt"


@contextmanager
def outcomes(
    engine: "Engine", pairs: Iterable[tuple[ImageInput, str]], batch_size: int
) -> Iterator[Iterator[Outcome]]:
    """Give an iterator of one outcome per pair, in order: a segmentation, or that pair's error.

    An error of `pairs` itself is the last outcome. Leaving the context ends the thread.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="cris-decode")
    try:
        yield _run(engine, iter(pairs), batch_size, pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run(
    engine: "Engine",
    pairs: Iterator[tuple[ImageInput, str]],
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Iterator[Outcome]:
    ahead: deque[Future[_Prepared]] = deque()
    preparer = _Preparer(engine)
    ended: Exception | None = None
    drawing = True
    while True:
        # While the network runs a batch, the thread decodes the next one.
        while drawing and len(ahead) < 2 * batch_size:
            try:
                pair = next(pairs)
            except StopIteration:
                drawing = False
            except Exception as error:
                drawing, ended = False, error
            else:
                ahead.append(pool.submit(preparer.prepare, pair))
        if not ahead:
            break
        batch = [ahead.popleft() for _ in range(min(batch_size, len(ahead)))]
        yield from _run_batch(engine, batch)
    if ended is not None:
        yield ended


def _run_batch(engine: "Engine", batch: list[Future[_Prepared]]) -> Iterator[Outcome]:
    results: list[Outcome | None] = []
    good: list[_Prepared] = []
    for future in batch:
        error = future.exception()
        if isinstance(error, Exception):
            results.append(error)
        elif error is not None:  # KeyboardInterrupt and the like belong to nobody's pair
            raise error
        else:
            good.append(future.result())
            results.append(None)
    segmentations: Iterator[Outcome] = iter(())
    if good:
        try:
            scenes = engine.encode_pictures([item.picture for item in good])
            segmentations = iter(engine.decode_masks(scenes, [item.prompt for item in good]))
        except CrisError as error:
            segmentations = iter([error] * len(good))
    for result in results:
        yield next(segmentations) if result is None else result


class _Preparer:
    """Prepares pairs in the thread; a file that comes again at once is not decoded again."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._last: tuple[_FileState, Picture] | None = None

    def prepare(self, pair: tuple[ImageInput, str]) -> _Prepared:
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
        prompt = self._engine.read_expressions(expression)[0]
        state = _file_state(image)
        if state is None:
            return _Prepared(self._engine.prepare(image), prompt)
        if self._last is None or self._last[0] != state:
            self._last = state, self._engine.prepare(image)
        return _Prepared(self._last[1], prompt)


def _file_state(image: ImageInput) -> _FileState | None:
    if not isinstance(image, (str, os.PathLike)):
        return None
    try:
        status = Path(image).stat()
    except (OSError, ValueError):
        return None  # reading it will say what is wrong
    return str(image), status.st_ino, status.st_mtime_ns, status.st_size
