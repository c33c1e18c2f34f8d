"""Consoles: thin parsers over typed functions."""

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import cris_deploy
from cris_deploy.errors import CrisError, one_line

if TYPE_CHECKING:
    from cris_deploy.bundle.reading import Bundle


class Parser(argparse.ArgumentParser):
    """A command's arguments, with `--version`, and examples below the options.

    Args:
        examples: Command lines, shown below the options and the epilog.
        options: As argparse has them.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        if examples:
            lines = "\n  ".join(("examples:", *examples))
            options["epilog"] = "\n".join(filter(None, (options.get("epilog"), lines)))
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
            if "description" in options:
                options["description"] = textwrap.fill(options["description"], 80)
        super().__init__(**options)
        if " " not in self.prog:  # a subcommand has none of its own
            version = f"{self.prog} {cris_deploy.__version__}"
            self.add_argument("--version", action="version", version=version)

    def error(self, message: str) -> NoReturn:
        """End with what is wrong; choices of an enum are shown by their values."""
        super().error(re.sub(r"<\w+\.\w+: ('[^']*')>", r"\1", message))


def add_trust(parser: Any) -> None:
    """Add the options that say which bundle is meant; `open_bundle` reads them."""
    parser.add_argument(
        "--manifest-sha256", metavar="HEX", help="refuse a bundle whose manifest.json has another"
    )
    parser.add_argument(
        "--require-signature",
        metavar="KEY",
        help="refuse a bundle that this public key of minisign, or the key in this file, did not "
        "sign",
    )


def open_bundle(args: argparse.Namespace) -> "Bundle":
    """Open `args.bundle` if it is the one that is meant; errors as of `Bundle.open`."""
    from cris_deploy.bundle.reading import Bundle  # not for commands without a bundle

    return Bundle.open(
        args.bundle,
        manifest_sha256=args.manifest_sha256,
        require_signature=args.require_signature,
    )


def guarded(program: str, action: Callable[[], int]) -> int:
    """Run a command; a CrisError becomes one line on stderr and exit code 2."""
    try:
        return action()
    except CrisError as error:
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
