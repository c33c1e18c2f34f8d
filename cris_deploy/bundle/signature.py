"""Who made a bundle: the signature of its manifest, which has the hashes of everything else.

It is one of minisign's, under the name that minisign looks for, so its own tool checks and
makes it, too. The package for it is imported only where a signature is asked for.
"""

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cris_deploy import arguments
from cris_deploy.bundle.contents import MANIFEST, SIGNATURE
from cris_deploy.errors import BundleError, InputError

if TYPE_CHECKING:
    from minisign import PublicKey

INSTALL: Final = "signatures need py-minisign: pip install 'cris-deploy[sign]'"
_REMEDY: Final = "give a file that minisign or cris-export key wrote (NAME.pub), or its last line"
# A key has two lines, a signature four, with comments of up to 8 KB.
_MOST: Final = 2**16
_KEY_LENGTH: Final = 56  # characters of a public key's last line
_KEY_ID: Final = slice(2, 10)


def read_public_key(key: str | Path) -> "PublicKey":
    """Read a public key from its file, or from the last line of one; InputError with the remedy."""
    try:
        from minisign import ParseError, PublicKey
    except ImportError as error:
        raise InputError(f"{INSTALL} ({error})") from error
    path = arguments.path("require_signature", key, _REMEDY)
    try:
        if isinstance(key, str) and len(key) == _KEY_LENGTH and not path.exists():
            return PublicKey.from_base64(key)
        return PublicKey.from_bytes(read_bounded(path))
    except (OSError, ParseError, ValueError) as error:
        raise InputError(
            f"require_signature {arguments.shown(str(key))} is no public key ({error}): {_REMEDY}"
        ) from None


def key_text(key: str | Path) -> str:
    """Give the last line of a public key, which stands for it whatever happens to its file."""
    return str(read_public_key(key).to_base64(), "ascii")


def require_signed(root: Path, manifest: bytes, key: str | Path) -> None:
    """Raise BundleError unless the key signed these bytes as the manifest of the bundle at `root`.

    Raises InputError if the key cannot be read.
    """
    public = read_public_key(key)
    from minisign import ParseError, Signature, VerifyError

    remedy = "take the bundle again from who made it, or let them sign it with cris-export sign"
    try:
        signature = Signature.from_bytes(read_bounded(root / SIGNATURE))
    except FileNotFoundError:
        raise BundleError(
            f"bundle {root} has no {SIGNATURE}, and a signature is required: {remedy}"
        ) from None
    except (OSError, ParseError, ValueError) as error:
        raise BundleError(
            f"bundle {root}: {SIGNATURE} is no signature ({error}): {remedy}"
        ) from None
    wanted = _key_id(public.to_base64())
    found = _key_id(bytes(signature).splitlines()[1])
    if found != wanted:
        raise BundleError(
            f"bundle {root} is signed by the key {found}, and {wanted} is required: {remedy}"
        )
    try:
        public.verify(manifest, signature)
    except VerifyError:
        raise BundleError(
            f"bundle {root}: {MANIFEST} is not what the key {wanted} signed, so it was changed, or "
            f"plans were built for it since: {remedy}"
        ) from None


def read_bounded(path: Path) -> bytes:
    """Read the file of a key or signature; ValueError if it is too long for one."""
    with path.open("rb") as stream:
        found = stream.read(_MOST + 1)
    if len(found) > _MOST:
        raise ValueError(f"it is longer than {_MOST:,} bytes")
    return found


def _key_id(line: bytes) -> str:
    """The number of a key as minisign shows it, from the line of a key or a signature."""
    return f"{int.from_bytes(base64.b64decode(line)[_KEY_ID], 'little'):016X}"
