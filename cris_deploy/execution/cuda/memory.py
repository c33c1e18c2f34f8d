"""Streams with bounded waits, memory that frees itself in the order of its stream, tensors in it.

Memory may be let go while work on it is still queued: it returns to the pool after that work, as it
is freed in the order of its own stream, which first waits for every other stream that used it.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, RLock, local
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cris_deploy.errors import BackendError, EngineTimeoutError
from cris_deploy.execution.cuda.api import Cuda, OutOfMemoryError
from cris_deploy.execution.cuda.shared_lock import SharedLock

ALIGNMENT: Final = 256
"""Bytes; what CUDA's own allocations are aligned to, and what the kernels ask for."""

_LEGACY: Final = 1  # the default stream, in DLPack and in the driver
_PER_THREAD: Final = 2  # the default stream of the thread that says it
_CUDA: Final = 2  # kDLCUDA
_PAUSE: Final = 1e-4  # seconds between two looks at an event
_KEPT: Final[list[object]] = []
"""Memory that nobody may free: of a device that was lost, or read by a stream that is unknown."""
_HERE: Final = local()


class Stream:
    """A CUDA stream of ours; `timeout` is how many seconds a wait for it may take."""

    def __init__(self, cuda: Cuda, index: int, timeout: float | None) -> None:
        self._cuda = cuda
        self._timeout = timeout
        # Non-blocking, as is its default: no waiting for the default stream, which others use.
        self.core: Final = cuda.run(lambda: cuda.core.Device(index).create_stream())
        self.handle: Final = int(self.core.handle)

    def wait(self) -> None:
        """Wait on the host for everything queued.

        Raises BackendError if any of it failed, EngineTimeoutError if it does not end.
        """
        if self._timeout is None:
            self._cuda.run(self.core.sync)
        else:
            self.wait_for(self.record())

    def wait_for(self, event: Any) -> None:
        """Wait on the host for an event, as `wait` does."""
        if self._timeout is None:
            self._cuda.run(event.sync)
        elif not self.passed(event, self._timeout):
            raise EngineTimeoutError(
                f"what the GPU computes has not ended in {self._timeout} s: raise timeout, or look "
                "what keeps the GPU (nvidia-smi)"
            )

    def passed(self, event: Any, timeout: float) -> bool:
        """Tell whether an event comes to pass in so many seconds; BackendError if work failed."""
        end = time.monotonic() + timeout
        while not self._cuda.run(lambda: event.is_done):
            if time.monotonic() > end:
                return False
            time.sleep(_PAUSE)
        return True

    def record(self) -> Any:
        """Make an event: what is queued by now."""
        return self._cuda.run(self.core.record)

    def after(self, other: Any) -> None:
        """Let later work wait for an event, or for what a stream of `cuda.core` has queued."""
        self._cuda.run(self.core.wait, other)


