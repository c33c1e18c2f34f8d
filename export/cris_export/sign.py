"""Bundles are signed: by a secret key in minisign's own format, over the manifest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cris_deploy import arguments
from cris_deploy.bundle.contents import MANIFEST, SIGNATURE
from cris_deploy.bundle.reading import Bundle
from cris_deploy.bundle.signature import INSTALL, read_bounded
from cris_deploy.errors import InputError
from cris_deploy.files import write_whole

if TYPE_CHECKING:
    from minisign import SecretKey

PASSWORD: Final = "CRIS_SIGN_PASSWORD"
"""The variable that has a key's password where nobody can be asked."""


class Signer:
    """A secret key that was read and, if it has a password, opened.

    Args:
        path: What `cris-export key` or `minisign -G` wrote.
        ask: Called with the key's name for its password, if it has one and `CRIS_SIGN_PASSWORD` is
            not set.

    Raises:
        InputError: It is no secret key, or the password is wrong.
    """

    def __init__(self, path: str | Path, ask: Callable[[str], str]) -> None:
        try:
            from minisign import Error, SecretKey
        except ImportError as error:
            raise InputError(f"{INSTALL} ({error})") from error
        path = arguments.path("sign", path, "give a secret key of cris-export key or minisign -G")
        try:
            key: SecretKey = SecretKey.from_bytes(read_bounded(path))
            if key.is_encrypted():
                key.decrypt(os.environ.get(PASSWORD) or ask(path.name))
        except (OSError, Error, ValueError, MemoryError) as error:
            raise InputError(
                f"secret key {path} cannot be used ({error}): give one of cris-export key or "
                "minisign -G, and its password"
            ) from None
        self._key: Final = key

    def sign(self, folder: Path) -> Path:
        """Sign the manifest of the bundle in `folder`; an older signature is replaced, whole.

        Raises InputError if the signature cannot be written.
        """
        signature = self._key.sign((folder / MANIFEST).read_bytes())
        return write_whole(folder / SIGNATURE, bytes(signature) + b"\n")


def sign_bundle(bundle: Path, signer: Signer) -> Path:
    """Sign a bundle after it was found whole; gives the signature's path.

    Raises BundleError if it is not whole: what is signed is vouched for.
    """
    opened = Bundle.open(bundle)
    path = signer.sign(opened.path)
    Bundle.open(opened.path, manifest_sha256=opened.manifest_sha256)  # what was signed, still
    return path


def refuse_signed(bundle: Path, signer: Signer | None) -> None:
    """Raise InputError if a signed bundle is to be changed by who cannot sign it again."""
    if signer is None and (bundle / SIGNATURE).exists():
        raise InputError(
            f"bundle {bundle} is signed, and plans are listed in what is signed: give --sign KEY, "
            f"or remove {SIGNATURE} and pin the bundle by the hash of its manifest"
        )


def write_keys(path: Path, password: str | None) -> Path:
    """Write a new secret key, for this user's eyes alone, and its public one as `<path>.pub`.

    Args:
        path: Of the secret key; neither of the two files may be there.
        password: That the secret key is to have; None for none.

    Raises:
        InputError: One of them is there, or cannot be written.
    """
    try:
        from minisign import KeyPair
    except ImportError as error:
        raise InputError(f"{INSTALL} ({error})") from error
    public = path.with_name(f"{path.name}.pub")
    for there in (path, public):
        if there.exists():
            raise InputError(f"{there} exists: give another name, a lost key cannot be had again")
    pair = KeyPair.generate()
    text = bytes(pair.public_key) + b"\n"
    if password is not None:
        pair.secret_key.encrypt(password)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(pair.secret_key) + b"\n")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    return write_whole(public, text)
