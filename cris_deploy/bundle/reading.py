"""The bundle on disk: a directory that is complete, portable and checks itself.

    manifest.json     what it is, and the hash of every other file
    tokenizer.json    so that the runtime needs neither torch nor open_clip
    *.onnx            the full graph and its three stages
    weights.bin       the weights of all four, stored once
    engines/          plans for GPUs: all, some or none of those in the manifest (`plans.py`)
    samples/          images and expressions with the FP32 model's logits: the bundle's own test

It is written to a hidden sibling and renamed, so a killed export leaves nothing under the final
name; reading refuses whatever differs from the manifest. Nothing in it is a pickle.

A manifest proves that the files belong together, not who wrote them: whoever can write to the
bundle can write a manifest that fits. `manifest_sha256` names the one that is meant.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import glob
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cris_deploy import arguments
from cris_deploy.bundle.arrays import read_array
from cris_deploy.bundle.files import (
    ENGINES,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    FileState,
    check_external_data,
    check_file,
    check_lengths,
    file_state,
    read_manifest,
)
from cris_deploy.bundle.files import sha256 as _sha256
from cris_deploy.bundle.manifest import (
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
from cris_deploy.errors import BundleError, InputError

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

_PARTIAL = ".partial"
_REPLACED = ".replaced"
# linux/fs.h: swap two names in one step
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are there and, unless verification was waived, unchanged.

    `manifest_sha256` is the hash of manifest.json, which has those of all other files.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    _states: dict[str, FileState] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def open(
        cls, path: str | Path, verify: bool = True, manifest_sha256: str | None = None
    ) -> "Bundle":
        """Read and check a bundle; BundleError names the file or field and the remedy.

        Names, sizes and links are always checked, and that the graphs read no file that the
        manifest does not list; the SHA-256 of every file if `verify`; that of manifest.json if it
        is given. Files that the manifest does not list are ignored.
        """
        path = arguments.path("bundle", path, "give the directory cris-export wrote")
        arguments.flag("verify", verify)
        if manifest_sha256 is not None and not _is_sha256(manifest_sha256):
            raise InputError(
                f"manifest_sha256 is {arguments.shown(manifest_sha256)}: give 64 hexadecimal "
                f"digits, as sha256sum {MANIFEST} does"
            )
        if not path.is_dir():
            problem = "is not a directory" if path.exists() else "does not exist"
            raise BundleError(f"bundle {path} {problem}: give the directory cris-export wrote")
        text = read_manifest(path)
        digest = hashlib.sha256(text).hexdigest()
        if manifest_sha256 is not None and digest != manifest_sha256.lower():
            raise BundleError(
                f"bundle {path}: {MANIFEST} has the SHA-256 {digest}, expected "
                f"{manifest_sha256.lower()}: it is another bundle, or plans were built for it since"
            )
        manifest = Manifest.from_json(text, str(path / MANIFEST))
        for name in (TOKENIZER, WEIGHTS):
            if name not in manifest.files:
                raise BundleError(f"{path / MANIFEST}: files does not list {name}: export again")
        check_lengths(path, manifest)
        states = {
            name: check_file(path, name, record, verify) for name, record in manifest.files.items()
        }
        for graph in manifest.graphs.values():
            check_external_data(path, graph.file, manifest)
        return cls(path, manifest, digest, states)

    def require_unchanged(self, graphs: Iterable[GraphName]) -> None:
        """Raise BundleError if the tokenizer, the weights or a graph are not what was opened.

        To be called after something was loaded by its path: the bundle may have been replaced.
        """
        for name in (TOKENIZER, WEIGHTS, *(self.manifest.graphs[graph].file for graph in graphs)):
            self._require(name, mapped=False)

    def require_unwritten(self) -> None:
        """Raise BundleError if the weights were written into since they were opened.

        To be called after a run on a CPU: runtimes map the weights into memory. A new file of the
        same name does no harm, as a map keeps the old one.
        """
        self._require(WEIGHTS, mapped=True)

    def _require(self, name: str, *, mapped: bool) -> None:
        opened = self._states[name]
        path = self.path / name
        try:
            state = file_state(path.stat())
            if state == opened or (mapped and state[:2] != opened[:2]):
                return
            # Other times alone: a new hard link, or a copy that was put back
            same = state.size == opened.size and _sha256(path) == self.manifest.files[name].sha256
        except OSError:
            if mapped:
                return
            same = False
        if not same:
            raise BundleError(
                f"bundle {self.path}: {name} is not what was opened, so the bundle was changed or "
                "replaced meanwhile: make a new Engine"
            )
        self._states[name] = state

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
            logits = read_array(self.path / sample.logits, (size, size))
            if logits.dtype != np.float32:
                raise ValueError(f"it holds {logits.dtype}, expected float32")
        except (OSError, ValueError) as error:
            raise BundleError(
                f"bundle {self.path}: {sample.logits} cannot be read ({error}): export it again"
            ) from None
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
        hashed twice. Plans are listed by who builds them (`plans.list_plans`). What lies under a
        name with a leading dot is scratch: not listed, and `commit` removes it.
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


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{64}", value) is not None


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
