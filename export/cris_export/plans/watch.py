"""What a build gets beside its network: a log, kernel timings, and a way to watch and stop it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cris_deploy.errors import InputError
from cris_deploy.files import write_atomically
from cris_export.errors import ExportError

_ERRORS = ("ERROR", "INTERNAL_ERROR")
# What TensorRT, CUDA and the C++ library say of memory; only looked at when a build has failed,
# because a tactic that did not fit is skipped with the same words.
_OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|insufficient memory|could not be allocated|bad_alloc|MEM_ALLOC_FAILED"
    r"|failed to allocate",
    re.IGNORECASE,
)
_SHOWN_ERRORS = 3
PROGRESS_SECONDS = 10.0


class BuildLog:
    """Everything a builder said; `severity` as TensorRT names it."""

    def __init__(self) -> None:
        self._entries: list[tuple[str, str]] = []

    def add(self, severity: str, message: str) -> None:
        """Add a message; called from the builder's threads."""
        self._entries.append((severity, message))

    def text(self, verbose: bool) -> str:
        """Give the messages, a line each; `verbose` with those that fill megabytes."""
        return "".join(
            f"[{severity}] {message}\n"
            for severity, message in self._entries
            if verbose or severity != "VERBOSE"
        )

    def errors(self) -> str:
        """Sum up the errors in one line."""
        return in_short([message for severity, message in self._entries if severity in _ERRORS])

    def starting_with(self, words: str) -> list[str]:
        """Give the messages that begin with these words."""
        return [message for _, message in self._entries if message.startswith(words)]

    def complaints(self, words: str, since: int = 0) -> bool:
        """Tell whether a warning or an error from number `since` on has these words in it."""
        return any(
            severity in (*_ERRORS, "WARNING") and words in message.lower()
            for severity, message in self._entries[since:]
        )

    def __len__(self) -> int:
        return len(self._entries)

    def ran_out_of_memory(self) -> bool:
        """Tell whether memory was missing, according to errors and warnings."""
        return any(
            severity in (*_ERRORS, "WARNING") and _OUT_OF_MEMORY.search(message)
            for severity, message in self._entries
        )


class TimingCache:
    """Kernel timings, shared by the graphs of a run and, in a file, by runs.

    A bundle's layers occur twice, in a stage and in the full graph: with the cache they are timed
    once. Raises InputError for a file that cannot be used at all.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self._content = b""
        self._from_file = False
        if path is None:
            return
        try:
            if path.exists():
                self._content = path.read_bytes()
            else:
                write_atomically(path, b"")  # before an hour of timing, not after it
        except OSError as error:
            raise InputError(f"--timing-cache {path} cannot be used: {error}") from None
        self._from_file = bool(self._content)

    def attach(self, config: Any, log: BuildLog) -> None:
        """Give a build the timings at hand; unusable ones from the file are dropped and said."""
        said = len(log)
        usable = self._set(config, self._content)
        # Damaged contents can give an empty cache and a warning.
        if self._content and (not usable or log.complaints("timing cache", said)):
            if self._from_file:
                self._say(
                    f"timing cache {self._path} is damaged, or of another version or GPU: "
                    "starting a new one"
                )
            self._content = b""
            usable = self._set(config, b"")
        if not usable:
            raise ExportError(f"TensorRT made no timing cache: {log.errors()}")
        self._from_file = False

    def collect(self, config: Any) -> None:
        """Take over what a build has timed."""
        cache = config.get_timing_cache()
        if cache is not None:
            self._content = bytes(cache.serialize())

    def store(self) -> None:
        """Write the file, if one was named."""
        if self._path is None or not self._content:
            return
        try:
            write_atomically(self._path, self._content)
        except OSError as error:
            raise InputError(f"--timing-cache {self._path} cannot be written: {error}") from None

    @staticmethod
    def _set(config: Any, content: bytes) -> bool:
        try:
            cache = config.create_timing_cache(content)
            return cache is not None and bool(config.set_timing_cache(cache, False))
        except (RuntimeError, ValueError, TypeError):
            return False


def make_logger(trt: Any, log: BuildLog) -> Any:
    """Make the logger that a builder and a parser take; all they say goes to `log`."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(severity.name, message)

    return Logger()


def make_monitor(trt: Any, stop: threading.Event, say: Callable[[str], None]) -> Any:
    """Make the monitor that says how far a long build is, and ends it once `stop` is set.

    If `say` raises, the build ends and the monitor has the exception as `error`: it must not unwind
    through C++.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases: dict[str, tuple[int, int]] = {}  # name -> steps done, steps
            self._lock = threading.Lock()
            self._said = time.monotonic()
            self.error: Exception | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                _, steps = self._phases.get(phase_name, (0, 0))
                self._phases[phase_name] = (step + 1, steps)
                now = time.monotonic()
                line = None
                if now - self._said >= PROGRESS_SECONDS:
                    self._said = now
                    phases = self._phases.items()
                    line = ", ".join(f"{name} {done}/{steps}" for name, (done, steps) in phases)
            if line is not None:
                try:
                    say(line)
                except Exception as error:
                    self.error = error
                    stop.set()
            return not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

    return Monitor()


def interruptible(build: Callable[[], Any], stop: threading.Event) -> Any:
    """Build in a thread: an interrupt reaches this one, and must not unwind through C++."""
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(build).result()
        except BaseException:
            stop.set()
            raise


def in_short(messages: list[str]) -> str:
    """Join the first message, which is often the cause, and the last few."""
    if not messages:
        return "it gave no reason"
    kept = messages
    if len(messages) > _SHOWN_ERRORS:
        kept = [messages[0], *messages[1 - _SHOWN_ERRORS :]]
    return "; ".join(" ".join(message.split()) for message in kept)
