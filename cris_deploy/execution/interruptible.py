"""Threads that work for one whom Ctrl-C may interrupt, and locks that it leaves free.

A signal's exception comes when a function begins or a C function has returned. The methods with
which `threading.Condition` takes and frees its lock are Python functions, so it may come while the
lock is held and nobody is there yet to free it: whoever needs it next, in any thread, waits for
ever. An Event, a Future and a ThreadPoolExecutor stand on it, and so does the start of a thread.
"""

import threading
import weakref
from collections.abc import Callable
from concurrent import futures
from operator import attrgetter
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeAlias, TypeVar

_T = TypeVar("_T")
_Task: TypeAlias = "tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]"


class Condition(threading.Condition):
    """One whose lock is taken and freed by a `with` statement's single step."""

    # The methods of the lock itself, which are in C, in place of the Python ones that call them.
    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))


class Future(futures.Future[_T]):
    """One that can be waited for again after an interrupt."""

    def __init__(self) -> None:
        super().__init__()
        self._condition = Condition()

    def ends(self, timeout: float | None) -> bool:
        """Whether it has an outcome, or gets one within `timeout` seconds."""
        try:
            self.exception(timeout)
        except TimeoutError:
            return False
        return True


class Workers:
    """Up to `most` threads that call what they are given, as a ThreadPoolExecutor's do.

    They do not keep the process, and they end with this object, if it is not closed.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most: Final = most
        self._name: Final = name
        self._tasks: Final[SimpleQueue[_Task | None]] = SimpleQueue()
        self._threads: Final[list[threading.Thread]] = []
        self._end: Final = weakref.finalize(self, self._tasks.put, None)

    def submit(self, call: Callable[..., _T], *arguments: Any) -> Future[_T]:
        """Have something called; what it returns or raises is the future's."""
        if len(self._threads) < self._most:
            name = f"{self._name}-{len(self._threads)}"
            thread = threading.Thread(target=_work, args=(self._tasks,), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)  # not before: one that an interrupt kept never ends
        future: Future[_T] = Future()
        self._tasks.put((future, call, arguments))
        return future

    def close(self, *, cancel: bool = False) -> None:
        """End the threads, after what was given to them; `cancel` is for what has not begun."""
        if cancel:
            _cancel(self._tasks)
        self._end()
        for thread in self._threads:
            thread.join()


def _work(tasks: "SimpleQueue[_Task | None]") -> None:
    while (task := tasks.get()) is not None:
        future, call, arguments = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call(*arguments))
            except BaseException as error:
                future.set_exception(error)
        del task, future, call, arguments  # while it waits it keeps no picture alive
    tasks.put(None)  # for the next thread


def _cancel(tasks: "SimpleQueue[_Task | None]") -> None:
    try:
        while (task := tasks.get_nowait()) is not None:
            task[0].cancel()
    except Empty:
        pass
