"""Fuzz readers and write down what came of it.

    python -m tests.hard.fuzz --target manifests --cases 1000000 --record FILE
    python -m tests.hard.fuzz --minutes 10

A run goes on from what its record says was done. While the file named by --pause exists, it is
stopped.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cris_deploy.files import write_whole
from tests.hard.fuzz import native
from tests.hard.fuzz.reach import GENERATED
from tests.hard.fuzz.run import Tally, chunks, engine_here, machine
from tests.hard.fuzz.target import NAMES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build/fuzz"


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 if nothing was found, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.hard.fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=NAMES, help="all if not given")
    parser.add_argument("--cases", type=int, help="of each target, earlier ones of the record too")
    parser.add_argument("--minutes", type=float, help="for all targets together, in equal shares")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("guided", "plain"), default=engine_here())
    parser.add_argument("--record", type=Path, help="JSON that is read and written")
    parser.add_argument("--pause", type=Path, help="a file; while it is there, nothing runs")
    parser.add_argument("--reach", action="store_true", help="measure the readers' branches, too")
    asked = parser.parse_args(argv)
    if (asked.cases is None) == (asked.minutes is None):
        parser.error("give --cases or --minutes")
    names = asked.target or list(NAMES)
    # The kernels in C++ are one more, where nobody asked for some of the readers.
    native_too = asked.minutes is not None and not asked.target
    share = None if asked.minutes is None else 60 * asked.minutes / (len(names) + native_too)
    clean = True
    for name in names:
        tally = _earlier(asked.record, name)
        until = None if share is None else time.monotonic() + share
        cases = asked.cases if asked.cases is not None else 2**62
        for _ in chunks(
            tally,
            FOLDER / name,
            cases=cases,
            seed=asked.seed,
            engine=asked.engine,
            until=until,
            pause=asked.pause,
        ):
            _say(tally)
            _record(asked.record, name, tally.plain())
        if asked.reach:
            reached = reach(name)
            print(f"{name}: {reached['percent']} % of {reached['branches']} branches", flush=True)
            _record(asked.record, name, {"reach": reached})
        clean = clean and tally.clean
    if native_too and share is not None:
        clean = native.main(["--minutes", str(share / 60)]) == 0 and clean
    return 0 if clean else 1


def reach(name: str, cases: int = GENERATED) -> dict[str, Any]:
    """Branches of a reader that its corpora and some plain cases go through."""
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "reach.json"
    command = [sys.executable, "-m", "tests.hard.fuzz.reach", name, str(folder), str(cases)]
    subprocess.run([*command, str(out)], check=True, cwd=ROOT)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _earlier(record: Path | None, name: str) -> Tally:
    known = _content(record)["targets"].get(name, {})
    fields = Tally.__dataclass_fields__
    return Tally(**{"target": name, **{k: v for k, v in known.items() if k in fields}})


def _content(record: Path | None) -> dict[str, Any]:
    if record is None or not record.exists():
        return {"command": "", "machine": {}, "targets": {}}
    found: dict[str, Any] = json.loads(record.read_text())
    return found


def _record(record: Path | None, name: str, found: dict[str, Any]) -> None:
    if record is None:
        return
    content = _content(record)
    content["command"] = "python -m tests.hard.fuzz --cases 1000000 --reach --record RECORD"
    content["machine"] = machine()
    content["targets"].setdefault(name, {}).update(found)
    content["targets"] = {key: content["targets"][key] for key in sorted(content["targets"])}
    write_whole(record, (json.dumps(content, indent=1) + "\n").encode())


def _say(tally: Tally) -> None:
    print(
        f"{tally.target}: {tally.cases:,} cases ({tally.engine}), {tally.refused:,} refused, "
        f"{tally.crashes} crashes, {tally.hangs + tally.slow} hangs, {tally.foreign} foreign, "
        f"longest {tally.longest_ms} ms, {tally.seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
