"""Streams, events, memory that frees itself in the order of its stream, and tensors in it.

Memory may be let go while work on it is still queued: it returns to the pool after that work, as it
is freed in the order of its own stream, which first waits for every other stream that used it.
"""

import ctypes
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cris_deploy.cuda.api import Cuda
from cris_deploy.cuda.gate import Gate
from cris_deploy.errors import BackendError

ALIGNMENT: Final = 256
"""Bytes; what CUDA's own allocations are aligned to, and what the kernels ask for."""


class Stream:
    """A CUDA stream of ours; it ends with the last thing that needs it.

    Counted, because the collector ends the objects of a reference cycle (as a kept traceback makes)
    in any order, and memory has to be freed on a stream that is still there.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._lock = RLock()  # taken again if the collector runs within
        self._holders = 1
        # Non-blocking: no implicit waiting for the legacy default stream, which others use.
        self.handle: Final = int(
            cuda.call("cudaStreamCreateWithFlags", cuda.names.cudaStreamNonBlocking)
        )

    def wait(self) -> None:
        """Wait on the host for everything queued; BackendError if any of it failed."""
        self._cuda.call("cudaStreamSynchronize", self.handle)

    def after(self, event: "Event") -> None:
        """Let later work wait for an event."""
        self._cuda.call("cudaStreamWaitEvent", self.handle, event.handle, 0)

    def hold(self) -> None:
        """Keep it until a `release`."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """End a `hold`."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._cuda.try_call("cudaStreamDestroy", self.handle)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self.release()


