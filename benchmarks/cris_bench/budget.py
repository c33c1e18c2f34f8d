"""The time that a run may take, and who is left out when it does not do for everyone."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

NO_TIME: Final = "no time was left: --minutes gives more, and what was exported is kept"
"""Why a contestant is absent that the budget left out."""


class OutOfTime(BaseException):
    """A preparation was cut off. Not an Exception: what catches those is not to go on."""


class Budget:
    """Seconds from now on, of which every part of a run takes its share.

    Args:
        seconds: Of the whole run; None for no end.
        clock: Seconds that go on.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self.seconds = math.inf if seconds is None else seconds

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left, 0 if there are none."""
        return max(0.0, self.seconds - self.elapsed)

    def part(self, share: float) -> Budget:
        """A share, 0 to 1, of what is left, from now on."""
        return Budget(share * self.left, self._clock)

    @contextmanager
    def cut(self) -> Iterator[None]:
        """End what is inside with OutOfTime when nothing is left; outside of the main thread never.

        A call of a library is ended when it comes back to Python.
        """
        if self.left == 0:
            raise OutOfTime
        main = threading.current_thread() is threading.main_thread()
        if not main or math.isinf(self.seconds):
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, self.left)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Cost:
    """What a contestant's pass takes of every round.

    Attributes:
        key: Its name in the race.
        seconds: Of a pass, the making of its inputs included.
        masks: That a pass makes.
        group: Those among whom the fastest is looked for, such as all peers in bfloat16.
        stays: It is what the others are compared with.
    """

    key: str
    seconds: float
    masks: int
    group: Hashable
    stays: bool = False


def who_fits(costs: Sequence[Cost], seconds: float) -> list[str]:
    """Name those whose round takes at most so many seconds, in their order.

    The slowest go first, since they are the least interesting and free the most: those that are
    not the fastest of their group, then others, until one is left beside those that stay.
    """
    kept = list(costs)

    def a_mask(cost: Cost) -> float:
        return cost.seconds / cost.masks

    while sum(cost.seconds for cost in kept) > seconds:
        movable = sorted((cost for cost in kept if not cost.stays), key=a_mask)
        if len(movable) < 2:
            break
        fastest: dict[Hashable, Cost] = {}
        for cost in movable:
            fastest.setdefault(cost.group, cost)
        others = [cost for cost in movable if fastest[cost.group] is not cost]
        kept.remove((others or movable)[-1])
    return [cost.key for cost in kept]
