"""What a run is doing, and how much of its time is left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final

from tqdm import tqdm

_FORMAT: Final = "{desc}: {elapsed}, at most {remaining} left |{bar}| "
_ENDLESS: Final = "{desc}: {elapsed}"
_DESCRIPTION: Final = 60  # characters of a step


class Progress:
    """A bar of seconds on stderr, if that is a terminal; the steps are lines above it.

    Args:
        minutes: That the run may take; 0 for no end.
    """

    def __init__(self, minutes: float) -> None:
        self._began = time.monotonic()
        self._bar = tqdm(
            total=60 * minutes or None,
            desc="starting",
            leave=False,
            disable=None,
            bar_format=_FORMAT if minutes else _ENDLESS,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def step(self, line: str) -> None:
        """Say what comes next."""
        self._bar.write(line, file=sys.stderr)
        self._bar.set_description(line[:_DESCRIPTION], refresh=False)
        self.tick()

    def tick(self) -> None:
        """Let the bar follow the clock."""
        self._bar.update(time.monotonic() - self._began - self._bar.n)
