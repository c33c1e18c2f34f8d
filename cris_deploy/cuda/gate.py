"""A place where many may be, or one alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Gate:
    """Many may be inside, or one alone."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._inside = 0
        self._closed = False

    def enter(self) -> None:
        """Come in, after whoever is alone inside."""
        with self._condition:
            self._condition.wait_for(lambda: not self._closed)
            self._inside += 1

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside for a while."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Go out."""
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For one who is inside: wait until all others are out, and keep them out meanwhile."""
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._closed)
            self._closed = True
            self._condition.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._condition:
                self._closed = False
                self._inside += 1
                self._condition.notify_all()
