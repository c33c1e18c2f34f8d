"""A stand-in for CUDA's driver where there is no GPU: device memory is host memory, streams queues.

The real `cuda.core` and `cuda.bindings` run on it: `tests/data/libcuda` is a `libcuda.so.1` whose
functions are Python's, of the driver's names and argument types, in `fake_driver.py`.

Streams are lazy: what is queued runs when somebody waits for it, and no sooner, so that a missing
wait, memory freed too early or a staging buffer used twice gives wrong numbers or an error. Every
address is checked against the live allocations, and every thread has a context of its own, or none.
"""

import atexit
import ctypes
import re
import shutil
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

OK, INVALID, OUT_OF_MEMORY = 0, 1, 2
NO_DEVICE, INVALID_CONTEXT, ECC, INVALID_HANDLE = 100, 201, 214, 400
NOT_READY, LAUNCH_FAILED, NOT_WHILE_CAPTURING, UNKNOWN = 600, 719, 900, 999
POISON = 0xA5
CONTEXT = 0xC0
LEGACY, PER_THREAD = 1, 2
_SOURCE = Path(__file__).parents[1] / "data/libcuda/libcuda.c"
_TYPES = {
    "p": ctypes.c_void_p,  # where to write, or a handle
    "q": ctypes.c_size_t,
    "i": ctypes.c_int,
    "b": ctypes.c_ubyte,
}


@dataclass
class Stream:
    queue: deque[Callable[[], None]] = field(default_factory=deque)
    recording: list[Callable[[], None]] | None = None
    graph: int = 0  # that is recorded


@dataclass
class UserObject:
    """What a graph keeps alive for whoever made it, and the function that ends that."""

    pointer: int
    destroy: int
    references: int

    def release(self, count: int = 1) -> None:
        self.references -= count
        if self.references == 0:
            ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.destroy)(self.pointer)


@dataclass
class Block:
    buffer: ctypes.Array
    size: int
    host: bool


