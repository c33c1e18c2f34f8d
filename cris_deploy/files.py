"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cris_deploy.errors import InputError


def write_whole(path: str | Path, content: bytes | memoryview) -> Path:
    """Write a file beside its place, flush it to the disk and rename it there; folders are made.

    Raises:
        InputError: it cannot be written; what was there before stays.
    """
    path = Path(path)
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}: make room, or give another path"
        ) from error
    return path


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write as `write_whole` does and leave its OSError as it is."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place when it is written and on the disk.

    Any error on the way leaves what was there before, and is raised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)  # mkstemp makes it private
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, before work is done whose results go there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"folder {path} cannot be made: {error.strerror or error}: make room, or give another "
            f"path"
        ) from error
    return path
