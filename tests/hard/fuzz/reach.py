"""Which branches of a reader its cases go through, by coverage.py.

python -m tests.hard.fuzz.reach TARGET FOLDER CASES OUT
"""

import contextlib
import json
import os
import random
import sys
from pathlib import Path
from typing import Any, Final

GENERATED: Final = 2000


def main() -> None:
    """Run the corpora and some plain cases; write what was reached."""
    name, place, cases, out = sys.argv[1:]
    import coverage

    folder = Path(place)
    os.environ["OPENCV_LOG_LEVEL"] = "OFF"
    quiet = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(quiet, 2)
    # The context of Python's monitoring costs least; branches are counted from the import on.
    measured = coverage.Coverage(
        data_file=str(folder / "coverage"),
        branch=True,
        source=["cris_deploy", "cris_train"],
        config_file=False,
    )
    measured.start()
    from tests.hard.fuzz.run import scratch_folder
    from tests.hard.fuzz.target import find
    from tests.hard.fuzz.worker import _mutated

    target = find(name)
    corpus = target.corpus
    chance = random.Random(f"{name} reach")
    made = (_mutated(corpus or [b""], chance) for _ in range(int(cases)))
    with scratch_folder() as scratch:
        run = target.make(scratch)
        for data in (*corpus, *made):
            with contextlib.suppress(Exception):  # what it is was judged before
                run(data[: target.longest])
    measured.stop()
    measured.save()
    report = folder / "coverage.json"
    measured.json_report(outfile=str(report))
    Path(out).write_text(json.dumps(branches(json.loads(report.read_text()), target)))


def branches(report: dict[str, Any], target: Any) -> dict[str, Any]:
    """Branches of the reader's functions: how many there are, how many were gone, and the rest."""
    total = gone = 0
    missing: list[str] = []
    for module in target.reader:
        (file,) = (
            found
            for path, found in report["files"].items()
            if path.endswith(f"{module.replace('.', '/')}.py")
        )
        for function, found in file["functions"].items():
            if f"{module}:{function}" in target.others:
                continue
            total += found["summary"]["num_branches"]
            gone += found["summary"]["covered_branches"]
            missing += [
                f"{module}:{function} {a}->{'exit' if b < 0 else b}"
                for a, b in found["missing_branches"]
            ]
    percent = round(100 * gone / total, 1) if total else 100.0
    return {
        "branches": total,
        "reached": gone,
        "percent": percent,
        "missing": missing,
        "of": list(target.reader),
        "without": target.others,
    }


if __name__ == "__main__":
    main()
