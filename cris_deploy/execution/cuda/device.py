"""One GPU: lanes to run on, what happens when a call fails, and moments that need it alone.

A lane is a stream with everything that runs on it: graphs bound to fixed buffers, scratch memory,
page-locked memory for the bus. A call of the engine takes a lane, uses it alone, and gives it back
when its results are on their way; there are as many lanes as the engine has streams. If a call
fails, all that its lane holds is dropped and made again by the next call.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cris_deploy.errors import BackendError, CrisError, EngineTimeoutError, InputError
from cris_deploy.execution.cuda.api import Cuda, load_cuda
from cris_deploy.execution.cuda.memory import DeviceTensor, Memory, PinnedMemory, Pool, Stream
from cris_deploy.execution.cuda.shared_lock import SharedLock
from cris_deploy.execution.interruptible import Condition, Future, Workers
from cris_deploy.machine import gpu

_T = TypeVar("_T")

# Graphs bound to buffers that one lane keeps: three stages times the usual sets of shapes.
_MOST_KEPT: Final = 32


class Closable(Protocol):
    """What a lane holds."""

    def close(self) -> None:
        """End it; nothing that uses it is queued any more."""


class Lane:
    """A stream and what runs on it; one thread uses it at a time."""

    def __init__(self, device: "CudaDevice", pool: Pool) -> None:
        self.device: Final = device
        self.pool: Final = pool
        self.stream: Final = Stream(device.cuda, device.index, device.timeout)
        self.turn: object = None
        """Whose turn it is: what the gate knows its user by."""
        self._kept: OrderedDict[Hashable, Closable] = OrderedDict()
        self._scratch: Memory | None = None
        self._upload = PinnedMemory(device.cuda, self.stream)
        self._uploaded: Any = None
        self._landing = PinnedMemory(device.cuda, self.stream)
        self._thread: Final = Workers(1, "cris-lane")
        self._work: Future[Any] | None = None

    def allocate(self, size: int) -> Memory:
        """Allocate device memory in this lane's order."""
        return self.pool.allocate(size, self.stream)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Make a tensor in memory of its own, zeros.

        Zeros, because rows that pad a batch are computed, too, and as token numbers garbage would
        be read far outside the embedding.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        memory = self.allocate(size)
        self.device.cuda.run(memory.buffer.fill, 0, stream=self.stream.core)
        return DeviceTensor(memory, 0, shape, dtype)

    def scratch(self, size: int) -> Memory:
        """Give memory for use until the next work on this lane, which may overwrite it.

        It only grows; whoever must find it at the same address again keeps the object.
        """
        if self._scratch is None or self._scratch.bytes < size:
            self._scratch = self.allocate(size)
        return self._scratch

    def copy(self, source: int, target: int, size: int) -> None:
        """Queue a copy from one address to another, of the device or in page-locked memory."""
        self.device.cuda.call("cuMemcpyAsync", target, source, size, self.stream.handle)

    def upload(self, array: NDArray[Any], into: DeviceTensor) -> None:
        """Queue a copy of an array's elements to the first elements of a tensor of its type."""
        assert array.dtype == into.dtype
        assert array.nbytes <= into.nbytes
        if self._uploaded is not None:
            self.stream.wait_for(self._uploaded)
        staged = self._upload.bytes(max(array.nbytes, 1))
        np.copyto(staged[: array.nbytes].view(array.dtype).reshape(array.shape), array)
        self.copy(staged.ctypes.data, into.pointer, array.nbytes)
        self._uploaded = self.stream.record()

    def download(self, *tensors: DeviceTensor) -> list[NDArray[Any]]:
        """Wait for tensors, and give them as arrays that are valid until the next download."""
        offsets, end = [], 0
        for tensor in tensors:
            offsets.append(end)
            end += -(-tensor.nbytes // 16) * 16
        landing = self._landing.bytes(max(end, 1))
        for tensor, offset in zip(tensors, offsets, strict=True):
            self.copy(tensor.pointer, landing.ctypes.data + offset, tensor.nbytes)
        self.stream.wait()
        return [
            landing[offset : offset + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
            for tensor, offset in zip(tensors, offsets, strict=True)
        ]

    def use(self, tensor: DeviceTensor) -> None:
        """Read a tensor in this lane's order from now on, whichever lane made it."""
        if tensor.memory.pool.lost:
            raise BackendError("the GPU was lost since the image was encoded: encode it again")
        tensor.memory.use_on(self.stream.handle, self.stream)

    def kept(self, key: Hashable, make: Callable[[], Closable]) -> Any:
        """Look up what is kept under a key, or make it; the one unused for longest goes."""
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MOST_KEPT:
                self.stream.wait()  # it may still be running
                self._kept.popitem(last=False)[1].close()
            found = self._kept[key] = make()
        self._kept.move_to_end(key)
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have the device alone, with no other lane and no host copy on it."""
        with self.device.gate.alone(self.turn), self.pool.capture():
            yield

    def on_its_thread(self, work: Callable[[], _T]) -> _T:
        """Run something on the one thread that belongs to this lane."""
        device = self.device

        def current() -> _T:
            with device.cuda.on_device(device.index):
                return work()

        self._work = running = self._thread.submit(current)
        if not running.ends(device.timeout):
            raise EngineTimeoutError(
                f"a run on the GPU has not returned in {device.timeout} s: raise timeout, or look "
                "what keeps the GPU (nvidia-smi)"
            )
        return running.result()

    def close(self, timeout: float | None) -> bool:
        """Drop everything once what is queued has ended; False if it has not in `timeout` s."""
        if not self._ends(timeout):
            return False
        while self._kept:
            self._kept.popitem()[1].close()
        self._scratch = self._uploaded = None
        self._ends(timeout)  # freed in stream order: this makes it free for other streams, too
        self._thread.close()
        return True

    def _ends(self, timeout: float | None) -> bool:
        if self._work is not None and not self._work.ends(timeout):
            return False
        try:
            if timeout is None:
                self.stream.wait()
                return True
            return self.stream.passed(self.stream.record(), timeout)
        except BackendError:
            return True  # it failed, and with it all that was queued


class _Seat:
    """Where a lane is kept. Free if there is no turn on it: one assignment takes or frees it."""

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.turn: object | None = None
        self.clean = True
        """Whether its lane may be used again: no call broke off in the midst of it."""


class _Turn:
    """The use of a seat by one call; it ends with this object, if it has not before."""

    def __init__(self, device: "CudaDevice") -> None:
        self._device = device
        self.token: Final = object()

    def __del__(self) -> None:
        self._device.end(self.token)


class CudaDevice:
    """A GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES chooses which it counts).

    `timeout` is how many seconds any one wait may take: for a lane, for other threads, for what is
    computed. None is as long as it takes.
    """

    def __init__(
        self, cuda: Cuda, lanes: int = 1, index: int = 0, timeout: float | None = None
    ) -> None:
        self.cuda: Final = cuda
        self.index: Final = index
        self.timeout: Final = timeout
        self.gate: Final = SharedLock(timeout)
        self._lock = Lock()
        with cuda.on_device(index):
            self.pool = Pool(cuda, index, self.gate, timeout)
        self._seats: Final = [_Seat() for _ in range(lanes)]  # lanes are made when first needed
        self._ended: Final = Condition()
        self._closed = False
        self._leaving: list[Lane] = []  # lanes to close, once what runs on them has ended

    @contextmanager
    def lane(self) -> Iterator[Lane]:
        """Take a lane, waiting for one. If the work on it fails, the next call finds a new one.

        Raises EngineTimeoutError if none comes free, InputError if the device was closed.
        """
        turn = _Turn(self)  # ends the turn, should the way out be interrupted
        try:
            seat = self._take(turn.token, self._seats)
            self.gate.enter(turn.token)
            try:
                if not seat.clean or (seat.lane is not None and seat.lane.pool.lost):
                    self._drop(seat)  # its memory first, then that of the next
                seat.clean = False
                with self.cuda.on_device(self.index):
                    if seat.lane is None:
                        seat.lane = Lane(self, self._living_pool())
                    seat.lane.turn = turn.token
                    yield seat.lane
                seat.clean = True
            except BaseException as error:
                if _refuses(error):
                    seat.clean = True
                else:
                    self._drop(seat)
                raise
        finally:
            self.end(turn.token)

    def end(self, token: object) -> None:
        """End a turn, if there is one; again, if that was interrupted."""
        self.gate.leave(token)
        with self._ended:
            for seat in self._seats:
                if seat.turn is token:
                    seat.turn = None
            self._ended.notify_all()

    def close(self) -> None:
        """Drop all lanes, each after the call that uses it; later calls are refused.

        Raises EngineTimeoutError if a call does not end.
        """
        with self._ended:
            self._closed = True
            self._ended.notify_all()
        for seat in self._seats:
            turn = _Turn(self)
            try:
                self._drop(self._take(turn.token, [seat], closing=True))
            finally:
                self.end(turn.token)

    def _take(self, token: object, seats: list[_Seat], closing: bool = False) -> _Seat:
        def first_free() -> _Seat | None:
            free = [seat for seat in seats if seat.turn is None]
            return next((seat for seat in free if seat.lane is not None), free[0] if free else None)

        def refused() -> bool:
            return self._closed and not closing

        with self._ended:
            self._ended.wait_for(lambda: refused() or first_free(), self.timeout)
            if refused():
                raise InputError("engine is closed: make a new Engine")
            seat = first_free()
            if seat is None:
                raise EngineTimeoutError(
                    f"none of the GPU's {len(seats)} streams came free in {self.timeout} s: raise "
                    "streams or timeout, or call from fewer threads"
                )
            seat.turn = token
            return seat

    def _drop(self, seat: _Seat) -> None:
        """Take a seat's lane away, and close it, and others that were left running, if they end."""
        lane = seat.lane
        with self._lock:
            if lane is not None:
                self._leaving.append(lane)
            leaving = list(self._leaving)
        seat.lane = None
        seat.clean = True
        try:
            with self.cuda.on_device(self.index):
                for one in leaving:
                    if one.close(self.timeout if one is lane else 0):
                        with self._lock:
                            self._leaving = [other for other in self._leaving if other is not one]
                self.pool.trim()
        except BackendError:  # a lost device gives nothing else, and all addresses on it are void
            self.pool.lost = True

    def _living_pool(self) -> Pool:
        with self._lock:
            if self.pool.lost:
                self.pool = Pool(self.cuda, self.index, self.gate, self.timeout)
            return self.pool


def _refuses(error: BaseException) -> bool:
    """Whether it is an argument of the call that was wrong, so that nothing had been queued."""
    return isinstance(error, CrisError) and not isinstance(
        error, (BackendError, EngineTimeoutError)
    )


def open_device(lanes: int, index: int = 0, timeout: float | None = None) -> CudaDevice:
    """Open a GPU; BackendError says what is missing: driver, GPU or cuda-core."""
    gpu.require_gpu(index)
    return CudaDevice(load_cuda(), lanes, index, timeout)