class Pool:
    """A pool of device memory that keeps what is freed for the next allocation."""

    def __init__(self, cuda: Cuda, index: int, gate: SharedLock, timeout: float | None) -> None:
        self.cuda: Final = cuda
        self.index: Final = index
        self.gate: Final = gate
        self.timeout: Final = timeout
        self.lost = False
        """Set when the device was lost: its addresses mean nothing any more."""
        self._lock = RLock()
        self._captures = 0
        self._put_off: list[_Freed] = []
        core = cuda.core
        self._resource = cuda.run(
            core.DeviceMemoryResource, core.Device(index), core.DeviceMemoryResourceOptions()
        )
        # Otherwise every synchronisation gives free memory back, and every call asks for it again.
        cuda.keep_free_memory(self._resource.handle)

    def allocate(self, size: int, stream: Stream) -> "Memory":
        """Allocate at least one byte; BackendError if there is no memory left."""
        size = max(size, 1)
        buffer = self._try(size, stream)
        if buffer is None:
            self.trim(stream)
            buffer = self._try(size, stream)
        if buffer is None:
            raise self.cuda.out_of_memory(size)
        return Memory(self, buffer, size, stream)

    def _try(self, size: int, stream: Stream) -> Any:
        try:
            return self.cuda.run(self._resource.allocate, size, stream=stream.core)
        except OutOfMemoryError:
            return None

    def trim(self, stream: Stream | None = None) -> None:
        """Give memory that nothing uses back to the driver."""
        if stream is not None:  # what is freed on it counts as free only then
            stream.wait()
        self.cuda.call("cuMemPoolTrimTo", self._resource.handle, 0)

    def free(self, piece: "_Freed") -> None:
        """Free memory after all that is queued on its stream and on its users' streams.

        Any thread may end up here at any moment, and what it queued on a stream that is being
        captured would become part of that graph. So while there is a capture, this is put off.
        """
        with self._lock:
            if self._captures:
                self._put_off.append(piece)
            else:
                self._free(piece)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Free nothing meanwhile."""
        with self._lock:
            self._captures += 1
        try:
            yield
        finally:
            with self._lock:
                self._captures -= 1
                while self._put_off and not self._captures:
                    self._free(self._put_off.pop())

    def _free(self, piece: "_Freed") -> None:
        try:
            if self.lost:
                _KEPT.append(piece.buffer)
                return
            with self.cuda.on_device(self.index):
                try:
                    for user in piece.users:
                        user.require_reachable()
                        piece.stream.after(self.cuda.stream(user.handle))
                except BackendError:  # that stream is out of reach; what it was given may still run
                    self.cuda.call("cuCtxSynchronize")
                piece.buffer.close()
                if piece.ready is not None:
                    piece.ready.close()  # here, where there is no capture
        except Exception:  # there is no one to tell; and what may still be read is not used again
            _KEPT.append(piece.buffer)


class _User(NamedTuple):
    """A stream that reads memory: its handle, and the thread if that means another one in each."""

    handle: int
    thread: object | None

    @classmethod
    def here(cls, handle: int) -> "_User":
        """What a handle means in the calling thread."""
        return cls(handle, _this_thread() if handle == _PER_THREAD else None)

    def require_reachable(self) -> None:
        """Raise BackendError if its handle means another stream in the calling thread."""
        if self.thread is not None and self.thread is not _this_thread():
            raise BackendError("the default stream of another thread has no handle here")


class _Freed(NamedTuple):
    buffer: Any
    stream: Stream
    users: Mapping[_User, object]
    ready: Any


class Memory:
    """A piece of device memory; it goes back to its pool with the last tensor in it."""

    def __init__(self, pool: Pool, buffer: Any, size: int, stream: Stream) -> None:
        self.pool: Final = pool
        self.buffer: Final = buffer
        self.pointer: Final = int(buffer.handle)
        self.bytes: Final = size
        self.stream: Final = stream
        self._ready: Any = None
        self._lock = Lock()
        self._users: dict[_User, object] = {}

    def mark_ready(self) -> None:
        """Say that what is queued on its own stream now completes its contents."""
        self._ready = self.stream.record()

    def use_on(self, stream: int, owner: object) -> None:
        """Let a stream read it from now on; `owner` keeps that stream alive as long as this."""
        if stream == self.stream.handle:
            return
        if self._ready is not None:
            cuda = self.pool.cuda
            cuda.run(cuda.stream(stream).wait, self._ready)
        with self._lock:
            self._users.setdefault(_User.here(stream), owner)

    def __del__(self) -> None:
        self.pool.free(_Freed(self.buffer, self.stream, self._users, self._ready))


class DeviceTensor:
    """A C-contiguous array in device memory.

    PyTorch, CuPy, Numba and this package's kernels take it as it is, through
    `__cuda_array_interface__` (version 3): `torch.as_tensor(tensor, device="cuda")`.
    """

    __slots__ = ("dtype", "memory", "pointer", "shape")

    def __init__(
        self, memory: Memory, offset: int, shape: tuple[int, ...], dtype: DTypeLike
    ) -> None:
        self.memory = memory
        self.pointer = memory.pointer + offset
        self.shape = tuple(int(side) for side in shape)
        self.dtype: np.dtype[Any] = np.dtype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            # Whoever is given it has waited, or has a stream that does: see `use_on`.
            "stream": None,
        }

    def rows(self, start: int, stop: int) -> "DeviceTensor":
        """Give rows of the first axis, in the same memory."""
        step = math.prod(self.shape[1:]) * self.dtype.itemsize
        offset = self.pointer - self.memory.pointer + start * step
        return DeviceTensor(self.memory, offset, (stop - start, *self.shape[1:]), self.dtype)

    def reshaped(self, *shape: int) -> "DeviceTensor":
        """Give the same elements in another shape, in the same memory."""
        assert math.prod(shape) == math.prod(self.shape)
        return DeviceTensor(self.memory, self.pointer - self.memory.pointer, shape, self.dtype)

    def shared(self) -> "SharedTensor":
        """Give the same for other libraries, in the same memory."""
        offset = self.pointer - self.memory.pointer
        return SharedTensor(self.memory, offset, self.shape, self.dtype)

    def to_host(self) -> NDArray[Any]:
        """Wait for it and copy it to the host.

        Raises BackendError if what makes it failed, EngineTimeoutError if that does not end.
        """
        pool = self.memory.pool
        if pool.lost:
            raise BackendError("the GPU was lost since this was computed: compute it again")
        with pool.gate.inside(), pool.cuda.on_device(pool.index):
            # That of the memory may be in other hands, or in a capture.
            stream = Stream(pool.cuda, pool.index, pool.timeout)
            self.memory.use_on(stream.handle, stream)
            stream.wait()  # before the copy: one that is given up would write into freed memory
            host = np.empty(self.shape, self.dtype)
            target = host.ctypes.data
            pool.cuda.call("cuMemcpyAsync", target, self.pointer, host.nbytes, stream.handle)
            pool.cuda.run(stream.core.sync)
        return host

    def __repr__(self) -> str:
        return f"DeviceTensor({self.shape}, {self.dtype}, 0x{self.pointer:x})"


class SharedTensor(DeviceTensor):
    """A tensor for other libraries: it speaks DLPack, too (`torch.from_dlpack(tensor)`)."""

    __slots__ = ()

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.memory.pool.index

    def __dlpack__(self, *, stream: int | None = None, **named: Any) -> Any:
        """Hand it over in the order of `stream`, by default CUDA's default stream; -1: in none."""
        if stream != -1:
            self.memory.use_on(_LEGACY if stream is None else stream, None)
        cuda = self.memory.pool.cuda
        with cuda.on_device(self.memory.pool.index):
            return cuda.run(self._capsule, cuda.core, named)

    def _capsule(self, core: Any, named: Mapping[str, Any]) -> Any:
        buffer = core.Buffer.from_handle(self.pointer, self.nbytes, owner=self.memory)
        view = core.utils.StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.dtype)
        return view.__dlpack__(stream=-1, **named)


class PinnedMemory:
    """Page-locked host memory that grows: copies from and to it need no second copy."""

    def __init__(self, cuda: Cuda, stream: Stream) -> None:
        self._cuda = cuda
        self._stream = stream
        self._held: NDArray[np.uint8] = np.empty(0, np.uint8)

    def bytes(self, size: int) -> NDArray[np.uint8]:
        """Give its first `size` bytes, (size,) uint8. Nothing queued may use what it held."""
        if size > len(self._held):
            self._held = self._held[:0].copy()
            resource = self._cuda.core.LegacyPinnedMemoryResource()
            buffer = self._cuda.run(resource.allocate, size, stream=self._stream.core)
            # NumPy asks the buffer what memory it is, and that asks the driver.
            self._held = self._cuda.run(lambda: np.from_dlpack(buffer)).view(np.uint8)
        return self._held[:size]


def _this_thread() -> object:
    """What the calling thread is known by; no later one is, though it may get the same number."""
    return _HERE.__dict__.setdefault("thread", object())


def aligned(size: int) -> int:
    """Round bytes up so that the next tensor in the same memory is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT
