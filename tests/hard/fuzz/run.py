"""Runs a target in processes that may die, and adds up what they found."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tests.hard.fuzz.worker import COUNTS, HEAD, ROOM

CHUNK: Final = 100_000
"""Cases of one process: what leaks in it ends with it, and a run goes on from there."""
STUCK_SECONDS: Final = 120.0
"""Of the clock, without a case that ends: far more than another process can take away."""
MOST_DEATHS: Final = 20


@dataclass
class Tally:
    """What a target's runs came to.

    `problems` has a name of a file for each finding, `sources` the cases of each commit.
    """

    target: str
    engine: str = ""
    cases: int = 0
    returned: int = 0
    refused: int = 0
    foreign: int = 0
    slow: int = 0
    crashes: int = 0
    hangs: int = 0
    longest_ms: int = 0
    chunks: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not (self.foreign or self.slow or self.crashes or self.hangs)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def engine_here() -> str:
    """`guided` where atheris is installed, else `plain`."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        return "plain"
    return "guided"


def chunks(
    tally: Tally,
    folder: Path,
    *,
    cases: int,
    seed: int,
    engine: str,
    until: float | None = None,
    pause: Path | None = None,
) -> Iterator[Tally]:
    """Run up to `cases` cases in all, going on from where the tally is; gives it after each chunk.

    Args:
        tally: Of the runs before.
        folder: Findings, the grown corpus and scratch files go below it.
        cases: All in all.
        seed: Of the first chunk; each has the next.
        engine: `guided` or `plain`.
        until: `time.monotonic()` after which no chunk begins, and none goes on.
        pause: While there is such a file, processes are stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tally.engine = engine
    deaths = 0
    while tally.cases < cases and deaths < MOST_DEATHS:
        if until is not None and time.monotonic() >= until:
            return
        ran, before = source(), tally.cases
        with scratch_folder() as scratch:
            count, number = min(CHUNK, cases - before), seed + tally.chunks
            deaths += _chunk(tally, folder, scratch, count, number, until, pause)
        tally.chunks += 1
        tally.sources[ran] = tally.sources.get(ran, 0) + tally.cases - before
        findings = folder / "findings"
        tally.problems = sorted(p.name for p in findings.iterdir() if p.suffix != ".txt")
        yield tally


def _chunk(
    tally: Tally,
    folder: Path,
    scratch: Path,
    cases: int,
    seed: int,
    until: float | None,
    pause: Path | None,
) -> bool:
    """Run one process to its end; True if it died or had to be ended."""
    state = folder / "state"
    state.write_bytes(bytes(ROOM))
    began = time.monotonic()
    command = [sys.executable, "-m", "tests.hard.fuzz.worker", tally.target, tally.engine]
    worker = subprocess.Popen([*command, str(cases), str(seed), str(folder), str(scratch)])
    stuck = False
    last, since = -1, time.monotonic()
    while worker.poll() is None:
        if held := _hold(worker, pause):
            began, since = began + held, since + held
        try:
            worker.wait(0.2)
        except subprocess.TimeoutExpired:
            now = time.monotonic()
            done = _read(state)[0][0]
            if done != last:
                last, since = done, now
            stuck = now - since > STUCK_SECONDS
            if stuck or (until is not None and now > until):
                worker.kill()
                worker.wait()
    counts, case = _read(state)
    found = dict(zip(COUNTS, counts, strict=True))
    tally.seconds = round(tally.seconds + time.monotonic() - began, 1)
    for name in ("cases", "returned", "refused", "foreign", "slow"):
        setattr(tally, name, getattr(tally, name) + found[name])
    tally.longest_ms = max(tally.longest_ms, found["longest_ms"])
    ended = found["cases"] >= cases or (until is not None and time.monotonic() > until)
    if ended and not stuck:
        return False
    kind = "hang" if stuck else "crash"
    tally.hangs += stuck
    tally.crashes += not stuck
    findings = folder / "findings"
    findings.mkdir(exist_ok=True)
    path = findings / f"{kind}-{seed}-{found['cases']}"
    path.write_bytes(case)
    heard = folder / "said"
    said = heard.read_text(errors="replace")[-3000:] if heard.exists() else ""
    path.with_suffix(".txt").write_text(f"exit status {worker.returncode}\n{said}")
    return True


def _hold(worker: subprocess.Popen[bytes], pause: Path | None) -> float:
    """Stop a process while the file is there; seconds that it was."""
    if pause is None or not pause.exists():
        return 0.0
    began = time.monotonic()
    worker.send_signal(signal.SIGSTOP)
    while pause.exists():
        time.sleep(1)
    worker.send_signal(signal.SIGCONT)
    return time.monotonic() - began


def source() -> str:
    """The commit that runs, with `+` where readers or targets differ from it; empty without git."""
    root = Path(__file__).parents[3]

    def told(*command: str) -> str:
        ended = subprocess.run(["git", *command], capture_output=True, text=True, cwd=root)
        return ended.stdout.strip()

    changed = told("status", "--porcelain", "cris_deploy", "train", "kernels", "tests/hard/fuzz")
    return told("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for a target's files, in memory where the system has a place for that."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def _read(state: Path) -> tuple[tuple[int, ...], bytes]:
    data = state.read_bytes()
    *counts, length = HEAD.unpack_from(data)
    return tuple(counts), data[HEAD.size : HEAD.size + length]


def machine() -> dict[str, str]:
    """What the cases ran on."""
    from importlib.metadata import version

    packages = ("atheris", "msgspec", "numpy", "opencv-python-headless", "pillow", "tokenizers")
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in (*packages, "torch", "pycocotools", "starlette"):
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            found[name] = "not installed"
    found["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    return found
