"""`cris-export key`: a pair of keys to sign bundles with. Needs no PyTorch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from cris_deploy.cli import Parser, guarded
from cris_deploy.errors import InputError
from cris_export.cli.sign import ask_password
from cris_export.sign import PASSWORD, write_keys


def main(argv: Sequence[str] | None = None) -> int:
    """Write the two files and print the public one's path; exit 0, or 2 for unusable input."""
    args = _parser().parse_args(argv)
    return guarded("cris-export", lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    print(write_keys(args.key, None if args.no_password else _new_password()))
    return 0


def _new_password() -> str:
    given = os.environ.get(PASSWORD)
    if given:
        return given
    password = ask_password("new password: ")
    if not password:
        raise InputError("the password is empty: give one, or --no-password")
    if ask_password("once more: ") != password:
        raise InputError("the two passwords differ: try again")
    return password


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cris-export key",
        description="Write a new secret key, KEY, and its public one, KEY.pub, in the format of "
        "minisign. Who has KEY.pub can tell what was signed with KEY.",
        examples=("cris-export key release.key",),
    )
    add = parser.add_argument
    add("key", type=Path, metavar="KEY", help="the secret key's file, which must not be there")
    add(
        "--no-password",
        action="store_true",
        help=f"who can read the file can sign; else {PASSWORD} has a password, or it is asked for",
    )
    return parser
