"""The command `cris-export`: it exports, and its subcommands are files beside."""

from __future__ import annotations

import sys
import time


class Steps:
    """Progress on stderr: each step, and the time since the start."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.perf_counter() - self._start

    def __call__(self, line: str) -> None:
        """Say what begins."""
        print(f"[{self.seconds:5.1f} s] {line}", file=sys.stderr, flush=True)
