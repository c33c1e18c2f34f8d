"""What there is to do: pictures and expressions, in portions that are done together.

A source is a picture of the input, named relative to it: `street/a.jpg`, or `pairs.parquet#17` for
a row, counted from 0.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cris_deploy.batch.places import Place
from cris_deploy.errors import InputError
from cris_deploy.pixels.image import SUFFIXES

PORTION: Final = 64
"""Pictures of a portion. They are held in memory, and done again if the worker is lost."""
EXPRESSIONS: Final = ("expression", "expressions")
"""Columns of a Parquet file, of which it has one: text, or a list of text."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Portion:
    """Sources that are done together, and written to one file.

    Attributes:
        sources: Their names.
        file: The Parquet file they are rows of, relative to the input; None for pictures.
        group: The row group they are in.
        rows: Which rows of that group, ascending.
    """

    sources: tuple[str, ...]
    file: str | None = None
    group: int = 0
    rows: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Name of its file: the same for the same sources."""
        digest = hashlib.sha256("\n".join(self.sources).encode()).hexdigest()
        return f"part-{digest[:24]}.parquet"


class Input:
    """A folder of pictures or of Parquet files, or one such file.

    Args:
        text: Its path or URL.
        expressions: For all pictures; empty if the rows have their own.

    Raises:
        InputError: there is nothing to do in it, or not in this form.
    """

    def __init__(self, text: str, expressions: Sequence[str]) -> None:
        self.text: Final = text
        self.expressions: Final = tuple(expressions)
        place = Place.of("IMAGE", text)
        try:
            kind = place.kind()
            if kind == fs.FileType.NotFound:
                raise InputError(f"IMAGE {text} does not exist")
            if kind == fs.FileType.File:
                folder, _, name = place.path.rpartition("/")
                self.folder, names = Place(place.filesystem, folder), [name]
            else:
                self.folder, names = place, place.files()
        except OSError as error:
            raise InputError(f"IMAGE {text} cannot be read: {error}") from None
        self._tables: Final = [name for name in names if name.lower().endswith(".parquet")]
        self._pictures: Final = [
            name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES
        ]
        if bool(self._tables) == bool(self._pictures):
            both = "both pictures and" if self._tables else "neither pictures nor"
            raise InputError(f"IMAGE {text} has {both} Parquet files in it: give one of them")
        if self._pictures and not expressions:
            raise InputError("EXPRESSION is missing: say what to find, such as 'the man in red'")

    def portions(self, done: Container[str]) -> Iterator[Portion]:
        """Give what is not done, in an order that is always the same.

        Raises InputError for a Parquet file that cannot be read, or whose columns are others.
        """
        left = (name for name in self._pictures if name not in done)
        yield from (Portion(sources) for sources in _chunks(left))
        for name in self._tables:
            with opened(self.folder.within(name), name) as table:
                self._check(name, table.schema_arrow)
                groups, start = table.metadata, 0
                for group in range(groups.num_row_groups):
                    count = groups.row_group(group).num_rows
                    rows = [row for row in range(count) if f"{name}#{start + row}" not in done]
                    for chosen in _chunks(rows):
                        sources = tuple(f"{name}#{start + row}" for row in chosen)
                        yield Portion(sources, name, group, chosen)
                    start += count

    def _check(self, name: str, schema: pa.Schema) -> None:
        own = [column for column in EXPRESSIONS if column in schema.names]
        if "image" not in schema.names:
            raise InputError(f"{name} has no column image: it holds bytes of files, or paths")
        if self.expressions and own:
            raise InputError(f"EXPRESSION is given, but {name} has its own: drop one of them")
        if not self.expressions and len(own) != 1:
            raise InputError(
                f"{name} has {len(own)} of the columns expression and expressions: "
                "give EXPRESSION, or one of them"
            )


def opened(place: Place, name: str) -> pq.ParquetFile:
    """Open a Parquet file, `name` in messages. Raises InputError."""
    try:
        return pq.ParquetFile(place.filesystem.open_input_file(place.path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{name} cannot be read as Parquet: {error}") from None


def _chunks(items: Iterable[_T]) -> Iterator[tuple[_T, ...]]:
    left = iter(items)
    while chunk := tuple(islice(left, PORTION)):
        yield chunk
