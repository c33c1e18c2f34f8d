"""The bundle on disk: a directory that is complete, portable and checks itself.

    manifest.json     what it is, and the hash of every other file
    manifest.json.minisig   if it was signed: who says so
    tokenizer.json    so that the runtime needs neither torch nor open_clip
    *.onnx            the full graph and its three stages
    weights.bin       the weights of all four, stored once
    engines/          plans for GPUs: all, some or none of those in the manifest (`plans`)
    samples/          images and expressions with the FP32 model's logits: the bundle's own test

An export writes it whole or not at all; reading refuses whatever differs from the manifest. Nothing
in it is a pickle.

A manifest proves that the files belong together, not who wrote them: whoever can write to the
bundle can write a manifest that fits. `manifest_sha256` names the one that is meant, and
`require_signature` the key of who has to have made it.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cris_deploy import arguments
from cris_deploy.bundle.arrays import read_array
from cris_deploy.bundle.contents import (
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
from cris_deploy.bundle.contents import sha256 as _sha256
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
from cris_deploy.bundle.signature import require_signed
from cris_deploy.errors import BundleError, InputError

__all__ = [
    "ENGINES",
    "FORMAT",
    "MANIFEST",
    "TOKENIZER",
    "WEIGHTS",
    "Bundle",
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


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are there and, unless verification was waived, unchanged.

    `manifest_sha256` is the hash of manifest.json, which has those of all other files. `signed` is
    whether a signature was asked for and holds for every file: nothing unsigned may be loaded then.
    """

    path: Path
    manifest: Manifest
    manifest_sha256: str
    signed: bool
    _states: dict[str, FileState] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        verify: bool = True,
        manifest_sha256: str | None = None,
        require_signature: str | Path | None = None,
    ) -> "Bundle":
        """Read and check a bundle; BundleError names the file or field and the remedy.

        Names, sizes and links are always checked, and that the graphs read no file that the
        manifest does not list; the SHA-256 of every file if `verify`; that of manifest.json if it
        is given. With `require_signature`, a public key of minisign or its file, manifest.json has
        to be signed by that key, which is looked at before anything in it is read, and no file may
        be a link. Files that the manifest does not list are ignored.
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
        if require_signature is not None:
            require_signed(path, text, require_signature)
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
        sealed = require_signature is not None
        states = {
            name: check_file(path, name, record, verify, links=not sealed)
            for name, record in manifest.files.items()
        }
        for graph in manifest.graphs.values():
            check_external_data(path, graph.file, manifest)
        return cls(path, manifest, digest, sealed and verify, states)

    def require_unchanged(self, graphs: Iterable[GraphName]) -> None:
        """Raise BundleError if the tokenizer, the weights or a graph are not what was opened.

        To be called after something was loaded by its path: the bundle may have been replaced. A
        signed one may not even have been touched: what was put back after it was loaded looks like
        this, too.
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
            touchable = mapped or not self.signed
            same = (
                touchable
                and state.size == opened.size
                and _sha256(path) == self.manifest.files[name].sha256
            )
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


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-fA-F]{64}", value) is not None
