"""What a user has without this project: one call of the exporter, and what takes its graph."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import torch

from cris_bench.budget import NO_TIME, Budget, OutOfTime
from cris_bench.contestants.plain import FLOATS, NO_BF16, QUANTISED, PlainExport, name_of
from cris_bench.contestants.quantised import (
    calibration,
    quantise_for_onnxruntime,
    quantise_for_openvino,
)
from cris_bench.exports import Exports
from cris_bench.options import BenchOptions
from cris_bench.record.rows import arithmetic
from cris_bench.record.schema import Absent
from cris_bench.subject import Step, Subject
from cris_deploy.errors import CrisError, one_line
from cris_deploy.execution.backends import BackendName, Compute
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.errors import ExportError
from cris_export.graph.trace import quiet
from cris_train.model import Cris

_GRAPH: Final = "plain.onnx"
_T = TypeVar("_T")


class PlainPeers:
    """Makes the plain export and its int8 forms, each once for all runs, and loads them.

    Args:
        options: What is measured.
        exports: What is kept.
        subject: With the model in PyTorch.
        words: CLIP's tokenizer.
        step: Called with a line before each step.
        budget: For what is to be made.
        absent: Added to: who cannot take part, and why.
    """

    def __init__(
        self,
        options: BenchOptions,
        exports: Exports,
        subject: Subject,
        words: Tokenizer,
        step: Step,
        budget: Budget,
        absent: list[Absent],
    ) -> None:
        self._options, self._exports, self._subject = options, exports, subject
        self._words, self._step, self._budget, self._absent = words, step, budget, absent
        self.graph: Path | None = None
        """The float32 graph; None before it is made."""

    def load(self) -> list[PlainExport]:
        """Make and load whatever can be; what takes minutes to be made comes last."""
        self.graph = graph = self._try("the plain export", self._plain)
        if graph is None:
            return []
        peers = [peer for way in FLOATS for peer in self._load(graph, *way)]
        self._absent.append(Absent(name_of(BackendName.ONNXRUNTIME, Compute.BF16), NO_BF16))
        for backend in () if self._options.quick else dict.fromkeys(name for name, _ in QUANTISED):
            ways = [way for way in QUANTISED if way[0] is backend and self._wanted(way[1])]
            if ways:
                quantise = functools.partial(self._quantised, backend, graph)
                path = self._try(f"{backend} plain export int8", quantise)
                peers += [peer for way in ways if path for peer in self._load(path, *way)]
        return peers

    def _load(self, path: Path, backend: BackendName, compute: Compute) -> list[PlainExport]:
        """One peer; none if it is not wanted, or cannot be had."""
        if not self._wanted(compute):
            return []
        load = functools.partial(PlainExport, path, backend, compute, self._options.threads)
        peer = self._try(name_of(backend, compute), load)
        return [] if peer is None else [peer]

    def _wanted(self, compute: Compute) -> bool:
        wanted = self._options.computes
        return not wanted or arithmetic(compute) in map(arithmetic, wanted)

    def _try(self, name: str, make: Callable[[], _T]) -> _T | None:
        self._step(f"loading {name}")
        try:
            with self._budget.cut():
                return make()
        except OutOfTime:
            self._absent.append(Absent(name, NO_TIME))
        except CrisError as error:
            self._absent.append(Absent(name, str(error)))
        return None

    def _plain(self) -> Path:
        model, weights = self._subject.model, self._subject.sha256
        assert model is not None
        folder = self._exports.get(lambda into: export_plain(model, 1, into / _GRAPH), weights)
        return folder / _GRAPH

    def _quantised(self, backend: BackendName, graph: Path) -> Path:
        if backend is BackendName.OPENVINO:
            quantise, name = quantise_for_openvino, "plain.xml"
        else:
            quantise, name = quantise_for_onnxruntime, _GRAPH

        def make(folder: Path) -> None:
            self._step(f"quantising the plain export for {backend}")
            feeds = calibration(self._words, self._subject.facts.input_size)
            quantise(graph, feeds, folder / name)

        return self._exports.get(make, self._subject.sha256, backend.value) / name


def export_plain(model: Cris, batch: int, path: Path) -> None:
    """Export the unmodified model, whole, for a fixed batch, with its weights beside the graph.

    Raises:
        ExportError: the exporter failed.
    """
    config = model.config
    image = torch.zeros(batch, 3, config.input_size, config.input_size)
    tokens = torch.zeros(batch, config.word_len, dtype=torch.int64)
    try:
        with quiet():
            torch.onnx.export(
                model,
                (image, tokens),
                path,
                dynamo=True,
                input_names=["image", "tokens"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever went wrong in types of its own
        raise ExportError(
            f"the plain export failed ({one_line(error)}): --no-peers leaves it out"
        ) from error
