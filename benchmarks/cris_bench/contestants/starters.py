"""Opens everyone who takes part, and says who cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cris_bench.contestants.contestant import Network
from cris_bench.contestants.ours import Ours, Way
from cris_bench.contestants.plain import OnnxRuntime, plain_peers
from cris_bench.contestants.plain_export import export_plain
from cris_bench.contestants.pytorch import COMPILED, ON_CUDA, Eager, Peer
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.record.schema import Absent
from cris_bench.scopes.child import Kind, Task
from cris_bench.scopes.memory import Alone
from cris_bench.scopes.races import Field, Shape
from cris_bench.subject import Step, Subject
from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import BackendName, Device, status
from cris_deploy.machine.gpu import require_gpu
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.graph.tokenizer import write_tokenizer

_FLOAT32 = 4


def choose_place(options: BenchOptions) -> Place:
    """Where to measure.

    Raises:
        BackendError: a GPU was asked for and PyTorch sees none, or not that one.
    """
    sees = torch.cuda.is_available()
    place = Place.parse(options.device)
    if place is None:
        usable = sees and any(Device.CUDA in status(name).devices for name in BackendName)
        return Place(Device.CUDA if usable else Device.CPU)
    if place.on_gpu and not sees:
        raise BackendError(
            f"--device {place}: this PyTorch sees no GPU; install its CUDA build and a driver, or "
            "drop the option"
        )
    if place.on_gpu:
        require_gpu(place.index)
    return place


@dataclass(frozen=True)
class Starters:
    """Who takes part.

    Attributes:
        options: What is measured.
        place: Where.
        folder: For the plain exports.
        subject: What is run.
        ways: How this project's engines run it.
        eager: The baseline; None without the model.
        others: The same model in PyTorch's other ways; none where they were left out.
        ours: The engines, in the order of the ways.
        absent: Peers that are not installed or cannot run; filled race by race.
    """

    options: BenchOptions
    place: Place
    folder: Path
    subject: Subject
    ways: tuple[Way, ...]
    eager: Eager | None
    others: tuple[Peer, ...]
    ours: tuple[Ours, ...]
    absent: list[Absent]

    def field(self, shape: Shape, step: Step) -> Field:
        """Everyone for a race: peers have a graph for each batch, and take one expression."""
        peers: list[Network] = list(self.others)
        if self._plain and shape.expressions == 1:
            found, missing = plain_peers(self.plain_export(shape.batch, step), self.options.threads)
            peers += found
            self.absent.extend(entry for entry in missing if entry not in self.absent)
        if shape.expressions > 1:
            peers = []
        facts = self.subject.facts
        return Field(
            self.eager,
            peers,
            self.ours,
            facts.input_size,
            facts.word_len,
            self.subject.vocabulary,
            self.absent,
        )

    def plain_export(self, batch: int, step: Step) -> Path:
        """The unmodified model's ONNX file, exported when it is first wanted."""
        assert self.subject.model is not None
        path = self.folder / f"plain{batch}.onnx"
        if not path.exists():
            step(f"one call of the exporter, batch {batch}")
            export_plain(self.subject.model, batch, path)
        return path

    def alone(self, step: Step) -> list[Alone]:
        """Everyone for a process of its own, the baseline first."""
        subject, found = self.subject, []
        if self.eager is not None and subject.model is not None:
            weights = sum(value.numel() for value in subject.model.parameters()) * _FLOAT32
            kinds = [(Kind.EAGER, self.eager.identity)]
            kinds += [
                (Kind.COMPILED, peer.identity)
                for peer in self.others
                if peer.identity.name == COMPILED.name
            ]
            found = [
                Alone(who, self._task(kind, subject.checkpoint, who.compute), weights)
                for kind, who in kinds
            ]
            if self._plain:
                path = self.plain_export(1, step)
                peers, _ = plain_peers(path, self.options.threads)
                for peer in peers:
                    kind = Kind.ONNXRUNTIME if isinstance(peer, OnnxRuntime) else Kind.OPENVINO
                    who = peer.identity
                    found.append(Alone(who, self._task(kind, path, who.compute), weights))
        for way in self.ways:
            _, stored = subject.work[way.bundle][GraphName.FULL]
            task = self._task(Kind.ENGINE, way.path, way.compute.value, way.backend)
            found.append(Alone(way.identity, task, stored))
        return found

    @property
    def _plain(self) -> bool:
        return self.options.peers and self.eager is not None and not self.place.on_gpu

    def _task(self, kind: Kind, path: Path | None, compute: str, backend: str = "") -> Task:
        options, facts = self.options, self.subject.facts
        return Task(
            kind=kind,
            path=str(path),
            place=self.place,
            threads=options.threads,
            backend=backend,
            compute=compute,
            height=options.image_height,
            width=options.image_width,
            input_size=facts.input_size,
            word_len=facts.word_len,
            vocabulary=self.subject.vocabulary,
        )


@contextmanager
def open_starters(
    options: BenchOptions,
    place: Place,
    folder: Path,
    subject: Subject,
    ways: list[Way],
    step: Step,
) -> Iterator[Starters]:
    """Load the model and the engines; close the engines in the end.

    Raises:
        BackendError: an engine that was asked for by name cannot be loaded, or none can.
    """
    eager, others = None, []
    if subject.model is not None:
        model = subject.model.to(str(place))
        write_tokenizer(folder / "tokenizer.json")
        words = Tokenizer.from_file(folder / "tokenizer.json", subject.facts.word_len)
        eager = Eager(model, words, place)
        if options.peers and not options.quick:
            variants = (COMPILED, *ON_CUDA) if place.on_gpu else (COMPILED,)
            others = [Peer(model, variant, place) for variant in variants]
    with ExitStack() as stack:
        ours, absent = [], []
        for way in ways:
            step(f"loading {way.name}")
            try:
                engine = Ours(way, options.threads)
            except BackendError as error:
                if options.backends:  # asked for by name
                    raise
                absent.append(Absent(way.name, str(error)))
                continue
            stack.callback(engine.close)
            ours.append(engine)
        if not ours:
            raise BackendError(
                f"nothing here can run the bundles on {place}: "
                + "; ".join(f"{entry.name}: {entry.install}" for entry in absent)
            )
        here = tuple(engine.way for engine in ours)
        yield Starters(
            options, place, folder, subject, here, eager, tuple(others), tuple(ours), absent
        )