class Event:
    """A point in a stream's order: that of `stream` now."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda = cuda
        self.handle: Final = int(
            cuda.call("cudaEventCreateWithFlags", cuda.names.cudaEventDisableTiming)
        )
        self.record(stream)

    def record(self, stream: int) -> None:
        """Move it to what is queued on `stream` now."""
        self._cuda.call("cudaEventRecord", self.handle, stream)

    def wait(self) -> None:
        """Wait on the host."""
        self._cuda.call("cudaEventSynchronize", self.handle)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            self._cuda.try_call("cudaEventDestroy", self.handle)


class Pool:
    """A pool of device memory that keeps what is freed for the next allocation."""

    def __init__(self, cuda: Cuda, device: int, gate: Gate) -> None:
        self.cuda: Final = cuda
        self.gate: Final = gate
        self.lost = False
        """Set when the device was lost: its addresses mean nothing any more."""
        self._lock = RLock()
        self._captures = 0
        self._put_off: list[_Freed] = []
        names = cuda.names
        wanted = names.cudaMemPoolProps()
        wanted.allocType = names.cudaMemAllocationType.cudaMemAllocationTypePinned
        wanted.handleTypes = names.cudaMemAllocationHandleType.cudaMemHandleTypeNone
        wanted.location.type = names.cudaMemLocationType.cudaMemLocationTypeDevice
        wanted.location.id = device
        self._pool = cuda.call("cudaMemPoolCreate", wanted)
        # Otherwise every synchronisation gives free memory back, and every call asks for it again.
        attribute = names.cudaMemPoolAttr.cudaMemPoolAttrReleaseThreshold
        cuda.call("cudaMemPoolSetAttribute", self._pool, attribute, cuda.uint64((1 << 64) - 1))

    def allocate(self, size: int, stream: Stream) -> "Memory":
        """Allocate at least one byte; BackendError if there is no memory left."""
        size = max(size, 1)
        pointer = self.cuda.allocate(size, self._pool, stream.handle)
        if pointer is None:
            self.trim(stream)
            pointer = self.cuda.allocate(size, self._pool, stream.handle)
        if pointer is None:
            raise self.cuda.out_of_memory(size)
        return Memory(self, pointer, size, stream)

    def trim(self, stream: Stream | None = None) -> None:
        """Give memory that nothing uses back to the driver."""
        if stream is not None:  # what is freed on it counts as free only then
            self.cuda.try_call("cudaStreamSynchronize", stream.handle)
        self.cuda.try_call("cudaMemPoolTrimTo", self._pool, 0)

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
        if not self.lost:
            for user in piece.users:
                try:
                    piece.stream.after(Event(self.cuda, user))
                except Exception:  # that stream is gone, and with it all that was queued there
                    continue
            self.cuda.try_call("cudaFreeAsync", piece.pointer, piece.stream.handle)
        for owner in (piece.stream, *piece.users.values()):
            if isinstance(owner, Stream):
                owner.release()

    def __del__(self) -> None:
        if hasattr(self, "_pool") and not self.lost:
            self.cuda.try_call("cudaMemPoolDestroy", self._pool)


class _Freed(NamedTuple):
    pointer: int
    stream: Stream
    users: Mapping[int, object]
    ready: Event | None  # ends with this, not in a capture


class Memory:
    """A piece of device memory; it goes back to its pool with the last tensor in it."""

    def __init__(self, pool: Pool, pointer: int, size: int, stream: Stream) -> None:
        self._pool = pool
        self.pointer: Final = pointer
        self.bytes: Final = size
        self.stream: Final = stream
        stream.hold()
        self._ready: Event | None = None
        self._lock = Lock()
        self._users: dict[int, object] = {}

    def mark_ready(self) -> None:
        """Say that what is queued on its own stream now completes its contents."""
        self._ready = Event(self._pool.cuda, self.stream.handle)

    def use_on(self, stream: int, owner: object) -> None:
        """Let a stream read it from now on; `owner` keeps that stream alive as long as this."""
        if stream == self.stream.handle:
            return
        if self._ready is not None:
            self._pool.cuda.call("cudaStreamWaitEvent", stream, self._ready.handle, 0)
        with self._lock:
            if stream not in self._users:
                self._users[stream] = owner
                if isinstance(owner, Stream):
                    owner.hold()

    @property
    def cuda(self) -> Cuda:
        """The functions it was made with."""
        return self._pool.cuda

    @property
    def lost(self) -> bool:
        """Whether the device was lost since it was allocated."""
        return self._pool.lost

    @property
    def gate(self) -> Gate:
        """What to be inside of when calling CUDA."""
        return self._pool.gate

    def __del__(self) -> None:
        self._pool.free(_Freed(self.pointer, self.stream, self._users, self._ready))


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

    def to_host(self) -> NDArray[Any]:
        """Wait for it and copy it to the host; BackendError if what makes it failed."""
        if self.memory.lost:
            raise BackendError("the GPU was lost since this was computed: compute it again")
        with self.memory.gate.inside():
            cuda = self.memory.cuda
            stream = Stream(cuda)  # that of the memory may be in other hands, or in a capture
            self.memory.use_on(stream.handle, stream)
            host = np.empty(self.shape, self.dtype)
            kind = cuda.names.cudaMemcpyKind.cudaMemcpyDeviceToHost
            target = host.ctypes.data
            cuda.call("cudaMemcpyAsync", target, self.pointer, host.nbytes, kind, stream.handle)
            stream.wait()
        return host

    def __repr__(self) -> str:
        return f"DeviceTensor({self.shape}, {self.dtype}, 0x{self.pointer:x})"


class PinnedMemory:
    """Page-locked host memory that grows: copies from and to it need no second copy."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._pointer = 0
        self._size = 0

    def bytes(self, size: int) -> NDArray[np.uint8]:
        """Give its first `size` bytes, (size,) uint8. Nothing queued may use what it held."""
        if size > self._size:
            self._free()
            self._pointer = int(
                self._cuda.call("cudaHostAlloc", size, self._cuda.names.cudaHostAllocDefault)
            )
            self._size = size
        held = (ctypes.c_uint8 * size).from_address(self._pointer)
        return np.ctypeslib.as_array(held)

    def _free(self) -> None:
        if self._size:
            self._size = 0
            self._cuda.try_call("cudaFreeHost", self._pointer)

    def __del__(self) -> None:
        self._free()


def aligned(size: int) -> int:
    """Round bytes up so that the next tensor in the same memory is aligned."""
    return -(-size // ALIGNMENT) * ALIGNMENT
