"""`python -m tests.hard.faults.kills --record FILE.json`: kill -9 at random moments, many times.

An export is killed anywhere between its first moment and its last, the name empty or taken by an
older bundle; then the next export has to work and to leave nothing but its bundle. A training run
is killed again and again until it gets to its end, which has to be the undisturbed run's to the
bit.
"""

import argparse
import json
import random
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.hard.faults.zygote import Zygote, zygote
from tests.helpers.training import content, rows, same

TRAINING = {"epochs": 8}  # 24 steps, 5 validations, a checkpoint every two steps


def kill_exports(children: Zygote, folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill `kills` exports; give what was counted."""
    folder.mkdir()
    moments, counted = random.Random(seed), Counter[str]()
    ckpt, bundle = folder / "tiny.pth", folder / "out" / "b"
    assert children.do("write_checkpoint", path=str(ckpt)).status == 0
    ask = {"ckpt": str(ckpt), "output": str(bundle)}
    whole = children.do("export", **ask)
    assert whole.status == 0, whole.told
    golden = children.do("ask", bundle=str(bundle)).told["masks"]
    while counted["killed"] < kills:
        replaces = moments.random() < 0.5
        if not replaces:
            shutil.rmtree(bundle)
        ended = children.kill_after(moments.uniform(0, whole.seconds), "export", **ask)
        counted["killed" if ended.killed else "done before"] += 1
        counted["over an older bundle"] += replaces and ended.killed
        counted["with a half-made folder left behind"] += any(bundle.parent.glob(".*"))
        if bundle.exists() or replaces:
            counted["half-made bundles"] += not _answers(children, bundle, golden)
        again = children.do("export", **ask)
        counted["next exports that failed"] += again.status != 0
        counted["next exports with other masks"] += not _answers(children, bundle, golden)
        stray = [path.name for path in bundle.parent.iterdir() if path != bundle]
        listed = {*again.told.get("sizes", ()), "manifest.json"}
        found = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
        counted["stray files"] += len(stray) + len(found ^ listed)
    return {"undisturbed_seconds": round(whole.seconds, 2), **counted}


def _answers(children: Zygote, bundle: Path, golden: str) -> bool:
    return children.do("ask", bundle=str(bundle)).told.get("masks") == golden


def kill_training(children: Zygote, folder: Path, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill training `kills` times, in as many runs as it takes; give what was counted."""
    from cris_train.synthetic.refer_files import write_scenes

    folder.mkdir()
    moments, counted = random.Random(seed), Counter[str]()
    write_scenes(folder / "data", {"train": 6, "val": 2}, seed=1)
    whole, output = folder / "whole", folder / "parts"
    ask = {"data": str(folder / "data"), "output": str(output), **TRAINING}
    first = children.do("run", **{**ask, "output": str(whole)})
    assert first.status == 0, first.told
    while counted["killed"] < kills:
        shutil.rmtree(output, ignore_errors=True)
        while True:
            # Half of what a run takes, at most: few get to their end without a kill.
            left = counted["killed"] < kills
            seconds = moments.uniform(0, first.seconds / 2)
            ended = (
                children.kill_after(seconds, "run", **ask) if left else children.do("run", **ask)
            )
            counted["killed"] += ended.killed
            counted["with a half-made file left behind"] += ended.killed and any(output.glob(".*"))
            if not ended.killed:
                break
        counted["runs"] += 1
        counted["runs that failed"] += ended.status != 0
        for name in ("last.pth", "best.pth"):
            equal = same(content(output / name), content(whole / name))
            counted[f"{name} equal to the bit"] += equal
            counted["other checkpoints"] += not equal
        counted["other logs"] += rows(output) != rows(whole)
        counted["stray files"] += len(_names(output) ^ _names(whole))
    return {"undisturbed_seconds": round(first.seconds, 2), **counted}


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


_STRAY = "stray files"
BAD = {
    "export": (
        *("half-made bundles", "next exports that failed", "next exports with other masks"),
        _STRAY,
    ),
    "training": ("runs that failed", "other checkpoints", "other logs", _STRAY),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run both, write the record. Exit 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.hard.faults.kills", description=__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=100, help="of an export, and of training (100)")
    add("--seed", type=int, default=0)
    add("--record", type=Path, required=True, help="JSON; the run is added to what is there")
    args = parser.parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    run: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "tests.hard.faults.kills", *given])
    }
    with tempfile.TemporaryDirectory(prefix="kills-") as folder, zygote() as children:
        for name, work in (("export", kill_exports), ("training", kill_training)):
            began = time.monotonic()
            run[name] = work(children, Path(folder) / name, args.kills, args.seed)
            run[name]["seconds"] = round(time.monotonic() - began, 1)
            print(name, run[name], flush=True)
    run["ended"] = datetime.now(UTC).isoformat(timespec="seconds")
    add_to(args.record, run)
    return int(any(run[name][bad] for name in ("export", "training") for bad in BAD[name]))


def add_to(path: Path, run: dict[str, Any]) -> None:
    """Add a run to a record, and bring its totals up to date."""
    runs = [*(json.loads(path.read_text())["runs"] if path.exists() else ()), run]
    totals = {
        name: {
            key: sum(each[name].get(key, 0) for each in runs)
            for key in sorted({key for each in runs for key in each[name]})
            if "seconds" not in key
        }
        for name in ("export", "training")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"totals": totals, "runs": runs}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
