"""Consoles: thin parsers over typed functions."""

import os
import sys
from collections.abc import Callable

from cris_deploy.errors import CrisError


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


def one_line(error: BaseException) -> str:
    """Fold an error's message into one line."""
    return " ".join(str(error).split())
