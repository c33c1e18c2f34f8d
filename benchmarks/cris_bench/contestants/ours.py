"""This project's engine as a contestant: every installed backend in every arithmetic."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from cris_bench.contestants.contestant import Bound, Identity
from cris_bench.place import Place
from cris_bench.record.rows import Role
from cris_bench.record.schema import Absent
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.bundle.reading import Bundle
from cris_deploy.engine import Engine
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import BackendName, Compute, Device, load_graphs, status
from cris_deploy.execution.steps import Picture
from cris_deploy.results.scene import Scene, segment_prompts


@dataclass(frozen=True)
class Way:
    """A way to run a bundle that this installation has.

    Attributes:
        bundle: The bundle's name in the record.
        path: Its folder.
        backend: Runtime.
        place: Where.
        compute: Arithmetic.
        graphs: Whether a GPU's work is captured in CUDA graphs.
    """

    bundle: str
    path: Path
    backend: BackendName
    place: Place
    compute: Compute
    graphs: bool = True

    @property
    def name(self) -> str:
        """The contestant's name in the record."""
        return f"{self.backend} {self.compute}{'' if self.graphs else ', no graphs'}"

    @property
    def identity(self) -> Identity:
        """Who it is in the record."""
        return Identity(self.name, Role.ENGINE, self.place, self.compute.value, self.bundle)

    def open(self, threads: int | None, streams: int = 1) -> Engine:
        """Load the bundle this way; it was verified when it was opened first."""
        return Engine(
            self.path,
            backend=self.backend,
            device=str(self.place),
            precision=self.compute,
            threads=threads,
            streams=streams,
            cuda_graphs=self.graphs,
            verify=False,
        )


class Ours:
    """One engine, its stages clocked.

    Args:
        way: What is loaded.
        threads: CPU threads; None for all.
    """

    single: Final = False

    def __init__(self, way: Way, threads: int | None) -> None:
        self.way = way
        self.engine = way.open(threads)
        self.identity = way.identity
        self._profile: dict[GraphName, float] = {}

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Bind; see `Network`."""
        # The engine's own graphs: a second set of them would be another contestant, with other
        # memory and other caches.
        graphs = self.engine.pipeline.stages
        if self.way.place.on_gpu:
            from cris_bench.contestants.cuda import bind

            return bind(graphs, image, tokens, self._profile)

        def stage(name: GraphName, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
            start = time.perf_counter()
            outputs = graphs[name].run(given)
            self._profile[name] = time.perf_counter() - start
            return outputs

        def run() -> NDArray[Any]:
            features = stage(GraphName.IMAGE_ENCODER, {"image": image})
            text = stage(GraphName.TEXT_ENCODER, {"tokens": tokens})
            return stage(GraphName.MASK_DECODER, {**features, **text})["logits"]

        return Bound(run, run)

    def stage_seconds(self) -> dict[GraphName, float]:
        """How long each stage took in the last pass of the network."""
        return dict(self._profile)

    def overhead(self, picture: Picture, expression: str) -> float:
        """Seconds that `Engine.segment` takes behind the letterbox, beyond its stages' runs.

        These are clocked by the engine itself, with normalisation and mask step.
        """
        stages: list[float] = []
        pipeline = self.engine.pipeline
        pipeline.on_stage = lambda _, seconds, __: stages.append(seconds)
        try:
            start = time.perf_counter()
            prompts = pipeline.read_expressions(expression)
            scene = Scene(pipeline, pipeline.encode_pictures([picture])[0])
            segment_prompts(scene, prompts)
            whole = time.perf_counter() - start
        finally:
            pipeline.on_stage = None
        return whole - sum(stages)

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()


def find_ways(
    bundles: Mapping[str, Path],
    place: Place,
    backends: Sequence[BackendName],
    computes: Mapping[str, Sequence[Compute]],
    *,
    strict: bool,
) -> tuple[list[Way], list[Absent]]:
    """Find out what can run the bundles here, and what is not installed.

    Args:
        bundles: Name -> folder, already verified.
        place: Where.
        backends: Those that must be had; empty for all that can.
        computes: Name of a bundle -> arithmetic to run it in.
        strict: Whether each arithmetic was asked for and must be had from some backend.

    Raises:
        BackendError: what was asked for cannot be had, or nothing can.
        BundleError: a bundle is damaged.
    """
    opened = {name: Bundle.open(path, verify=False) for name, path in bundles.items()}
    ways: list[Way] = []
    refusals: dict[Compute, BackendError] = {}
    for backend in backends or _usable(place.device):
        before, refusal = len(ways), None
        for name, bundle in opened.items():
            for compute in computes[name]:
                try:
                    load_graphs(bundle, (), backend, str(place), compute)  # asks, and loads nothing
                except BackendError as error:
                    refusal = refusals[compute] = error
                else:
                    ways += [
                        Way(name, bundle.path, backend, place, compute, graphs)
                        for graphs in ((True, False) if place.on_gpu else (True,))
                    ]
        if backends and len(ways) == before and refusal is not None:
            raise refusal
    had = {way.compute for way in ways}
    for compute, refusal in refusals.items():
        if strict and compute not in had:
            raise refusal
    if not ways:
        raise BackendError(
            f"no backend here can compute on {place}: run pip install "
            f"'cris-deploy[{'tensorrt' if place.on_gpu else 'cpu,openvino'}]'"
        )
    ways.sort(key=lambda way: list(bundles).index(way.bundle))
    return ways, [] if backends else list(_absent(place.device))


def _usable(device: Device) -> list[BackendName]:
    return [name for name in BackendName if device in status(name).devices]


def _absent(device: Device) -> Iterator[Absent]:
    for name in BackendName:
        found = status(name)
        if found.version is None:
            yield Absent(name.value, found.install)
        elif device is Device.CUDA and device not in found.devices and found.problem is not None:
            yield Absent(f"{name} ({found.problem})", found.install)