class FakeCuda:
    """A driver with one GPU. The one made last is what `libcuda.so.1` gives, until `unplug`."""

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.lock = threading.RLock()
        self.blocks: dict[int, Block] = {}
        self.streams: dict[int, Stream] = {LEGACY: Stream()}
        self.events: dict[int, tuple[int, list[int]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.user_objects: dict[int, UserObject] = {}
        self.kept: dict[int, list[UserObject]] = {}  # by graph
        self.calls: list[str] = []
        self.copies: list[tuple[str, int]] = []  # "in", "out" or "within", and bytes
        self.failures: dict[str, list[int]] = {}
        self.lost = False
        self.hung = False  # nothing that is queued ends
        self.asynchronous = 0  # status that the next wait gives, as a failed kernel does
        self.alone: int | None = None  # thread that captures for all threads
        self.problems: list[str] = []
        self.contexts: dict[int, int] = {}  # by thread
        self.clock = 0  # the device's, milliseconds: one for each kernel, copy and the like
        self._next = 0x1000
        _library()
        _Plugged.into = self

    def unplug(self) -> None:
        """Be a machine without a GPU again."""
        if _Plugged.into is self:
            _Plugged.into = None

    # What the tests and the other stand-ins use

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue a kernel."""
        with self.lock:
            found = self.stream(stream)
            (found.queue if found.recording is None else found.recording).append(work)

    def stream(self, handle: int) -> Stream:
        return self.streams[self.which(handle)]

    def which(self, handle: int) -> int:
        """Key of the stream that a handle means here: the default streams have no handle alone."""
        if handle == PER_THREAD:
            own = -threading.get_ident()
            self.streams.setdefault(own, Stream())
            return own
        return handle or LEGACY

    def view(self, pointer: int, shape: tuple[int, ...], dtype: object) -> np.ndarray:
        """Live memory as an array."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        with self.lock:
            if self._block(pointer, size) is None:
                self.problems.append(f"{size} bytes at 0x{pointer:x} are in no live allocation")
                raise AssertionError(self.problems[-1])
        raw = (ctypes.c_uint8 * size).from_address(pointer)
        return np.ctypeslib.as_array(raw).view(kind).reshape(shape)

    def array(self, obj: object) -> np.ndarray:
        """What a kernel makes of an array it is given."""
        interface = obj.__cuda_array_interface__
        assert interface["strides"] is None
        return self.view(interface["data"][0], interface["shape"], interface["typestr"])

    def live(self) -> list[tuple[int, Block]]:
        return list(self.blocks.items())

    @property
    def device_bytes(self) -> int:
        return sum(block.size for _, block in self.live() if not block.host)

    def fail(self, function: str, status: int, times: int = 1) -> None:
        self.failures.setdefault(function, []).extend([status] * times)

    def finish(self, stream: int, until: list[int] | None = None) -> None:
        """Run what is queued, or as much as it takes to pass an event."""
        queue = self.stream(stream).queue
        while queue and not (until and until[0]):
            work = queue.popleft()
            work()
            self.clock += getattr(work, "milliseconds", 1)

    def come_back(self) -> None:
        """End a loss: all memory on the device and all that was queued is gone."""
        self.blocks = {start: block for start, block in self.live() if block.host}
        for stream in self.streams.values():
            stream.queue.clear()
        self.lost = False

    def finish_all(self) -> None:
        for stream in list(self.streams):
            self.finish(stream)

    def new_stream(self) -> int:
        """A stream of another library."""
        handle = self._new()
        self.streams[handle] = Stream()
        return handle

    def end_stream(self, handle: int) -> None:
        """Its library destroys it; what is queued on it goes on, and nobody can ask for it."""
        self.streams[LEGACY].queue.extend(self.streams.pop(handle).queue)

    def allocate(self, size: int, host: bool = False) -> int:
        buffer = ctypes.create_string_buffer(bytes([POISON]) * (size + 256), size + 256)
        start = -(-ctypes.addressof(buffer) // 256) * 256
        self.blocks[start] = Block(buffer, size, host)
        return start

    def _block(self, pointer: int, size: int) -> Block | None:
        for start, block in self.live():
            if start <= pointer and pointer + size <= start + block.size:
                return block
        return None

    def _call(self, function: Callable[..., int | None], arguments: tuple) -> int:
        with self.lock:
            name = function.__name__
            self.calls.append(name)
            if self.lost and name not in _TALK:
                return ECC
            if self.alone is not None and self.alone != threading.get_ident() and name not in _TALK:
                self.problems.append(f"{name} while another thread captures")
                return NOT_WHILE_CAPTURING
            if self.failures.get(name):
                return self.failures[name].pop(0)
            if name in _CURRENT and threading.get_ident() not in self.contexts:
                return INVALID_CONTEXT
            return function(self, *(argument or 0 for argument in arguments)) or OK

    def _new(self) -> int:
        self._next += 0x10
        return self._next

    def _free(self, pointer: int) -> None:
        if pointer not in self.blocks:
            self.problems.append(f"0x{pointer:x} freed twice")
            return
        block = self.blocks.pop(pointer)
        ctypes.memset(pointer, POISON, block.size)

    def _wait(self, handle: int, until: list[int] | None = None) -> int:
        """Let time pass: a step for a question, and all of it for a wait."""
        if self.hung:
            return NOT_READY
        self.finish(handle, until)
        status, self.asynchronous = self.asynchronous, OK
        return status


class _Plugged:
    into: FakeCuda | None = None


# Functions that touch no device, and those that need one to be current in the calling thread.
_TALK = {"cuGetErrorName", "cuGetErrorString", "cuDriverGetVersion", "cuInit", "cuCtxSetCurrent"}
_CURRENT = {
    "cuCtxGetDevice",
    "cuEventCreate",
    "cuMemAllocHost",
    "cuMemGetInfo",
    "cuStreamCreateWithPriority",
    "cuCtxSynchronize",
}
# What the end of a process calls, with what is kept until then.
_LAST = re.compile("Free|Destroy|Release|Sync|CtxGetCurrent")
_FUNCTIONS: dict[str, object] = {}
KEPT: dict[int, ctypes.Array] = {}


def function(types: str) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """A function of the driver; `types` are those of its arguments."""

    def add(work: Callable[..., int | None]) -> Callable[..., int | None]:
        def call(*arguments: int) -> int:
            machine = _Plugged.into
            if machine is None:
                return (
                    OK
                    if re.search("Free|Destroy|Release|Sync|CtxGetCurrent", work.__name__)
                    else NO_DEVICE
                )
            try:
                return machine._call(work, arguments)
            except BaseException as error:  # nothing may fly through C
                machine.problems.append(f"{work.__name__}: {error!r}")
                return UNKNOWN

        prototype = ctypes.CFUNCTYPE(ctypes.c_int, *(_TYPES[letter] for letter in types))
        _FUNCTIONS[work.__name__] = prototype(call)
        return work

    return add


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
def _resolve(name: bytes) -> int | None:
    return ctypes.cast(_FUNCTIONS.get(name.decode()), ctypes.c_void_p).value


@cache
def _library() -> ctypes.CDLL:
    """Build and open it: whoever opens libcuda.so.1 in this process from now on gets this one."""
    from tests.stand_ins import fake_driver

    assert fake_driver.cuInit  # its functions are known
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None, "a C compiler is needed: apt-get install gcc"
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "libcuda.so.1"
        command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1"]
        subprocess.run([*command, "-o", str(built), str(_SOURCE)], check=True)
        library = ctypes.CDLL(str(built), ctypes.RTLD_GLOBAL)
    library.stand_in(_resolve)
    atexit.register(library.stand_in, None)
    return library


def put(where: int, value: int, kind: type = ctypes.c_void_p) -> None:
    if where:
        kind.from_address(where).value = value
