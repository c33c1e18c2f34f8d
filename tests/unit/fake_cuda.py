"""A stand-in for CUDA where there is no GPU: device memory is host memory, streams are queues.

Streams are lazy: what is queued runs when somebody waits for it, and no sooner, so that a missing
wait, memory freed too early or a staging buffer used twice gives wrong numbers or an error. Every
address is checked against the live allocations. Functions are those of `cuda.bindings.runtime`, by
name and signature (`test_cuda_api.py` compares them).
"""

import ctypes
import enum
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np

OK, INVALID, OUT_OF_MEMORY, UNAVAILABLE, NOT_WHILE_CAPTURING = 0, 1, 2, 46, 900
POISON = 0xA5
_DEFAULT_STREAM = 0


class Kind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1


@dataclass
class Stream:
    queue: deque[Callable[[], None]] = field(default_factory=deque)
    recording: list[Callable[[], None]] | None = None


@dataclass
class Block:
    buffer: ctypes.Array
    size: int
    host: bool


class FakeCuda:
    """The module `cuda.bindings.runtime`."""

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaHostAllocDefault = 0
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = CaptureMode
    cudaMemAllocationType = SimpleNamespace(cudaMemAllocationTypePinned=1)
    cudaMemAllocationHandleType = SimpleNamespace(cudaMemHandleTypeNone=0)
    cudaMemLocationType = SimpleNamespace(cudaMemLocationTypeDevice=1)
    cudaMemPoolAttr = SimpleNamespace(cudaMemPoolAttrReleaseThreshold=4)

    def __init__(self, capacity: int = 1 << 30) -> None:
        self.capacity = capacity
        self.lock = threading.RLock()
        self.blocks: dict[int, Block] = {}
        self.streams: dict[int, Stream] = {_DEFAULT_STREAM: Stream()}
        self.events: dict[int, tuple[int, list[bool]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.calls: list[str] = []
        self.failures: dict[str, list[int]] = {}
        self.lost = False
        self.asynchronous = 0  # status that the next wait gives, as a failed kernel does
        self.alone: int | None = None  # thread that captures for all threads
        self.problems: list[str] = []
        self._next = 0x1000

    # What the tests and the other stand-ins use

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Queue a kernel."""
        with self.lock:
            found = self.streams[stream]
            (found.queue if found.recording is None else found.recording).append(work)

    def view(self, pointer: int, shape: tuple[int, ...], dtype: object) -> np.ndarray:
        """Live memory as an array."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        with self.lock:
            if not any(s <= pointer and pointer + size <= s + b.size for s, b in self.live()):
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

    def finish(self, stream: int, until: list[bool] | None = None) -> None:
        """Run what is queued, or as much as it takes to pass an event."""
        queue = self.streams[stream].queue
        while queue and not (until and until[0]):
            queue.popleft()()

    def come_back(self) -> None:
        """End a loss: all memory and all that was queued is gone."""
        self.blocks.clear()
        for stream in self.streams.values():
            stream.queue.clear()
        self.lost = False

    def finish_all(self) -> None:
        for stream in list(self.streams):
            self.finish(stream)

    def _enter(self, function: str) -> int:
        self.calls.append(function)
        if self.lost:
            return UNAVAILABLE
        if self.alone is not None and self.alone != threading.get_ident():
            self.problems.append(f"{function} while another thread captures")
            return NOT_WHILE_CAPTURING
        queued = self.failures.get(function)
        return queued.pop(0) if queued else OK

    def _new(self) -> int:
        self._next += 0x10
        return self._next

    def _allocate(self, size: int, host: bool) -> int:
        buffer = ctypes.create_string_buffer(bytes([POISON]) * (size + 256), size + 256)
        start = -(-ctypes.addressof(buffer) // 256) * 256
        self.blocks[start] = Block(buffer, size, host)
        return start

    def _free(self, pointer: int) -> None:
        if pointer not in self.blocks:
            self.problems.append(f"0x{pointer:x} freed twice")
            return
        block = self.blocks.pop(pointer)
        ctypes.memset(pointer, POISON, block.size)


def _function(work: Callable[..., object]) -> Callable[..., tuple]:
    """A CUDA function: refused if a failure is due, else status and values."""

    def call(self, *arguments):
        with self.lock:
            status = self._enter(work.__name__)
            if status != OK:
                if work.__name__ == "cudaStreamEndCapture":  # an invalid capture ends, too
                    self.streams[arguments[0]].recording = None
                return (status, *[None] * _VALUES.get(work.__name__, 0))
            given = work(self, *arguments)
        if isinstance(given, tuple):
            return given
        return (OK,) if given is None else (OK, given)

    call.__name__ = work.__name__
    call.arguments = work.__code__.co_varnames[1 : work.__code__.co_argcount]
    setattr(FakeCuda, work.__name__, call)
    return call


_VALUES = {
    "cudaMallocFromPoolAsync": 1,
    "cudaHostAlloc": 1,
    "cudaStreamCreateWithFlags": 1,
    "cudaEventCreateWithFlags": 1,
    "cudaStreamEndCapture": 1,
    "cudaGraphInstantiate": 1,
    "cudaGetDevice": 1,
    "cudaEventCreate": 1,
    "cudaEventElapsedTime": 1,
    "cudaMemPoolCreate": 1,
    "cudaMemGetInfo": 2,
}


class Properties:
    """cudaMemPoolProps."""

    def __init__(self) -> None:
        self.location = SimpleNamespace()


FakeCuda.cudaMemPoolProps = Properties
FakeCuda.cudaGetErrorName = lambda self, error: (OK, b"cudaErrorFake%d" % error)
FakeCuda.cudaGetErrorString = lambda self, error: (OK, b"made up")
FakeCuda.cudaGetLastError = lambda self: (OK,)


@_function
def cudaGetDevice(self):
    return 0


@_function
def cudaSetDevice(self, device):
    assert device == 0


@_function
def cudaMemGetInfo(self):
    return OK, self.capacity - self.device_bytes, self.capacity


@_function
def cudaMemPoolCreate(self, poolProps):
    return self._new()


@_function
def cudaMemPoolSetAttribute(self, memPool, attr, value):
    assert value.wanted == (1 << 64) - 1  # not a plain int


@_function
def cudaMemPoolTrimTo(self, memPool, minBytesToKeep): ...


@_function
def cudaMemPoolDestroy(self, memPool): ...


@_function
def cudaMallocFromPoolAsync(self, size, memPool, stream):
    if self.streams[stream].recording is not None:
        self.problems.append("memory asked for in a capture")
        return NOT_WHILE_CAPTURING, None
    if self.device_bytes + size > self.capacity:
        self.finish_all()  # a real device gets on by itself, too
    if self.device_bytes + size > self.capacity:
        return OUT_OF_MEMORY, None
    return self._allocate(size, host=False)


@_function
def cudaFreeAsync(self, devPtr, hStream):
    self.enqueue(hStream, lambda: self._free(devPtr))


@_function
def cudaHostAlloc(self, size, flags):
    return self._allocate(size, host=True)


@_function
def cudaFreeHost(self, ptr):
    self._free(ptr)


@_function
def cudaMemsetAsync(self, devPtr, value, count, stream):
    self.enqueue(stream, lambda: self.view(devPtr, (count,), np.uint8).fill(value))


@_function
def cudaMemcpyAsync(self, dst, src, count, kind, stream):
    def side(pointer, device):
        if device:
            return self.view(pointer, (count,), np.uint8)
        return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(pointer))

    def copy():
        to, source = kind != Kind.cudaMemcpyDeviceToHost, kind != Kind.cudaMemcpyHostToDevice
        side(dst, to)[:] = side(src, source)

    self.enqueue(stream, copy)


@_function
def cudaStreamCreateWithFlags(self, flags):
    handle = self._new()
    self.streams[handle] = Stream()
    return handle


@_function
def cudaStreamDestroy(self, stream):
    self.finish(stream)
    del self.streams[stream]


@_function
def cudaStreamSynchronize(self, stream):
    if self.streams[stream].recording is not None:
        self.problems.append("waited for a stream in a capture")
        return (NOT_WHILE_CAPTURING,)
    self.finish(stream)
    status, self.asynchronous = self.asynchronous, OK
    return (status,)


@_function
def cudaEventCreateWithFlags(self, flags):
    handle = self._new()
    self.events[handle] = (_DEFAULT_STREAM, [True])
    return handle


@_function
def cudaEventRecord(self, event, stream):
    passed = [False]
    self.events[event] = (stream, passed)

    def mark():
        passed[0] = True

    self.enqueue(stream, mark)


@_function
def cudaEventSynchronize(self, event):
    stream, passed = self.events[event]
    if stream in self.streams:
        self.finish(stream, passed)
    status, self.asynchronous = self.asynchronous, OK
    return (status,)


@_function
def cudaStreamWaitEvent(self, stream, event, flags):
    # What the event marks now; it may be recorded again.
    source, passed = self.events[event]

    def wait():
        if source in self.streams:
            self.finish(source, passed)

    self.enqueue(stream, wait)


@_function
def cudaEventDestroy(self, event):
    del self.events[event]


@_function
def cudaStreamBeginCapture(self, stream, mode):
    found = self.streams[stream]
    assert found.recording is None
    assert mode == CaptureMode.cudaStreamCaptureModeThreadLocal
    found.recording = []


@_function
def cudaStreamEndCapture(self, stream):
    found = self.streams[stream]
    recorded, found.recording = found.recording, None
    handle = self._new()
    self.graphs[handle] = recorded
    return handle


@_function
def cudaGraphInstantiate(self, graph, flags):
    handle = self._new()
    self.graphs[handle] = self.graphs[graph]
    return handle


@_function
def cudaGraphLaunch(self, graphExec, stream):
    for work in self.graphs[graphExec]:
        self.enqueue(stream, work)


@_function
def cudaGraphDestroy(self, graph):
    del self.graphs[graph]


@_function
def cudaGraphExecDestroy(self, graphExec):
    del self.graphs[graphExec]


@_function
def cudaEventCreate(self):
    return self.cudaEventCreateWithFlags(0)


@_function
def cudaEventElapsedTime(self, start, end):
    assert self.events[start][1][0]
    assert self.events[end][1][0]
    return 1.5
