"""One GPU: lanes to run on, what happens when a call fails, and moments that need it alone.

A lane is a stream with everything that runs on it: graphs bound to fixed buffers, scratch memory,
page-locked memory for the bus. A call of the engine takes a lane, uses it alone, and gives it back
when its results are on their way; there are as many lanes as the engine has streams. If a call
fails, all that its lane holds is dropped and made again by the next call.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cris_deploy import gpu
from cris_deploy.cuda.api import Cuda, load_cuda
from cris_deploy.cuda.gate import Gate
from cris_deploy.cuda.memory import DeviceTensor, Event, Memory, PinnedMemory, Pool, Stream
from cris_deploy.errors import BackendError, CrisError

_T = TypeVar("_T")

# Graphs bound to buffers that one lane keeps: three stages times the usual sets of shapes.
_SLOTS: Final = 32


class Closable(Protocol):
    """What a lane holds."""

    def close(self) -> None:
        """End it; nothing that uses it is queued any more."""


class Lane:
    """A stream and what runs on it; one thread uses it at a time."""

    def __init__(self, device: "CudaDevice", pool: Pool) -> None:
        self.device: Final = device
        self.pool: Final = pool
        self.stream: Final = Stream(device.cuda)
        self._slots: OrderedDict[Hashable, Closable] = OrderedDict()
        self._scratch: Memory | None = None
        self._upload = PinnedMemory(device.cuda)
        self._uploaded: Event | None = None
        self._landing = PinnedMemory(device.cuda)
        self._thread: ThreadPoolExecutor | None = None

    def allocate(self, size: int) -> Memory:
        """Allocate device memory in this lane's order."""
        return self.pool.allocate(size, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Make a tensor in memory of its own, zeros.

        Zeros, because rows that pad a batch are computed, too, and as token numbers garbage would
        be read far outside the embedding.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        tensor = DeviceTensor(self.allocate(size), 0, shape, dtype)
        self.device.cuda.call("cudaMemsetAsync", tensor.pointer, 0, size, self.stream.handle)
        return tensor

    def scratch(self, size: int) -> Memory:
        """Give memory for use until the next work on this lane, which may overwrite it.

        It only grows; whoever must find it at the same address again keeps the object.
        """
        if self._scratch is None or self._scratch.bytes < size:
            self._scratch = self.allocate(size)
        return self._scratch

    def copy(self, source: int, target: int, size: int) -> None:
        """Queue a copy from one device address to another."""
        cuda = self.device.cuda
        kind = cuda.names.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        cuda.call("cudaMemcpyAsync", target, source, size, kind, self.stream.handle)

    def upload(self, array: NDArray[Any], into: DeviceTensor) -> None:
        """Queue a copy of an array's elements to the first elements of a tensor of its type."""
        assert array.dtype == into.dtype
        assert array.nbytes <= into.nbytes
        cuda = self.device.cuda
        if self._uploaded is not None:
            self._uploaded.wait()
        staged = self._upload.bytes(max(array.nbytes, 1))
        np.copyto(staged[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        kind = cuda.names.cudaMemcpyKind.cudaMemcpyHostToDevice
        cuda.call(
            "cudaMemcpyAsync",
            into.pointer,
            staged.ctypes.data,
            array.nbytes,
            kind,
            self.stream.handle,
        )
        if self._uploaded is None:
            self._uploaded = Event(cuda, self.stream.handle)
        else:
            self._uploaded.record(self.stream.handle)

    def download(self, *tensors: DeviceTensor) -> list[NDArray[Any]]:
        """Wait for tensors, and give them as arrays that are valid until the next download."""
        cuda = self.device.cuda
        kind = cuda.names.cudaMemcpyKind.cudaMemcpyDeviceToHost
        offsets, end = [], 0
        for tensor in tensors:
            offsets.append(end)
            end += -(-tensor.nbytes // 16) * 16
        landing = self._landing.bytes(max(end, 1))
        for tensor, offset in zip(tensors, offsets, strict=True):
            cuda.call(
                "cudaMemcpyAsync",
                landing.ctypes.data + offset,
                tensor.pointer,
                tensor.nbytes,
                kind,
                self.stream.handle,
            )
        self.stream.wait()
        return [
            landing[offset : offset + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
            for tensor, offset in zip(tensors, offsets, strict=True)
        ]

    def use(self, tensor: DeviceTensor) -> None:
        """Read a tensor in this lane's order from now on, whichever lane made it."""
        if tensor.memory.lost:
            raise BackendError("the GPU was lost since the image was encoded: encode it again")
        tensor.memory.use_on(self.stream.handle, self.stream)

    def slot(self, key: Hashable, make: Callable[[], Closable]) -> Any:
        """Look up what is kept under a key, or make it; the one unused for longest goes."""
        found = self._slots.get(key)
        if found is None:
            if len(self._slots) >= _SLOTS:
                self.stream.wait()  # it may still be running
                self._slots.popitem(last=False)[1].close()
            found = self._slots[key] = make()
        self._slots.move_to_end(key)
        return found

    def on_its_thread(self, work: Callable[[], _T]) -> _T:
        """Run something on the one thread that belongs to this lane."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="cris-lane")
            self._thread.submit(self.device.cuda.call, "cudaSetDevice", self.device.index).result()
        return self._thread.submit(work).result()

    def close(self) -> None:
        """Wait for what is queued, and drop everything."""
        self.device.cuda.try_call("cudaStreamSynchronize", self.stream.handle)
        while self._slots:
            self._slots.popitem()[1].close()
        self._scratch = self._uploaded = None
        # Freed in stream order: this makes it free for other streams, too.
        self.device.cuda.try_call("cudaStreamSynchronize", self.stream.handle)
        if self._thread is not None:
            self._thread.shutdown(wait=True)
            self._thread = None


class CudaDevice:
    """A GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES chooses which it counts)."""

    def __init__(self, cuda: Cuda, lanes: int = 1, index: int = 0) -> None:
        self.cuda: Final = cuda
        self.index: Final = index
        self.gate: Final = Gate()
        self._lock = Lock()
        with self._current():
            self.pool = Pool(cuda, self.index, self.gate)
        self._lanes: Final = lanes
        self._idle: SimpleQueue[Lane | None] = SimpleQueue()
        for _ in range(lanes):
            self._idle.put(None)  # made when it is first needed

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Take a lane, waiting for one. If the work on it fails, the next call finds a new one."""
        lane = self._idle.get()
        self.gate.enter()
        try:
            with self._current():
                if lane is None or lane.pool.lost:
                    lane = None  # its memory first, then that of the next
                    lane = Lane(self, self._living_pool())
                yield lane
        except BaseException as error:
            # A refused argument has queued nothing; whatever else came between may have.
            if not isinstance(error, CrisError) or isinstance(error, BackendError):
                self._drop(lane)
                lane = None
            raise
        finally:
            self.gate.leave()
            self._idle.put(lane)

    def close(self) -> None:
        """Drop all lanes, after the calls that use them; later calls make new ones."""
        for lane in [self._idle.get() for _ in range(self._lanes)]:
            if lane is not None:
                with self._current():
                    lane.close()
            self._idle.put(None)
        self.pool.trim()

    def _drop(self, lane: Lane | None) -> None:
        if lane is not None:
            lane.close()
        if self.cuda.try_call("cudaMemGetInfo"):
            self.pool.trim()
        else:  # a lost device answers nothing, and all addresses on it are void
            self.pool.lost = True

    def _living_pool(self) -> Pool:
        with self._lock:
            if self.pool.lost:
                self.pool = Pool(self.cuda, self.index, self.gate)
            return self.pool

    @contextmanager
    def _current(self) -> Iterator[None]:
        before = self.cuda.call("cudaGetDevice")
        if before != self.index:
            self.cuda.call("cudaSetDevice", self.index)
        try:
            yield
        finally:
            if before != self.index:
                self.cuda.try_call("cudaSetDevice", before)


def open_device(lanes: int, index: int = 0) -> CudaDevice:
    """Open a GPU; BackendError says what is missing: driver, GPU or cuda-python."""
    gpu.require_gpu(index)
    return CudaDevice(load_cuda(), lanes, index)
