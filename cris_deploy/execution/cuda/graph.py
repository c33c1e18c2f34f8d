"""A bundle's graph on a GPU: bound once per lane and set of shapes to buffers that stay in place.

A run fills the input buffers, launches, and takes what it needs out of the output buffers. Fixed
addresses are what a captured CUDA graph needs; the copies in and out are the same ones that joining
and splitting a batch takes anyway.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cris_deploy.bundle.manifest import GraphSpec, TensorSpec
from cris_deploy.errors import BackendError
from cris_deploy.execution.cuda.device import CudaDevice, Lane
from cris_deploy.execution.cuda.memory import DeviceTensor, aligned

# Rows of a batch that share one allocation: fewer copies to split and join a batch, and a cached
# row keeps at most this many alive.
_GROUP: Final = 8

Sizes = dict[str, int]
"""Rows by the name of the free dimension they fill."""


class Program(Protocol):
    """A graph bound to input and output buffers on a lane."""

    @property
    def outputs(self) -> Mapping[str, DeviceTensor]:
        """The output buffers."""

    def launch(self) -> None:
        """Queue a run on the lane's stream; BackendError if that fails."""

    def close(self) -> None:
        """End it."""


class Binder(Protocol):
    """What a backend gives to make a graph run on a GPU."""

    def limit(self, shared: Collection[str]) -> int:
        """Give the most rows of a run in which the inputs named in `shared` have one row each."""

    def bucket(self, sizes: Sizes) -> Sizes:
        """Give the sizes to run in, no smaller than those asked for."""

    def bind(self, lane: Lane, sizes: Sizes, inputs: Mapping[str, DeviceTensor]) -> Program:
        """Bind a program to input buffers; BackendError if that fails."""


class BoundGraph:
    """A bound graph with its buffers. Valid while its lane is held."""

    def __init__(self, lane: Lane, inputs: dict[str, DeviceTensor], program: Program) -> None:
        self._lane = lane
        self._program = program
        self.inputs: Final = inputs

    @property
    def outputs(self) -> Mapping[str, DeviceTensor]:
        """The output buffers: what the launch before the next one computes."""
        return self._program.outputs

    def fill(self, name: str, rows: Sequence[DeviceTensor]) -> None:
        """Queue copies of rows, each (1, ...), into an input; neighbours go in one copy."""
        target = self.inputs[name]
        at, start, size = target.pointer, 0, 0
        memory = None
        for row in rows:
            if row.dtype != target.dtype or row.shape[1:] != target.shape[1:]:
                raise BackendError(
                    f"input {name} is {target.dtype} {target.shape[1:]}, and was given "
                    f"{row.dtype} {row.shape[1:]}: features of another bundle?"
                )
            self._lane.use(row)
            # Neighbours by chance lie in allocations of their own.
            if row.memory is not memory or row.pointer != start + size:
                if size:
                    self._lane.copy(start, at, size)
                at, start, size, memory = at + size, row.pointer, 0, row.memory
            size += row.nbytes
        if size:
            self._lane.copy(start, at, size)

    def launch(self) -> None:
        """Queue a run."""
        self._program.launch()

    def close(self) -> None:
        """End it; nothing that uses it is queued any more."""
        self._program.close()
        self.inputs.clear()  # an error that is kept keeps this, and must not keep its memory


