"""A place where many may be, or one alone."""

from collections.abc import Iterator
from contextlib import contextmanager

from cris_deploy.errors import EngineTimeoutError
from cris_deploy.execution.interruptible import Condition


class SharedLock:
    """Many may be inside, or one alone. Who is inside is known by an object of the caller's.

    So going out may be said twice, or by one who never came in: whoever cleans up after an
    interrupt need not know how far things had got.
    """

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout
        self._condition = Condition()
        self._inside: set[object] = set()
        self._alone: object | None = None

    def enter(self, who: object) -> None:
        """Come in, after whoever is alone inside; EngineTimeoutError after the gate's timeout."""
        with self._condition:
            self._wait()
            self._inside.add(who)

    def leave(self, who: object) -> None:
        """Go out."""
        with self._condition:
            self._inside.discard(who)
            if self._alone is who:
                self._alone = None
            self._condition.notify_all()

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be inside for a while."""
        who = object()
        try:
            self.enter(who)
            yield
        finally:
            self.leave(who)

    @contextmanager
    def alone(self, who: object) -> Iterator[None]:
        """For one who is inside: wait until all others are out, and keep them out meanwhile."""
        with self._condition:
            self._inside.discard(who)
            self._condition.notify_all()
            self._wait()
            self._alone = who
            try:
                self._wait_for_no_one()
            except BaseException:
                self._alone = None
                raise
        try:
            yield
        finally:
            with self._condition:
                self._alone = None
                self._inside.add(who)
                self._condition.notify_all()

    def _wait(self) -> None:
        if not self._condition.wait_for(lambda: self._alone is None, self._timeout):
            raise EngineTimeoutError(
                f"another thread has had the GPU alone for {self._timeout} s, to capture a CUDA "
                "graph: raise timeout, or look what keeps the GPU"
            )

    def _wait_for_no_one(self) -> None:
        if not self._condition.wait_for(lambda: not self._inside, self._timeout):
            raise EngineTimeoutError(
                f"other threads have kept the GPU for {self._timeout} s: raise timeout, or look "
                "what keeps the GPU"
            )
