"""A portion is read: the bytes of pictures and their expressions, or what is wrong with them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import pyarrow as pa

from cris_deploy.batch.places import Place
from cris_deploy.batch.sources import EXPRESSIONS, PORTION, Portion, opened
from cris_deploy.errors import CrisError

_READERS: Final = 8
"""Pictures that are read at once: a bucket answers late."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A source that was read: the bytes of its picture and its expressions, or what is wrong.

    `path` is that of the picture, None if the bytes lay in the Parquet file.
    """

    source: str
    path: str | None
    image: bytes = b""
    expressions: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads portions of an input.

    Attributes:
        folder: Which their names are relative to.
        expressions: For all pictures; empty if the rows have their own.
    """

    folder: Place
    expressions: tuple[str, ...]

    def read(self, portion: Portion) -> list[Asked]:
        """Read a portion, in order; what cannot be read says why. Raises InputError for a Parquet
        file that is not there any more."""
        with ThreadPoolExecutor(_READERS, "cris-read") as readers:
            if portion.file is None:
                return list(readers.map(self._read_picture, portion.sources))
            rows = self._read_rows(portion.file, portion)
            return list(readers.map(self._read_row, portion.sources, rows))

    def _read_rows(self, name: str, portion: Portion) -> list[dict[str, Any]]:
        with opened(self.folder.within(name), name) as table:
            columns = [c for c in ("image", *EXPRESSIONS) if c in table.schema_arrow.names]
            found: list[dict[str, Any]] = []
            start = 0
            for batch in table.iter_batches(PORTION, row_groups=[portion.group], columns=columns):
                here = [row - start for row in portion.rows if start <= row < start + len(batch)]
                found += batch.take(pa.array(here, pa.int64())).to_pylist()
                start += len(batch)
                if len(found) == len(portion.rows):
                    break
        return found

    def _read_row(self, source: str, row: dict[str, Any]) -> Asked:
        value: Any = row["image"]
        words: Any = row.get("expression", row.get("expressions"))
        path: str | None = None
        if isinstance(value, dict):  # as Hugging Face's data sets have it
            value, path = value.get("bytes") or value.get("path"), value.get("path")
        words = [words] if isinstance(words, str) else words
        expressions = self.expressions or tuple(words or ())
        if not all(isinstance(each, str) for each in expressions) or not expressions:
            return Asked(source, path, problem="expression is empty or no text: give a string")
        if isinstance(value, str):
            return self._read_picture(source, value, str(PurePosixPath(source).parent), expressions)
        if not isinstance(value, bytes):
            return Asked(
                source, path, problem="image is empty: give the bytes of a file, or a path"
            )
        return Asked(source, path, value, expressions)

    def _read_picture(
        self,
        source: str,
        path: str | None = None,
        folder: str = ".",
        expressions: tuple[str, ...] = (),
    ) -> Asked:
        path = source if path is None else path
        try:
            place = self.folder if folder == "." else self.folder.within(folder)
            image = place.within(path).read()
        except (OSError, CrisError) as error:
            return Asked(source, path, problem=f"image {path} cannot be read: {error}")
        return Asked(source, path, image, expressions or self.expressions)
