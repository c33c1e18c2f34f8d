"""The bundle on disk: a directory that is complete, portable and checks itself.

    manifest.json     what it is, and the hash of every other file but plans
    tokenizer.json    so that the runtime needs neither torch nor open_clip
    *.onnx            the full graph and its three stages
    weights.bin       the weights of all four, stored once
    engines/          plans for GPUs, if any; each vouches for itself (`plans.py`)
    samples/          images and expressions with the FP32 model's logits: the bundle's own test

It is written to a hidden sibling and renamed, so a killed export leaves nothing under the final
name; reading refuses whatever differs from the manifest. Nothing in it is a pickle.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cris_deploy import arguments
from cris_deploy.errors import BundleError, InputError
from cris_deploy.manifest import (
    FORMAT,
    DType,
    FileRecord,
    GraphName,
    GraphSpec,
    Manifest,
    ModelFacts,
    Parity,
    Precision,
    Sample,
    TensorSpec,
)

__all__ = [
    "ENGINES",
    "FORMAT",
    "MANIFEST",
    "TOKENIZER",
    "WEIGHTS",
    "Bundle",
    "BundleWriter",
    "DType",
    "FileRecord",
    "GraphName",
    "GraphSpec",
    "Manifest",
    "ModelFacts",
    "Parity",
    "Precision",
    "Sample",
    "TensorSpec",
]

MANIFEST: Final = "manifest.json"
TOKENIZER: Final = "tokenizer.json"
WEIGHTS: Final = "weights.bin"
ENGINES: Final = "engines"

_PARTIAL = ".partial"
_REPLACED = ".replaced"
# linux/fs.h: swap two names in one step
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are there and, unless verification was waived, unchanged."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, verify: bool = True) -> "Bundle":
        """Read and check a bundle; BundleError names the file or field and the remedy.

        Names, sizes and links are always checked, the SHA-256 of every file if `verify`. Files
        that the manifest does not list are ignored.
        """
        path = arguments.path("bundle", path, "give the directory cris-export wrote")
        arguments.flag("verify", verify)
        if not path.is_dir():
            problem = "is not a directory" if path.exists() else "does not exist"
            raise BundleError(f"bundle {path} {problem}: give the directory cris-export wrote")
        try:
            text = (path / MANIFEST).read_bytes()
        except FileNotFoundError:
            raise BundleError(
                f"bundle {path} has no {MANIFEST}: give the directory cris-export wrote"
            ) from None
        except OSError as error:
            raise BundleError(f"bundle {path}: {MANIFEST} cannot be read: {error}") from None
        manifest = Manifest.from_json(text, str(path / MANIFEST))
        if TOKENIZER not in manifest.files:
            raise BundleError(f"{path / MANIFEST}: files does not list {TOKENIZER}: export again")
        for name, record in manifest.files.items():
            _check_file(path, name, record, verify)
        return cls(path, manifest)

    @property
    def tokenizer(self) -> Path:
        """Path of tokenizer.json."""
        return self.path / TOKENIZER

    def graph(self, name: GraphName) -> Path:
        """Path of a graph; its weights lie beside it, so load it by path."""
        return self.path / self.manifest.graphs[name].file

    def sample_image(self, sample: Sample) -> Path:
        """Path of a sample's image."""
        return self.path / sample.image

    def sample_logits(self, sample: Sample) -> NDArray[np.float32]:
        """Read a sample's reference logits (mask_size, mask_size) float32."""
        size = self.manifest.model.mask_size
        try:
            logits = np.load(self.path / sample.logits, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BundleError(
                f"bundle {self.path}: {sample.logits} cannot be read ({error}): export it again"
            ) from None
        if logits.dtype != np.float32 or logits.shape != (size, size):
            raise BundleError(
                f"bundle {self.path}: {sample.logits} is {logits.dtype} {logits.shape}, expected "
                f"float32 {(size, size)}: export it again"
            )
        return np.asarray(logits, dtype=np.float32)


class BundleWriter:
    """Writes a bundle that appears under its name only when it is complete.

    with BundleWriter(path) as writer:
        ...                           # write files into writer.directory
        writer.write_manifest(manifest)   # hashes them; Bundle.open(writer.directory) works now
        writer.commit()

    Leaving the block without `commit` deletes everything. An existing bundle is replaced, at
    `commit` and not before; anything else under that name is refused (InputError). Directories
    that killed writers left behind are removed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path: Final = Path(path).resolve()
        self.directory: Final = self._sibling(_PARTIAL)
        self._lock: int | None = None
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._committed = False

    def __enter__(self) -> "BundleWriter":
        self._check_target()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.directory.mkdir()
            with contextlib.suppress(OSError):  # a file system without locks
                self._lock = _lock(self.directory)
        except OSError as error:
            raise InputError(f"bundle {self.path} cannot be written: {error}") from None
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

    def write_manifest(self, manifest: Manifest) -> Manifest:
        """Write manifest.json with the hashes of all files there are; returns what was written.

        May be called again, for instance to add the parity report; unchanged files are not
        hashed twice. Plans vouch for themselves and are not listed. What lies under a name with a
        leading dot is scratch: not listed either, and `commit` removes it.
        """
        files = {}
        for path in sorted(self.directory.rglob("*")):
            name = path.relative_to(self.directory).as_posix()
            if path.is_file() and name != MANIFEST and not name.startswith((".", f"{ENGINES}/")):
                files[name] = self._record(path, name)
        manifest = dataclasses.replace(manifest, files=files)
        text = manifest.to_json()
        # What cannot be read must not be written.
        Manifest.from_json(text, str(self.path / MANIFEST))
        (self.directory / MANIFEST).write_text(text, encoding="utf-8")
        return manifest

    def commit(self) -> None:
        """Flush to the disk and give the bundle its name, in one step where the system can."""
        if not (self.directory / MANIFEST).is_file():
            raise BundleError(f"bundle {self.path} has no manifest: call write_manifest first")
        self._check_target()
        for path in self.directory.glob(".*"):
            shutil.rmtree(path)
        try:
            for path in [*self.directory.rglob("*"), self.directory]:
                _flush(path)
            self._rename()
            _flush(self.path.parent)
        except OSError as error:
            raise BundleError(f"bundle {self.path} cannot be written: {error}") from None
        self._committed = True

    def _check_target(self) -> None:
        if not self.path.exists():
            return
        if self.path.is_dir() and (
            (self.path / MANIFEST).is_file() or not any(self.path.iterdir())
        ):
            return
        raise InputError(
            f"{self.path} exists and is not a bundle: give another path, or remove it yourself"
        )

    def _sibling(self, suffix: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}{suffix}")

    def _record(self, path: Path, name: str) -> FileRecord:
        status = path.stat()
        key = (name, status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = _sha256(path)
        return FileRecord(self._hashes[key], status.st_size)

    def _rename(self) -> None:
        if not self.path.exists():
            self.directory.rename(self.path)
            return
        if _exchange(self.directory, self.path):
            shutil.rmtree(self.directory, ignore_errors=True)  # now the old bundle
            return
        # File systems that cannot swap: the old bundle steps aside first.
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
                lock = _lock(path)
            except OSError:  # its writer lives, or it is not ours to remove
                continue
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
        for path in self.path.parent.glob(f".{glob.escape(self.path.name)}.*{_REPLACED}"):
            # Killed between the two renames of `_rename`: the old bundle is still whole.
            if self.path.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(self.path)


def _lock(directory: Path) -> int:
    """Lock a directory until the descriptor is closed or the process dies; OSError if taken."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_file(root: Path, name: str, record: FileRecord, verify: bool) -> None:
    path = root / name
    remedy = "copy or export the bundle again"
    try:
        inside = path.resolve(strict=True).is_relative_to(root.resolve())
        if not inside:
            raise BundleError(f"bundle {root}: {name} is a link out of the bundle: {remedy}")
        if not path.is_file():
            raise BundleError(f"bundle {root}: {name} is not a file: {remedy}")
        size = path.stat().st_size
        if size != record.bytes:
            raise BundleError(
                f"bundle {root}: {name} has {size:,} bytes instead of {record.bytes:,}: {remedy}"
            )
        if verify and _sha256(path) != record.sha256:
            raise BundleError(
                f"bundle {root}: {name} was changed (its SHA-256 differs from the manifest): "
                + remedy
            )
    except FileNotFoundError:
        raise BundleError(f"bundle {root}: {name} is missing: {remedy}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that points to itself
        raise BundleError(f"bundle {root}: {name} cannot be read ({error}): {remedy}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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
