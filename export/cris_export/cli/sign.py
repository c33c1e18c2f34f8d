"""`cris-export sign`: a bundle there is gets a signature. Needs no PyTorch."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import InputError
from cris_export.sign import PASSWORD, Signer, sign_bundle


def main(argv: Sequence[str] | None = None) -> int:
    """Sign, and print where the signature is; exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)
    return guarded("cris-export", lambda: _run(args))


def add_sign(parser: argparse.ArgumentParser) -> None:
    """Add the option that signs what a command wrote."""
    parser.add_argument(
        "--sign",
        type=Path,
        metavar="KEY",
        help=f"sign the bundle with this secret key of minisign; {PASSWORD} may have its password",
    )


def signer(key: Path | None) -> Signer | None:
    """Open the key that `--sign` named, if it did; InputError if it cannot be used."""
    return None if key is None else Signer(key, _ask)


def ask_password(prompt: str) -> str:
    """Ask for a password on the terminal; InputError where there is none."""
    if not sys.stdin.isatty():
        raise InputError(f"a password is needed and nobody can be asked: set {PASSWORD}")
    return getpass.getpass(prompt)


def _ask(name: str) -> str:
    return ask_password(f"password of {name}: ")


def _run(args: argparse.Namespace) -> int:
    print(sign_bundle(args.bundle, Signer(args.key, _ask)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-export sign",
        description="Check a bundle's files and sign its manifest, which has their hashes. "
        "minisign -Vm BUNDLE/manifest.json -p KEY.pub checks the signature, too.",
        examples=("cris-export sign x.bundle --key release.key",),
    )
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="what cris-export wrote")
    add(
        "--key",
        type=Path,
        required=True,
        metavar="KEY",
        help=f"secret key of cris-export key or minisign -G; {PASSWORD} may have its password",
    )
    return parser
