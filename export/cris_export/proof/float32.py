"""The float32 stages as files beside the bundle, while an export needs something to hold against.

They are what float16 is decided on, and what a failed export's layers are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import onnx
import onnx_ir as ir

from cris_deploy.bundle.manifest import GraphName
from cris_deploy.errors import CrisError, InputError
from cris_deploy.pixels import image as images
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.graph.weights import WeightFile
from cris_export.precision.ranges import Feed, GraphMeasures, measure, open_session
from cris_export.proof.samples import SampleSource

T = TypeVar("T")

# A pair costs about a second at full size, and more than these tell little more.
MOST_PAIRS = 16


class Pair(NamedTuple):
    """One sample: the places of its image and its expression among the encoders' feeds."""

    image: int
    tokens: int


@dataclass(frozen=True)
class Reference:
    """The three stages in float32, and samples of what each of them reads.

    Attributes:
        folder: Holds a graph per stage, and their weights.
        feeds: Stage -> its inputs, by name; an image or expression that recurs is there once.
        pairs: The samples, in the order of the mask decoder's feeds.
    """

    folder: Path
    feeds: Mapping[GraphName, Sequence[Feed]]
    pairs: Sequence[Pair]

    def graph(self, stage: GraphName) -> Path:
        """The stage's ONNX file."""
        return graph_file(self.folder, stage)


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of the items, at even distances."""
    return items[:: -(-len(items) // most)]


def graph_file(folder: Path, graph: GraphName) -> Path:
    """Where an export writes a graph."""
    return folder / f"{graph}.onnx"


def write_reference(
    folder: Path,
    models: Mapping[str, ir.Model],
    sources: Sequence[SampleSource],
    tokenizer: Tokenizer,
    size: int,
    flag: str = "--samples",
    most: int = MOST_PAIRS,
) -> Reference:
    """Write the float32 stages and run them on samples.

    Args:
        folder: A new folder.
        models: Stage name -> graph; its large weights lie in the folder from now on.
        sources: Pairs to run; of many, `most` of them, spread evenly.
        tokenizer: The model's.
        size: Input size in pixels.
        flag: What named the pairs, for errors.
        most: Pairs to run at most.

    Raises:
        InputError: an image or expression is unusable (the message names the sample).
        ExportError: ONNX Runtime rejects a graph.
    """
    folder.mkdir()
    with WeightFile(folder) as weights:
        for name, model in models.items():
            weights.externalise(model)
            onnx.save(ir.to_proto(model), graph_file(folder, GraphName(name)))
    return run_stages(folder, sources, tokenizer, size, flag, most)


def run_stages(
    folder: Path,
    sources: Sequence[SampleSource],
    tokenizer: Tokenizer,
    size: int,
    flag: str = "--samples",
    most: int = MOST_PAIRS,
) -> Reference:
    """Run float32 stages that lie in a folder on samples; see `write_reference`."""
    pixels: dict[Path, Feed] = {}
    tokens: dict[str, Feed] = {}
    sources = spread(sources, most)
    for source in sources:
        try:
            if source.image not in pixels:
                square = images.letterbox(images.decode(source.image), size)
                pixels[source.image] = {"image": images.normalise(square)[None]}
            tokens[source.expression] = {"tokens": tokenizer.encode([source.expression]).tokens}
        except CrisError as error:
            raise InputError(f"{flag}: {source.image}: {error}") from error
    scenes = _run(folder, GraphName.IMAGE_ENCODER, pixels)
    texts = _run(folder, GraphName.TEXT_ENCODER, tokens)
    return Reference(
        folder,
        {
            GraphName.IMAGE_ENCODER: list(pixels.values()),
            GraphName.TEXT_ENCODER: list(tokens.values()),
            GraphName.MASK_DECODER: [{**scenes[s.image], **texts[s.expression]} for s in sources],
        },
        [Pair(list(pixels).index(s.image), list(tokens).index(s.expression)) for s in sources],
    )


def measure_stages(reference: Reference) -> dict[str, GraphMeasures]:
    """Measure every stage on the reference's samples.

    Raises:
        ExportError: ONNX Runtime rejects a graph.
    """
    return {
        stage: measure(reference.graph(stage), feeds) for stage, feeds in reference.feeds.items()
    }


def _run(folder: Path, stage: GraphName, feeds: Mapping[Any, Feed]) -> dict[Any, Feed]:
    path = graph_file(folder, stage)
    session = open_session(onnx.load(path, load_external_data=False), folder)
    names = [value.name for value in session.get_outputs()]
    return {
        key: dict(zip(names, session.run(names, dict(feed)), strict=True))
        for key, feed in feeds.items()
    }
