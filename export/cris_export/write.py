"""A folder is written to a hidden sibling and renamed: a killed export leaves no half of one."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import glob
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from cris_deploy.bundle.contents import ENGINES, MANIFEST, SIGNATURE, sha256
from cris_deploy.bundle.manifest import FileRecord, Manifest
from cris_deploy.errors import BundleError, CrisError, InputError

_PARTIAL = ".partial"
_REPLACED = ".replaced"
# linux/fs.h: swap two names in one step
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class FolderWriter:
    """Writes a folder that appears under its name only when it is complete.

    with FolderWriter(path, "a bundle", MANIFEST) as writer:
        ...              # write files into writer.directory
        writer.commit()

    Leaving the block without `commit` deletes everything. An existing folder that has the file
    `mark` is replaced, at `commit` and not before; anything else under that name is refused
    (InputError). Directories that killed writers left behind are removed. An OSError of writing
    within the block, such as of a full disk, becomes an InputError with the remedy.

    Args:
        path: Of the folder.
        kind: What it will be, for messages.
        mark: A file that each folder of that kind has.
    """

    def __init__(self, path: str | Path, kind: str, mark: str) -> None:
        self.path: Final = Path(path).resolve()
        self._kind = kind
        self._mark = mark
        self.directory: Final = self._sibling(_PARTIAL)
        self._lock: int | None = None
        self._committed = False

    def __enter__(self) -> Self:
        self._check_target()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.directory.mkdir()
            with contextlib.suppress(OSError):  # a file system without locks
                self._lock = lock(self.directory)
        except OSError as error:
            raise self._unwritten(error) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._committed:
            shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        if isinstance(error, OSError) and self._of_writing(error):
            raise self._unwritten(error) from error

    def commit(self) -> None:
        """Flush to the disk and give the folder its name, in one step where the system can."""
        self._check_target()
        try:
            for path in self.directory.glob(".*"):
                shutil.rmtree(path)
            for path in [*self.directory.rglob("*"), self.directory]:
                _flush(path)
            self._rename()
        except OSError as error:
            raise self._unwritten(error) from None
        self._committed = True
        try:
            _flush(self.path.parent)
        except OSError as error:
            raise BundleError(
                f"{self.path} is complete, but its name may not be on the disk: "
                f"{error.strerror or error}. Look after the disk, then write it again"
            ) from None

    def _of_writing(self, error: OSError) -> bool:
        """Tell a failed write from an error of ours, of a reader of our output, of another file."""
        if isinstance(error, (CrisError, ConnectionError)):
            return False
        name = error.filename
        # A failed write of an open file names none.
        return not isinstance(name, (str, bytes)) or Path(os.fsdecode(name)).is_relative_to(
            self.directory
        )

    def _unwritten(self, error: OSError) -> InputError:
        kept = " (what was there is kept)" if self.path.exists() else ""
        return InputError(
            f"{self.path} cannot be written: {error.strerror or error}{kept}: make room or look "
            f"after the disk, or give another path"
        )

    def _check_target(self) -> None:
        if not self.path.exists():
            return
        if self.path.is_dir() and (
            (self.path / self._mark).is_file() or not any(self.path.iterdir())
        ):
            return
        raise InputError(
            f"{self.path} exists and is not {self._kind}: give another path, or remove it yourself"
        )

    def _sibling(self, suffix: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}{suffix}")

    def _rename(self) -> None:
        if not self.path.exists():
            self.directory.rename(self.path)
            return
        if _exchange(self.directory, self.path):
            shutil.rmtree(self.directory, ignore_errors=True)  # now the old one
            return
        # File systems that cannot swap: the old one steps aside first.
        aside = self._sibling(_REPLACED)
        self.path.rename(aside)
        try:
            self.directory.rename(self.path)
        except OSError:
            aside.rename(self.path)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Clear what killed writers of this path left: directories whose lock is free."""
        for path in self.path.parent.glob(f".{glob.escape(self.path.name)}.*{_PARTIAL}"):
            try:
                held = lock(path)
            except OSError:  # its writer lives, or it is not ours to remove
                continue
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)
        for path in self.path.parent.glob(f".{glob.escape(self.path.name)}.*{_REPLACED}"):
            # Killed between the two renames of `_rename`: the old one is still whole.
            if self.path.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(self.path)


class BundleWriter(FolderWriter):
    """Writes a bundle.

    with BundleWriter(path) as writer:
        ...                           # write files into writer.directory
        writer.write_manifest(manifest)   # hashes them; Bundle.open(writer.directory) works now
        writer.commit()
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, "a bundle", MANIFEST)
        self._hashes: dict[tuple[str, int, int], str] = {}

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Write manifest.json with the hashes of all files there are; returns what was written.

        May be called again, for instance to add the parity report; unchanged files are not
        hashed twice. Plans are listed by who builds them (`plans.list_plans`). What lies under a
        name with a leading dot is scratch: not listed, and `commit` removes it.
        """
        files = {}
        for path in sorted(self.directory.rglob("*")):
            name = path.relative_to(self.directory).as_posix()
            own = name in (MANIFEST, SIGNATURE)
            if path.is_file() and not own and not name.startswith((".", f"{ENGINES}/")):
                files[name] = self._record(path, name)
        manifest = dataclasses.replace(manifest, files=files)
        text = manifest.to_json()
        # What cannot be read must not be written.
        Manifest.from_json(text, str(self.path / MANIFEST))
        (self.directory / MANIFEST).write_text(text, encoding="utf-8")
        return manifest

    def commit(self) -> None:
        """Give the bundle its name, as a folder's; BundleError if it has no manifest yet."""
        if not (self.directory / MANIFEST).is_file():
            raise BundleError(f"bundle {self.path} has no manifest: call write_manifest first")
        super().commit()

    def _record(self, path: Path, name: str) -> FileRecord:
        status = path.stat()
        key = (name, status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = sha256(path)
        return FileRecord(self._hashes[key], status.st_size)


def lock(directory: Path) -> int:
    """Lock a directory until the descriptor is closed or the process dies; OSError if taken."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically; False where the system or file system cannot."""
    with contextlib.suppress(OSError, AttributeError):
        renameat2 = ctypes.CDLL(None).renameat2
        arguments = (_AT_FDCWD, bytes(first), _AT_FDCWD, bytes(second), _RENAME_EXCHANGE)
        return bool(renameat2(*arguments) == 0)
    return False
