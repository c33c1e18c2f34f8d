"""A disk that fails at every call in turn: each time the result is right, or what was is kept.

`python -m tests.hard.faults.starving --record FILE.json` does every call of an export, of a
training run and of a benchmark's record; the tests do a few of each.
"""

import argparse
import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.hard.faults import injection
from tests.hard.faults.injection import FULL, Calls
from tests.hard.faults.zygote import Ended, Zygote, zygote

REMEDY = re.compile(
    "make room|make a new|again|another path|put it back|look after|give |go on with|restore|"
    "smaller|free "
)
"""An error of ours says one of these."""

FAULTS: Mapping[str, tuple[int, int]] = {
    "full from one call on": (int(FULL), errno.ENOSPC),
    "one call fails": (int(Calls.WRITE | Calls.NAME), errno.EIO),
}


@dataclass(frozen=True)
class Job:
    """Work whose result lies in a folder where an earlier one lies.

    Attributes:
        work: Of `work.WORKS`.
        folder: Which fails; it holds the earlier result.
        arguments: Of the work.
        right: Tells whether the folder holds what an undisturbed work would have left.
        goes_on: Whether `right` goes on with what is there, which may be further than before.
    """

    work: str
    folder: Path
    arguments: Mapping[str, Any]
    right: Callable[[], bool]
    goes_on: bool = False


def starve(
    children: Zygote, job: Job, calls: int, error: int, most: int | None = None
) -> dict[str, Any]:
    """Do `job` with a fault at every one of its calls, or at `most` of them; give what was seen.

    `problems` are what must not be; all others are counts.
    """
    before = job.folder.with_name("before")
    shutil.copytree(job.folder, before)
    fault = {"folder": str(job.folder), "calls": calls, "error": error}
    whole = children.do(job.work, fault, **job.arguments)
    assert whole.status == 0, whole.told
    assert job.right()
    counted, problems = Counter[str](calls=whole.told["calls"]), list[str]()
    for moment in spread(whole.told["calls"], most):
        shutil.rmtree(job.folder)
        shutil.copytree(before, job.folder)
        ended = children.do(job.work, {**fault, "moment": moment}, **job.arguments)
        name, problem = _judged(ended, job, before)
        counted[name] += 1
        if problem:
            problems.append(f"call {moment}: {problem}")
    again = children.do(job.work, **job.arguments)
    if again.status or not job.right() or _stray(job.folder):
        problems.append(f"afterwards: {again.told} {_stray(job.folder)}")
    return {**counted, "problems": problems}


def spread(calls: int, most: int | None) -> Iterable[int]:
    """Give `most` of the numbers from 1 to `calls`, the first and the last two among them."""
    if most is None or most >= calls:
        return range(1, calls + 1)
    even = {1 + round(n * (calls - 1) / (most - 1)) for n in range(most)}
    return sorted(even | {calls - 1, calls})


def _judged(ended: Ended, job: Job, before: Path) -> tuple[str, str]:
    told = ended.told.get("message", "")
    if _stray(job.folder):
        return "left something", f"left {_stray(job.folder)}: {told}"
    if ended.status == 0:
        return "right all the same", "" if job.right() else "ended well with another result"
    if ended.status != 2:
        return "not our error", f"{ended.status} {ended.told.get('error')}: {told[-600:]}"
    if not REMEDY.search(told):
        return "no remedy", f"no remedy in {told!r}"
    if not job.goes_on and tree(before).items() <= tree(job.folder).items():
        return "told, the earlier result kept", ""
    # What was done before the fault may be there already, and be whole.
    return "told, gone on with", "" if job.right() else f"lost what was there: {told}"


def tree(folder: Path) -> dict[str, str]:
    """Hash every file of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _stray(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def export_job(children: Zygote, folder: Path) -> Job:
    """An export over an older bundle."""
    folder.mkdir()
    ckpt, bundle = folder / "tiny.pth", folder / "out" / "b"
    ask = {"ckpt": str(ckpt), "output": str(bundle)}
    children.do("write_checkpoint", path=str(ckpt))
    assert children.do("export", **ask).status == 0
    golden = children.do("ask", bundle=str(bundle)).told["masks"]
    return Job(
        *("export", bundle.parent, ask),
        lambda: children.do("ask", bundle=str(bundle)).told.get("masks") == golden,
    )


def training_job(children: Zygote, folder: Path) -> Job:
    """The second half of a run; whatever fails, going on gives the undisturbed end."""
    from cris_train.synthetic.refer_files import write_scenes
    from tests.helpers.training import content, same

    folder.mkdir()
    write_scenes(folder / "data", {"train": 6, "val": 2}, seed=1)
    data, output, whole = (folder / name for name in ("data", "parts", "whole"))
    ask = {"data": str(data), "output": str(output), "epochs": 4, "events": True}
    fault = {"folder": str(whole), "calls": int(FULL)}
    ended = children.do("run", fault, **{**ask, "output": str(whole)})
    assert ended.status == 0, ended.told
    # The earlier result: a run that a full disk ended after some two thirds.
    fault = {"folder": str(output), "calls": int(FULL), "moment": 2 * ended.told["calls"] // 3}
    assert children.do("run", fault, **ask).status == 2
    assert (output / "last.pth").exists()

    def right() -> bool:
        """Go on from what is there, on a disk with room, to the end."""
        return children.do("run", **ask).status == 0 and all(
            same(content(output / name), content(whole / name)) for name in ("last.pth", "best.pth")
        )

    return Job("run", output, ask, right, goes_on=True)


def record_job(children: Zygote, folder: Path) -> Job:
    """A benchmark's record over an older one."""
    folder.mkdir()
    ask = {"path": str(folder / "out" / "r.json")}
    assert children.do("write_bench_record", **ask).status == 0
    golden = tree(folder / "out")
    return Job("write_bench_record", folder / "out", ask, lambda: tree(folder / "out") == golden)


JOBS = {"export": export_job, "training": training_job, "record": record_job}


@contextmanager
def failing_zygote() -> Iterator[Zygote]:
    """Start a zygote whose children's calls can fail; needs a C compiler."""
    with tempfile.TemporaryDirectory(prefix="failing-") as folder:
        library = injection.build(Path(folder))
        assert library is not None, "a C compiler is needed: apt-get install gcc"
        with zygote(LD_PRELOAD=str(library)) as children:
            yield children


def main(argv: Sequence[str] | None = None) -> int:
    """Do all jobs with all faults, write the record. Exit 1 if there is a problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.hard.faults.starving")
    parser.add_argument("--most", type=int, help="calls of a job that fail, at most (all)")
    parser.add_argument("--record", type=Path, required=True)
    args = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    record: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "tests.hard.faults.starving", *given])
    }
    with tempfile.TemporaryDirectory(prefix="starving-") as folder, failing_zygote() as children:
        for name, make in JOBS.items():
            for number, (fault, (calls, error)) in enumerate(FAULTS.items()):
                began = time.monotonic()
                job = make(children, Path(folder) / f"{name}{number}")
                found = starve(children, job, calls, error, args.most)
                found["seconds"] = round(time.monotonic() - began, 1)
                record[f"{name}, {os.strerror(error)}, {fault}"] = found
                print(name, fault, json.dumps(found, indent=1), flush=True)
    record["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(any(part["problems"] for part in record.values() if isinstance(part, dict)))


if __name__ == "__main__":
    sys.exit(main())
