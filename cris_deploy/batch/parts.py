"""What was done: Parquet files that appear whole, and what they say is done."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cris_deploy import documents
from cris_deploy.batch.places import Place
from cris_deploy.batch.reading import Asked
from cris_deploy.engine import Engine
from cris_deploy.errors import CrisError, InputError, one_line
from cris_deploy.results.segmentation import Segmentation

SCHEMA: Final = pa.schema(
    {
        "source": pa.string(),  # what it is in the input; see sources.py
        "image": pa.string(),  # path of the picture; null if its bytes lay in the input
        "expression": pa.string(),
        "rle": pa.struct({"size": pa.list_(pa.int32()), "counts": pa.string()}),
        "box": pa.list_(pa.int32()),  # x0, y0, x1, y1; null for an empty mask
        "area": pa.int64(),
        "score": pa.float64(),
        "confidence": pa.float64(),
        "truncated": pa.bool_(),
        "error": pa.string(),  # null if there is none; what is between is null otherwise
    }
)
TRIES: Final = 3
"""Times that a portion is begun: what is in it may be what kills workers."""
_FACTS: Final = "_job.json"  # what reads a folder of Parquet files passes over such a name


@dataclass(frozen=True, slots=True)
class Facts:
    """What all rows of an output have in common, and has to be the same when it is resumed.

    `bundle` is the SHA-256 of the manifest.
    """

    bundle: str
    image: str
    expressions: tuple[str, ...]
    threshold: float | None
    max_pixels: int
    backend: str
    precision: str


@dataclass(frozen=True, slots=True)
class Done:
    """What an output has: rows, how many of them are errors, and the sources."""

    rows: int
    errors: int
    sources: frozenset[str]


class Output:
    """A folder of parts, by its path or URL."""

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self._folder: Final = Place.of("output", text)

    def claim(self, facts: Facts) -> None:
        """Make the folder, before any worker writes, and note what it is of.

        Raises InputError if it cannot be made, or has parts of something else.
        """
        place = self._folder.within(_FACTS)
        with self._told():
            self._folder.make()
            if not place.kind() or not self._parts():
                place.write_whole(documents.to_json(facts).encode())
                return
            noted = documents.read(Facts, place.read(), f"{self.text}/{_FACTS}", error=InputError)
        for field in fields(Facts):
            was, now = getattr(noted, field.name), getattr(facts, field.name)
            if was != now:
                raise InputError(
                    f"output {self.text} was begun with {field.name} {was!r}, now it is {now!r}: "
                    "give another folder"
                )

    def done(self) -> Done:
        """Read what is done. Raises InputError if a source is in two parts."""
        sources: Counter[str] = Counter()
        rows = errors = 0
        with self._told():
            for name in self._parts():
                content = io.BytesIO(self._folder.within(name).read())
                table = pq.read_table(content, columns=["source", "error"])
                sources.update(set(table["source"].to_pylist()))
                rows += len(table)
                errors += len(table) - table["error"].null_count
        if twice := [source for source, count in sources.items() if count > 1]:
            raise InputError(
                f"output {self.text} has {twice[0]} in two files: did two jobs write into it?"
            )
        return Done(rows, errors, frozenset(sources))

    def has(self, name: str) -> bool:
        """Whether a part is there. Raises InputError if that cannot be said."""
        with self._told():
            return bool(self._folder.within(name).kind())

    def begin(self, name: str) -> bool:
        """Note that a part is begun; False if it was so often that it should be given up."""
        with self._told():
            for mark in self._marks(name):
                if not mark.kind():
                    mark.write_whole(b"")
                    return True
        return False

    def write(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write a part, whole or not at all. Raises InputError if it cannot be written."""
        content = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), content)
        with self._told():
            self._folder.within(name).write_whole(content.getvalue())
            for mark in self._marks(name):
                mark.remove()

    def _parts(self) -> list[str]:
        return [name for name in self._folder.files() if name.startswith("part-")]

    def _marks(self, name: str) -> list[Place]:
        return [self._folder.within(f".{name}.{number}.begun") for number in range(TRIES)]

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"output {self.text} cannot be used: {error}") from None


def segment(
    engine: Engine, asked: Sequence[Asked], threshold: float | None = None
) -> Iterator[dict[str, Any]]:
    """Segment what was read: rows of `SCHEMA`, one per expression, or one for what is wrong."""
    pairs = ((one.image, expression) for one in asked for expression in one.expressions)
    with closing(engine.stream(pairs, on_error="yield", threshold=threshold)) as results:
        for one in asked:
            place = {"source": one.source, "image": one.path}
            if one.problem is not None:
                yield {**place, "error": one.problem}
            for expression in one.expressions:
                yield {**place, "expression": expression, **_described(next(results))}


def _described(result: Segmentation | CrisError) -> dict[str, Any]:
    if isinstance(result, CrisError):
        return {"error": one_line(result)}
    return {
        "rle": result.rle(),
        "box": result.box,
        "area": result.area,
        "score": result.score,
        "confidence": result.confidence,
        "truncated": result.truncated,
    }
