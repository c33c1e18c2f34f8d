"""What a process holds, sampled, and what may be said of the samples at the end."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

MOST_GROWTH = 0.02
SETTLING = 600.0
"""Seconds after which nothing may grow: by then pools have their threads, caches their rows."""
SHARE = 10
"""Growth is of the last tenth of what is left against the first tenth of it."""
LOOKS, BETWEEN_LOOKS = 5, 0.2
"""How often descriptors are counted for a sample, and seconds between: the least counts."""


@dataclass(frozen=True)
class Sample:
    """A server between two requests, and the requests since the last sample.

    Attributes:
        seconds: Since the start.
        rss: Bytes that are in memory.
        uss: Bytes of them that are its own.
        descriptors: Open ones, connections among them, that stay open for a moment: the last
            request's connection may still be closing.
        threads: Of it.
        cpu: Seconds of processors that it took since its start.
        requests: Asked since the last sample.
        p50: Milliseconds of them, None if there were none; so are p95 and most.
        p95: Of them.
        most: Of them.
        paused: Whether the load stood still.
    """

    seconds: float
    rss: int
    uss: int
    descriptors: int
    threads: int
    cpu: float
    requests: int
    p50: float | None
    p95: float | None
    most: float | None
    paused: bool


class Watch:
    """Takes samples of a process."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._began = time.monotonic()
        self.samples: list[Sample] = []

    def take(self, milliseconds: Sequence[float], *, paused: bool) -> Sample:
        """Take one, with the latencies since the last."""
        with self._process.oneshot():
            memory, times = self._process.memory_full_info(), self._process.cpu_times()
            threads = self._process.num_threads()
        ordered = sorted(milliseconds)
        parts = statistics.quantiles(ordered, n=20) if len(ordered) > 1 else ordered * 19
        sample = Sample(
            seconds=round(time.monotonic() - self._began, 1),
            rss=memory.rss,
            uss=memory.uss,
            descriptors=self._kept_descriptors(),
            threads=threads,
            cpu=round(times.user + times.system, 2),
            requests=len(ordered),
            p50=round(parts[9], 1) if parts else None,
            p95=round(parts[18], 1) if parts else None,
            most=round(ordered[-1], 1) if ordered else None,
            paused=paused,
        )
        self.samples.append(sample)
        return sample

    def _kept_descriptors(self) -> int:
        """What leaks is there at every look; what is about to be closed is not."""
        least: int = self._process.num_fds()
        for _ in range(LOOKS - 1):
            time.sleep(BETWEEN_LOOKS)
            least = min(least, self._process.num_fds())
        return least


def judge(samples: Sequence[Sample], settling: float = SETTLING) -> dict[str, Any]:
    """Give what grew between the first and the last tenth of the time after `settling` seconds.

    Memory is compared by the median of such a tenth, descriptors and threads by their greatest
    number. Without two tenths of at least one sample nothing is said.
    """
    settled = [sample for sample in samples if sample.seconds >= settling]
    size = len(settled) // SHARE
    if not size:
        return {"settling_seconds": settling, "said": "too short to say what grows"}
    first, last = settled[:size], settled[-size:]
    rss = [statistics.median(sample.rss for sample in part) for part in (first, last)]
    uss = [statistics.median(sample.uss for sample in part) for part in (first, last)]
    at_most = {
        name: [max(getattr(sample, name) for sample in part) for part in (first, last)]
        for name in ("descriptors", "threads")
    }
    return {
        "settling_seconds": settling,
        "samples_compared": size,
        "rss_bytes": rss,
        "rss_growth": round(rss[1] / rss[0] - 1, 5),
        "uss_bytes": uss,
        "uss_growth": round(uss[1] / uss[0] - 1, 5),
        **at_most,
    }


def faults(judged: Mapping[str, Any], failures: Sequence[str]) -> list[str]:
    """Name the bars that were missed."""
    missed = []
    if failures:
        missed.append(f"{len(failures)} requests failed")
    # Pages that it shares with files come and go with other processes and hide what its own do.
    for key, label in (("rss_growth", "memory"), ("uss_growth", "memory of its own")):
        if judged.get(key, 0.0) >= MOST_GROWTH:
            missed.append(f"{label} grew by {judged[key]:.1%}")
    for name in ("descriptors", "threads"):
        before, after = judged.get(name, (0, 0))
        if after > before:
            missed.append(f"{name}: {after} after {before}")
    return missed


def rows(samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Give the samples as columns."""
    dictionaries = [asdict(sample) for sample in samples]
    return {name: [row[name] for row in dictionaries] for name in dictionaries[0]}
