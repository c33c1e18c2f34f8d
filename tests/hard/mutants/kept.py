"""Mutants, the tests that are to catch them, and what became of each, as JSON that goes on."""

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from cris_deploy.files import write_whole

ROOT: Final = Path(__file__).parents[3]
LIMIT_SECONDS: Final = 300
"""Of the clock, for all tests of a mutant: one that never ends is caught."""


def tested(install: Callable[[], None], tests: tuple[str, ...]) -> str:
    """Run tests in a fork where `install` has put the mutant: "caught", "ended" or "survived"."""
    child = os.fork()
    if child == 0:
        os.setsid()
        signal.alarm(LIMIT_SECONDS)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        status = 3
        try:
            import pytest

            install()
            with tempfile.TemporaryDirectory() as folder:
                options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
                options += ["--basetemp", f"{folder}/t", "--hypothesis-seed=0"]
                status = int(pytest.main([*options, *(str(ROOT / test) for test in tests)]))
        except BaseException:
            status = 3
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "ended"  # by the time limit, or by a crash
    return "survived" if os.WEXITSTATUS(status) == 0 else "caught"


def main(
    key: str,
    about: str | None,
    argv: Sequence[str] | None,
    make: Callable[[], Iterable[tuple[str, Callable[[], str]]]],
    large: Iterable[str],
) -> None:
    """Parse what a command of mutants is asked for, and try them in an order by chance.

    Args:
        key: Under which they are in the record; the command's name, too.
        about: What the command says of itself.
        argv: Arguments; None for the process's.
        make: Gives each mutant's name, which others may have, and what tries it.
        large: Modules that are not ours, to be imported before the first fork.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tests.hard.mutants.{key}", description=about)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--most", type=int)
    parser.add_argument("--pause", type=Path)
    parser.add_argument("--again", action="store_true", help="those that survived, too")
    asked = parser.parse_args(argv)
    found: dict[str, Callable[[], str]] = {}
    for name, trial in make():
        while name in found:
            name += " (again)"
        found[name] = trial
    for module in large:
        importlib.import_module(module)
    for module in [name for name in sys.modules if name.startswith(("cris_", "tests.helpers"))]:
        del sys.modules[module]  # to be imported again, with the mutant among them
    names = list(found)
    random.Random(0).shuffle(names)  # so that a part of them says something of all
    shuffled = {name: found[name] for name in names}
    run(asked.record, key, shuffled, most=asked.most, pause=asked.pause, again=asked.again)


def run(
    record: Path,
    key: str,
    found: dict[str, Callable[[], str]],
    *,
    most: int | None,
    pause: Path | None,
    again: bool = False,
) -> None:
    """Try the mutants that the record does not have yet, in the order given.

    Args:
        record: JSON file.
        key: Under which their results are in it.
        found: Name of a mutant -> what tries it.
        most: How many at most; None for all.
        pause: While this file is there, none begins.
        again: Try those that survived once more: there are new tests.
    """
    content: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    part = content.setdefault(key, {"mutants": 0, "results": {}, "reasons": {}})
    part["mutants"] = len(found)
    # What the source does not have any more is no mutant of it.
    results = {name: result for name, result in part["results"].items() if name in found}
    if again:
        results = {name: result for name, result in results.items() if result != "survived"}
    part["results"] = results
    part["reasons"] = {name: why for name, why in part["reasons"].items() if name in found}
    left = [name for name in found if name not in results]
    for number, name in enumerate(left[:most]):
        while pause is not None and pause.exists():
            time.sleep(5)
        results[name] = found[name]()
        print(f"{number + 1} of {len(left)}: {results[name]}: {name}", flush=True)
        if number % 10 == 9:
            _write(record, content, part)
    _write(record, content, part)
    print(key, part["summary"], file=sys.stderr)


def _write(record: Path, content: dict[str, Any], part: dict[str, Any]) -> None:
    results = part["results"]
    counts = dict.fromkeys(("caught", "ended", "survived", "same code", "no build"), 0)
    for result in results.values():
        counts[result] += 1
    caught = counts["caught"] + counts["ended"]
    tried = caught + counts["survived"]
    part["summary"] = {
        **counts,
        "tried": tried,
        "caught_percent": round(100 * caught / tried, 1) if tried else None,
    }
    survivors = {name for name, result in results.items() if result == "survived"}
    # A reason stays while its mutant waits to be tried again.
    waiting = part["reasons"].keys() - results.keys()
    part["reasons"] = {name: part["reasons"].get(name, "") for name in sorted(survivors | waiting)}
    write_whole(record, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
