"""Records as files. Reading is strict: a table of half a record would look like a whole one."""

from __future__ import annotations

from pathlib import Path

from cris_bench.record.schema import FORMAT, Record
from cris_deploy import documents
from cris_deploy.errors import InputError
from cris_deploy.files import write_whole


def write_record(path: str | Path, record: Record) -> None:
    """Write a record: wholly or not at all; missing folders are made.

    Raises:
        InputError: it cannot be written there.
    """
    write_whole(path, documents.to_json(record).encode())


def read_record(path: str | Path) -> Record:
    """Read what `cris-bench -o FILE` wrote.

    Raises:
        InputError: it cannot be read, or is not a record; names the field that is wrong.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"record {path} cannot be read: {error.strerror or error}") from error
    return documents.read(
        Record,
        text,
        f"record {path}",
        newest=FORMAT,
        remedy="give a file of cris-bench -o FILE, as it was written",
        error=InputError,
        known_only=True,
    )
