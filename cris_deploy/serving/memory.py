"""What a server that runs for weeks gives back of the memory it had."""

import ctypes
import os
from typing import Final

# malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE: Final = 2**20
"""Bytes; a picture and its mask are larger, and what Python allocates is not."""


def give_back() -> bool:
    """Have glibc return a large buffer's pages when it is freed; whether that was possible.

    By itself it takes larger and larger buffers from its heaps, one for each of many threads, where
    pictures of all sizes leave holes between what is kept: a server's memory creeps for hours
    (docs/decisions/0023-memory-of-a-server.md). Who set its variables has decided otherwise, and
    other C libraries do as they do.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, _LARGE), (_ARENA_MAX, 2))
    return all(mallopt(name, value) for name, value in settings)
