"""Opens everyone who takes part, and says who cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cris_bench.budget import Budget
from cris_bench.contestants.contestant import Network
from cris_bench.contestants.ours import Ours, Way
from cris_bench.contestants.plain import FLOATS, name_of
from cris_bench.contestants.plain_export import PlainPeers
from cris_bench.contestants.pytorch import COMPILED, ON_CPU, ON_CUDA, Eager, Variant, peers
from cris_bench.exports import Exports
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.record.schema import Absent
from cris_bench.scopes.child import Kind, Task
from cris_bench.scopes.entries import Field
from cris_bench.scopes.memory import Alone
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
        subject: What is run.
        ways: How this project's engines run it.
        eager: The baseline; None without the model.
        peers: Other ways to run the model, the most telling first.
        ours: The engines, in the order of the ways.
        plain: The plain export's graph; None without one.
        absent: Who is not installed, cannot run or had no time; filled race by race.
    """

    options: BenchOptions
    place: Place
    subject: Subject
    ways: tuple[Way, ...]
    eager: Eager | None
    peers: tuple[Network, ...]
    ours: tuple[Ours, ...]
    plain: Path | None
    absent: list[Absent]

    def field(self) -> Field:
        """Everyone, for a race."""
        facts, vocabulary = self.subject.facts, self.subject.vocabulary
        return Field(
            self.eager,
            self.peers,
            self.ours,
            facts.input_size,
            facts.word_len,
            vocabulary,
            self.absent,
        )

    def alone(self) -> list[Alone]:
        """Everyone in floating point for a process of its own, the baseline first."""
        subject, found = self.subject, []
        if self.eager is not None and subject.model is not None:
            weights = sum(value.numel() for value in subject.model.parameters()) * _FLOAT32
            kinds = [(Kind.EAGER, self.eager.identity, subject.checkpoint)]
            for peer in self.peers:
                if peer.identity.name == COMPILED.name:
                    kinds.append((Kind.COMPILED, peer.identity, subject.checkpoint))
                for backend, compute in FLOATS:
                    if peer.identity.name == name_of(backend, compute):
                        kinds.append((Kind(backend.value), peer.identity, self.plain))
            found = [
                Alone(who, self._task(kind, path, who.compute), weights)
                for kind, who, path in kinds
            ]
        for way in self.ways:
            _, stored = subject.work[way.bundle][GraphName.FULL]
            task = self._task(Kind.ENGINE, way.path, way.compute.value, way.backend)
            found.append(Alone(way.identity, task, stored))
        return found

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
    exports: Exports,
    folder: Path,
    subject: Subject,
    ways: list[Way],
    step: Step,
    budget: Budget,
) -> Iterator[Starters]:
    """Load the model, the engines and their peers; close the engines in the end.

    Raises:
        BackendError: an engine that was asked for by name cannot be loaded, or none can.
    """
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
        eager, plain = None, None
        others: list[Network] = []
        if subject.model is not None:
            model = subject.model.to(str(place))
            write_tokenizer(folder / "tokenizer.json")
            words = Tokenizer.from_file(folder / "tokenizer.json", subject.facts.word_len)
            eager = Eager(model, words, place)
            if options.peers and not place.on_gpu:
                found = PlainPeers(options, exports, subject, words, step, budget, absent)
                others += found.load()
                plain = found.graph
            if options.peers:
                others += peers(model, _variants(options, place), place)
        here = tuple(engine.way for engine in ours)
        yield Starters(
            options, place, subject, here, eager, tuple(others), tuple(ours), plain, absent
        )


def _variants(options: BenchOptions, place: Place) -> list[Variant]:
    """PyTorch's ways; those that compile take minutes."""
    everyone = ON_CUDA if place.on_gpu else ON_CPU
    return [one for one in everyone if not options.quick or one.mode is None]
