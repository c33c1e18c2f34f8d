"""Faults in this process: calls of the C library that fail, a clock that jumps, little memory."""

import ctypes
import errno
import functools
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path

SOURCE = Path(__file__).with_name("failing.c")
EVERY_CALL = 0
"""As a moment: no call fails, all are counted."""


class Calls(IntFlag):
    """Which calls are meant, and what becomes of them; as in `failing.c`."""

    WRITE = 1  # write and the like, truncate, flush
    NAME = 2  # files made, folders made, renamed
    READ = 4  # files opened to be read, read, mapped
    STAYS = 8  # all later calls fail, too
    KILLS = 16  # the process is killed instead
    HALF = 32  # a write that fails has done a half of its bytes


FULL = Calls.WRITE | Calls.NAME | Calls.STAYS | Calls.HALF
"""A disk that is full from one moment on."""


def build(folder: Path) -> Path | None:
    """Compile what is loaded before the C library; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "failing.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", str(SOURCE)]
    subprocess.run([*command, "-o", str(library), "-ldl"], check=True)
    return library


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    library.fault_seen.restype = ctypes.c_long
    library.fault_clock.argtypes = (ctypes.c_long,)
    return library


def jump(seconds: int) -> None:
    """Let the wall clock show so many seconds more than it is."""
    _library().fault_clock(seconds)


@contextmanager
def injected(
    folder: str | None = None,
    moment: int = EVERY_CALL,
    error: int = errno.ENOSPC,
    calls: int = 0,
    *,
    clock: int = 0,
    megabytes: int | None = None,
) -> Iterator[Callable[[], int]]:
    """Let calls fail within the block; gives how many were seen.

    Args:
        folder: Files below it are meant; None for no failing calls.
        moment: Number of the call that fails, from 1.
        error: The errno that it fails with.
        calls: `Calls`.
        clock: Seconds by which the wall clock jumps at the start.
        megabytes: Address space that is left.
    """
    if folder is None and not clock:
        with little_memory(None if megabytes is None else megabytes << 20):
            yield lambda: 0
        return
    library = _library()
    library.fault_clock(clock)
    if folder is not None:
        library.fault_arm(os.fsencode(folder), moment, error, calls)
    try:
        yield library.fault_seen
    finally:
        library.fault_arm(b"", 0, 0, 0)
        library.fault_clock(0)


@contextmanager
def little_memory(size: int | None) -> Iterator[None]:
    """Let this process have `size` bytes of address space more than now."""
    if size is None:
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
