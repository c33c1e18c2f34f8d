"""A bounded cache for many threads that computes a missing value once, and a key for images."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock
from typing import Final, Generic, TypeVar

import numpy as np

from cris_deploy.pixels.image import Pixels

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


# Of every so many rows and columns one goes into a hash.
_STEP: Final = 16


class PixelKey:
    """An image as a key: hashed by a sample of its pixels, compared by all of them.

    Hashing all takes twenty times as long as a sample, and what is equal is compared anyway. The
    pixels are not copied: they must not change.
    """

    __slots__ = ("_hash", "_pixels")

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        self._hash = hash(pixels[::_STEP, ::_STEP].tobytes())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PixelKey) and np.array_equal(self._pixels, other._pixels)


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What a cache holds, and what it has found since it was made."""

    kept: int
    most: int
    hits: int
    misses: int


class LruCache(Generic[K, V]):
    """Keeps the `size` values used last; with size 0 it keeps nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = Lock()
        self._values: OrderedDict[K, V] = OrderedDict()
        self._computing: dict[K, Lock] = {}
        self._hits = self._misses = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """Look up a value, which then counts as used."""
        with self._lock:
            self._count(key)
            return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Store a value; the one unused for longest goes when there are too many."""
        with self._lock:
            self._store(key, value)

    def get_or_compute(self, key: K, compute: Callable[[], V]) -> V:
        """Look up a value or compute it; threads that ask meanwhile wait for that result.

        An error reaches the thread that computed; those that waited then try themselves.
        """
        if not self._size:
            self._misses += 1
            return compute()
        mine = Lock()
        mine.acquire()
        # A signal may interrupt this thread after any call below: those that wait must not wait on.
        try:
            while True:
                with self._lock:
                    if self._count(key):
                        return self._values[key]
                    computing = self._computing.setdefault(key, mine)
                if computing is mine:
                    break
                with computing:  # free when the value is there, or could not be had
                    pass
                self._drop_turn(key, computing)
            value = compute()
            with self._lock:
                self._store(key, value)
            return value
        finally:
            mine.release()  # first: no signal comes before it
            self._drop_turn(key, mine)

    def counts(self) -> CacheCounts:
        """Say what it holds, and how often a value was there."""
        with self._lock:
            return CacheCounts(len(self._values), self._size, self._hits, self._misses)

    def values(self) -> list[V]:
        """Give what it holds, without counting that as use."""
        with self._lock:
            return list(self._values.values())

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()

    def _drop_turn(self, key: K, turn: Lock) -> None:
        """Nobody computes a value in a turn that has ended."""
        with self._lock:
            if self._computing.get(key) is turn:
                del self._computing[key]

    def _count(self, key: K) -> bool:
        """Whether the value is there, which then counts as used."""
        if key not in self._values:
            self._misses += 1
            return False
        self._hits += 1
        self._values.move_to_end(key)
        return True

    def _store(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._size:
            self._values.popitem(last=False)
