"""The files of a bundle, looked at before they are used: names, lengths, hashes, references.

Every problem is a BundleError that names the file and the remedy.
"""

import hashlib
import os
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from cris_deploy.bundle.external_data import locations
from cris_deploy.bundle.manifest import MOST_BYTES, FileRecord, Manifest
from cris_deploy.errors import BundleError

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = f"{MANIFEST}.minisig"
"""Where minisign itself looks for the signature of the manifest."""
TOKENIZER: Final = "tokenizer.json"
WEIGHTS: Final = "weights.bin"
ENGINES: Final = "engines"

# Files that are read whole: the tokenizer of CLIP has 1.7 MB, a full-size graph 0.2 MB.
_MOST_TOKENIZER: Final = 64 * 2**20
_MOST_GRAPH: Final = 256 * 2**20


class FileState(NamedTuple):
    """Which file it is, and what changes when it is written to."""

    device: int
    inode: int
    size: int
    changed: int
    status_changed: int


def read_manifest(root: Path) -> bytes:
    """Read manifest.json, or the beginning of one that is too long for a manifest."""
    try:
        with (root / MANIFEST).open("rb") as stream:
            return stream.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise BundleError(
            f"bundle {root} has no {MANIFEST}: give the directory cris-export wrote"
        ) from None
    except OSError as error:
        raise BundleError(
            f"bundle {root}: {MANIFEST} cannot be read ({error}): copy or export the bundle again"
        ) from None


def check_lengths(root: Path, manifest: Manifest) -> None:
    """Refuse lengths of files that are read whole, before they are read."""
    limits = {TOKENIZER: _MOST_TOKENIZER}
    limits |= dict.fromkeys((graph.file for graph in manifest.graphs.values()), _MOST_GRAPH)
    for name, limit in limits.items():
        if manifest.files[name].bytes > limit:
            raise BundleError(
                f"{root / MANIFEST}: {name} has {manifest.files[name].bytes:,} bytes, over the "
                f"limit of {limit:,}: export again"
            )


def check_external_data(root: Path, name: str, manifest: Manifest) -> None:
    """Refuse a graph that reads a file which no hash covers."""
    try:
        found = locations((root / name).read_bytes())
    except (OSError, ValueError) as error:
        raise BundleError(
            f"bundle {root}: {name} is not an ONNX file ({error}): export it again"
        ) from None
    for location in sorted(found):
        if (PurePosixPath(name).parent / location).as_posix() not in manifest.files:
            raise BundleError(
                f"bundle {root}: {name} reads weights from {location!r}, which {MANIFEST} does not "
                "list: export it again"
            )


def check_file(
    root: Path, name: str, record: FileRecord, verify: bool, *, links: bool
) -> FileState:
    """Check that a file is there, inside, as long as listed, and with its hash if `verify`.

    Without `links` it may not be reached by one, even one that leads to a place inside.
    """
    path = root / name
    remedy = "copy or export the bundle again"
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(root.resolve()):
            raise BundleError(f"bundle {root}: {name} is a link out of the bundle: {remedy}")
        if not links and real != root.resolve() / name:
            raise BundleError(
                f"bundle {root}: {name} is a link, which a signed bundle may not have: put the "
                "file itself there"
            )
        if not path.is_file():
            raise BundleError(f"bundle {root}: {name} is not a file: {remedy}")
        with path.open("rb") as stream:
            state = file_state(os.fstat(stream.fileno()))
            if state.size != record.bytes:
                raise BundleError(
                    f"bundle {root}: {name} has {state.size:,} bytes instead of "
                    f"{record.bytes:,}: {remedy}"
                )
            if verify and _hash(stream) != record.sha256:
                raise BundleError(
                    f"bundle {root}: {name} was changed (its SHA-256 differs from the manifest): "
                    + remedy
                )
        return state
    except FileNotFoundError:
        raise BundleError(f"bundle {root}: {name} is missing: {remedy}") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that points to itself
        raise BundleError(f"bundle {root}: {name} cannot be read ({error}): {remedy}") from None


def file_state(status: os.stat_result) -> FileState:
    """Take from what the system says of a file what tells it from another."""
    return FileState(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def _hash(stream: BufferedReader) -> str:
    return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """Give a file's SHA-256 in lower-case hexadecimal."""
    with path.open("rb") as stream:
        return _hash(stream)
