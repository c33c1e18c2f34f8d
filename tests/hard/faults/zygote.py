"""Processes that begin with everything imported, so that a fault in each of many is cheap.

A process imports torch and traces a tiny model once, then forks a child for each piece of work. The
child may be killed, starved or lied to: it is the whole process of the work. The trace is kept, as
in most tests of exports; everything behind it is done each time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
NO_FAULT: Mapping[str, Any] = {}
HANGS = 300.0
"""Seconds; nothing here takes as long."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        status: Exit status; the negative number of a signal.
        seconds: From its start to its end.
        told: What the work gave; `error` and `message` name what it raised instead.
    """

    status: int
    seconds: float
    told: Mapping[str, Any]

    @property
    def killed(self) -> bool:
        """Whether it was killed."""
        return self.status == -signal.SIGKILL


class Zygote:
    """Starts children; one at a time is enough."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self._outcome = process, folder / "outcome.json"

    def start(self, work: str, fault: Mapping[str, Any] = NO_FAULT, **arguments: Any) -> int:
        """Begin `work` of `tests.hard.faults.work` in a child; give its process id."""
        self._outcome.unlink(missing_ok=True)
        self._begun = time.monotonic()
        asked = {"name": work, "arguments": arguments, "fault": dict(fault)}
        return int(self._ask({**asked, "to": str(self._outcome)}))

    def wait(self) -> Ended:
        """Wait for the child's end."""
        status = int(self._ask({"wait": True}))
        told = json.loads(self._outcome.read_text()) if self._outcome.exists() else {}
        return Ended(status, time.monotonic() - self._begun, told)

    def do(self, work: str, fault: Mapping[str, Any] = NO_FAULT, **arguments: Any) -> Ended:
        """Do a piece of work from its begin to its end."""
        self.start(work, fault, **arguments)
        return self.wait()

    def kill_after(self, seconds: float, work: str, **arguments: Any) -> Ended:
        """Kill a piece of work like `kill -9` after some time, unless it is done by then."""
        child = self.start(work, **arguments)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # not waited for yet, so the number is still its own
        return self.wait()

    def _ask(self, request: Mapping[str, Any]) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote has ended"
        return answer


@contextlib.contextmanager
def zygote(**environment: str) -> Iterator[Zygote]:
    """Start one; its children see `environment`, too."""
    with tempfile.TemporaryDirectory(prefix="zygote-") as folder:
        settings = {**os.environ, **ENVIRONMENT, "CRIS_DEPLOY_CACHE": folder, **environment}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hard.faults.zygote"],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
            **{"cwd": ROOT, "env": settings},
        )
        try:
            yield Zygote(process, Path(folder))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(HANGS)


def _serve() -> None:
    from tests.hard.faults import work  # takes seconds

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    child = 0
    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print(status, file=answers, flush=True)
            continue
        child = os.fork()
        if not child:
            signal.alarm(int(HANGS))
            work.do(**asked)
        print(child, file=answers, flush=True)


if __name__ == "__main__":
    _serve()
