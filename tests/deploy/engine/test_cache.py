"""The bounded cache: least recently used goes first, a missing value is computed once."""

import sys
import threading
import time

import numpy as np
import pytest

from cris_deploy.execution import cache as cache_module
from cris_deploy.execution.cache import LruCache, PixelKey


def test_least_recently_used_goes_first():
    cache: LruCache[str, int] = LruCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert cache.get_or_compute("a", lambda: pytest.fail("computed again")) == 1
    cache.put("d", 4)
    assert cache.get("c") is None
    cache.clear()
    assert len(cache) == 0


def test_size_zero_keeps_nothing():
    cache: LruCache[str, int] = LruCache(0)
    cache.put("a", 1)
    assert cache.get("a") is None
    assert [cache.get_or_compute("a", lambda: 5), len(cache)] == [5, 0]


def test_computed_once_for_all_that_ask_meanwhile():
    cache: LruCache[str, object] = LruCache(4)
    computed = []

    def compute() -> object:
        time.sleep(0.05)
        computed.append(1)
        return object()

    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(cache.get_or_compute("a", compute)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(computed) == 1
    assert len(set(map(id, results))) == 1


@pytest.mark.parametrize("moment", range(1, 16))
def test_an_interrupt_leaves_nobody_waiting(moment):
    """As a signal does, after the n-th call that `get_or_compute` makes."""
    cache: LruCache[str, int] = LruCache(4)
    calls = 0

    def interrupt(frame, event, _):
        nonlocal calls
        calls += event == "c_return" and frame.f_code.co_filename == cache_module.__file__
        if calls == moment:
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        cache.get_or_compute("a", lambda: 1)
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)

    found: list[int] = []
    other = threading.Thread(
        target=lambda: found.append(cache.get_or_compute("a", lambda: 1)), daemon=True
    )
    other.start()
    other.join(20)
    assert found == [1]
    assert cache.get("a") == 1


def test_a_failure_is_not_kept():
    cache: LruCache[str, int] = LruCache(4)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_compute("a", lambda: 1 // 0)
    assert cache.get_or_compute("a", lambda: 7) == 7


def test_images_are_told_apart_by_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    other = pixels.copy()
    other[1, 1, 1] ^= 1  # not in the sample that is hashed
    assert hash(PixelKey(pixels)) == hash(PixelKey(other))
    assert PixelKey(pixels) == PixelKey(pixels.copy())
    assert PixelKey(pixels) != PixelKey(other)
    assert PixelKey(pixels) != PixelKey(pixels[:, ::-1])
    assert PixelKey(pixels) != pixels.tobytes()
    cache = LruCache(2)
    cache.put(PixelKey(pixels), "pixels")
    cache.put(PixelKey(other), "other")
    assert cache.get(PixelKey(pixels.copy())) == "pixels"
    assert cache.get(PixelKey(other.copy())) == "other"