class DeviceGraph:
    """A graph of a bundle on a GPU. May be used from many threads; see `backends.Graph`."""

    def __init__(self, device: CudaDevice, spec: GraphSpec, binder: Binder) -> None:
        self.device: Final = device
        self._binder = binder
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        self._symbols = {tensor.name: _symbol(tensor, spec.file) for tensor in spec.inputs}

    def limit(self, shared: Collection[str] = ()) -> int:
        """Give the most rows of one run, if those inputs have one row for all."""
        return self._binder.limit(shared)

    def bound(self, lane: Lane, rows: Mapping[str, int]) -> BoundGraph:
        """Give the bound graph for inputs of so many rows; its buffers may have more."""
        sizes: Sizes = {}
        for name, symbol in self._symbols.items():
            sizes[symbol] = max(sizes.get(symbol, 1), rows[name])
        sizes = self._binder.bucket(sizes)

        def make() -> BoundGraph:
            inputs = {
                name: lane.empty(
                    (sizes[self._symbols[name]], *tensor.shape[1:]),  # type: ignore[arg-type]
                    np.dtype(tensor.dtype.value),
                )
                for name, tensor in self._inputs.items()
            }
            return BoundGraph(lane, inputs, self._binder.bind(lane, sizes, inputs))

        bound: BoundGraph = lane.kept((self, *sorted(sizes.items())), make)
        return bound

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run from host to host, in parts if there are more rows than one run takes."""
        counts = {name: len(inputs[name]) for name in self._inputs}
        count = max(counts.values())
        shared = [name for name, rows in counts.items() if rows == 1 < count]
        limit = self.limit(shared)
        parts = [
            self._run_part({n: v if n in shared else v[i : i + limit] for n, v in inputs.items()})
            for i in range(0, count, limit)
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_part(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        count = max(len(value) for value in inputs.values())
        with self.device.lane() as lane:
            bound = self.bound(lane, {name: len(value) for name, value in inputs.items()})
            for name, target in bound.inputs.items():
                value = np.ascontiguousarray(inputs[name])
                if value.dtype != target.dtype or value.shape[1:] != target.shape[1:]:
                    raise BackendError(
                        f"input {name} is {value.dtype} {value.shape}, and must be "
                        f"{target.dtype} {('n', *target.shape[1:])}"
                    )
                lane.upload(value, target)
            bound.launch()
            tensors = [tensor.rows(0, count) for tensor in bound.outputs.values()]
            arrays = lane.download(*tensors)
            return {name: value.copy() for name, value in zip(bound.outputs, arrays, strict=True)}


class Captured:
    """A CUDA graph: what `enqueue` queues on the lane's stream, launched in one call."""

    def __init__(self, lane: Lane, enqueue: Callable[[], None]) -> None:
        self._cuda = cuda = lane.device.cuda
        self._stream = lane.stream.core
        builder = cuda.run(self._stream.create_graph_builder)
        try:
            with lane.pool.capture():
                # Other threads may allocate meanwhile.
                cuda.run(builder.begin_building, "thread_local")
                enqueue()
                cuda.run(builder.end_building)
            self._graph = cuda.run(builder.complete)
        finally:
            builder.close()  # ends a capture that failed

    def launch(self) -> None:
        """Queue it."""
        self._cuda.run(self._graph.launch, self._stream)

    def close(self) -> None:
        """End it; it is not queued any more."""
        self._graph.close()


def take_rows(
    lane: Lane, outputs: Mapping[str, DeviceTensor], count: int
) -> list[dict[str, DeviceTensor]]:
    """Copy the first rows of output buffers out: for each row its tensors (1, ...) by name."""
    rows: list[dict[str, DeviceTensor]] = []
    for start in range(0, count, _GROUP):
        stop = min(start + _GROUP, count)
        parts = {name: tensor.rows(start, stop) for name, tensor in outputs.items()}
        memory = lane.allocate(sum(aligned(part.nbytes) for part in parts.values()))
        copies, offset = {}, 0
        for name, part in parts.items():
            copies[name] = DeviceTensor(memory, offset, part.shape, part.dtype)
            lane.copy(part.pointer, copies[name].pointer, part.nbytes)
            offset += aligned(part.nbytes)
        memory.mark_ready()
        rows += [
            {name: tensor.rows(row, row + 1) for name, tensor in copies.items()}
            for row in range(stop - start)
        ]
    return rows


def _symbol(tensor: TensorSpec, file: str) -> str:
    first, *rest = tensor.shape
    if not isinstance(first, str) or any(isinstance(side, str) for side in rest):
        raise BackendError(
            f"{file}: input {tensor.name} has the shape {tensor.shape}, and on a GPU exactly the "
            "first dimension is free: export again with this version"
        )
    return first
