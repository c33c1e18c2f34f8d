"""`python -m tests.hard.soak --minutes 120 --record FILE.json`: a server under mixed load."""

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.hard.soak.load import KEPT_IMAGES, Load, pictures
from tests.hard.soak.plot import draw
from tests.hard.soak.watch import SETTLING, Watch, faults, judge, rows
from tests.helpers.server import serving

SCENE = Path(__file__).parents[3] / "train/demo/scene.png"
BURST_EVERY = 60.0


def soak(
    bundle: Path,
    seconds: float,
    *,
    rate: float = 1.0,
    every: float = 20.0,
    settling: float = SETTLING,
    pause: Path | None = None,
) -> dict[str, Any]:
    """Ask a server of `bundle` for `seconds`, and give the record.

    Args:
        rate: Requests asked a second at most, one after the other; a burst comes each minute.
        every: Seconds between samples.
        settling: Seconds after which nothing may grow.
        pause: While this file exists nothing is asked.
    """
    known = pictures(bundle, SCENE)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        log = Path(folder) / "log"
        with serving(bundle, log, "--kept-images", str(KEPT_IMAGES)) as server:
            load, watch = Load(server.url, known), Watch(server.process.pid)
            with suppress(KeyboardInterrupt):  # what there is by then is recorded
                _drive(load, watch, seconds, rate, every, pause)
            load.close()
            judged = judge(watch.samples, settling)
            code = server.stop()
        lines = log.read_text(encoding="utf-8").splitlines()
    if code:
        load.failures.append(f"the server ended with {code}")
    last = watch.samples[-1]
    return {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}",
        "seconds": last.seconds,
        "seconds_paused": round(sum(every for sample in watch.samples if sample.paused), 1),
        "requests": load.done.total(),
        "requests_by_kind": dict(sorted(load.done.items())),
        "masks_not_equal_to_the_bit": load.inexact,
        "least_iou": round(load.least_iou, 6),
        "failures": load.failures,
        "server_errors_logged": sum('"level": "error"' in line.lower() for line in lines),
        "server_cpu_share": round(last.cpu / last.seconds, 4),
        "judged": judged,
        "missed": faults(judged, load.failures),
        "samples": rows(watch.samples),
    }


def _drive(
    load: Load, watch: Watch, seconds: float, rate: float, every: float, pause: Path | None
) -> None:
    began = time.monotonic()
    sampled, burst, taken = began, began, []
    while (now := time.monotonic()) < began + seconds:
        paused = pause is not None and pause.exists()
        if not paused:
            if now >= burst + min(BURST_EVERY, seconds / 2):
                load.burst()
                burst = now
            asked = time.monotonic()
            load.once()
            taken.append(1000 * (time.monotonic() - asked))
        if now >= sampled + every:
            watch.take(taken, paused=paused)
            sampled, taken = now, []
        time.sleep(max(0.0, now + 1 / rate - time.monotonic()))
    watch.take(taken, paused=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write the record and its plot. Exit 1 if a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hard.soak", description=__doc__)
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="what `make demo` exports")
    add("--minutes", type=float, default=120.0)
    add("--rate", type=float, default=1.0, help="requests a second at most (1)")
    add("--pause", type=Path, help="nothing is asked while this file exists")
    add("--record", type=Path, required=True, help="JSON; the plot is written beside it")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    record = {
        "command": shlex.join(["python", "-m", "tests.hard.soak", *(argv or sys.argv[1:])]),
        **soak(args.bundle, 60 * args.minutes, rate=args.rate, pause=args.pause),
    }
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draw(record, args.record.with_suffix(".svg"))
    for sentence in record["missed"] or ["every bar was met"]:
        print(sentence)
    return 1 if record["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
