"""A process that runs cases, and whose death is a finding: it leaves what it was doing in a file.

python -m tests.hard.fuzz.worker TARGET ENGINE CASES SEED FOLDER SCRATCH
"""

import contextlib
import gc
import hashlib
import mmap
import os
import random
import resource
import struct
import sys
import time
import traceback
from pathlib import Path
from types import FunctionType
from typing import Final

COUNTS: Final = ("cases", "returned", "refused", "foreign", "slow", "longest_ms")
HEAD: Final = struct.Struct(f"<{len(COUNTS) + 1}Q")  # the counts, and the length of the case
ROOM: Final = HEAD.size + 2**17
SLOW_SECONDS: Final = 2.0
"""Of the processor, not of the clock: other processes must not make a finding."""
MOST_MEMORY: Final = 6 * 2**30
"""Of addresses; torch and its libraries take half of them."""
LONGEST_MESSAGE: Final = 6000
"""An error is a sentence; longer ones repeat what was given."""


class Judge:
    """Runs cases and counts what became of them, in a file that outlives the process."""

    def __init__(self, folder: Path, name: str, scratch: Path) -> None:
        from tests.hard.fuzz.target import find

        self._findings = folder / "findings"
        self._findings.mkdir(parents=True, exist_ok=True)
        self._name = name
        self.target = find(name)
        self._run = self.target.make(scratch)
        with (folder / "state").open("r+b") as file:
            self._state = mmap.mmap(file.fileno(), ROOM)
        self._counts = [0] * len(COUNTS)
        # For the test of what runs this: a process that ends as a broken codec would end it.
        self._dies_at = int(os.environ.get("CRIS_FUZZ_DIES_AT", "-1"))

    def __call__(self, data: bytes) -> None:
        from cris_deploy.errors import CrisError

        counts = self._counts
        HEAD.pack_into(self._state, 0, *counts, len(data))
        self._state[HEAD.size : HEAD.size + len(data)] = data
        if self._dies_at == counts[0]:
            os.abort()
        began = time.process_time()
        try:
            self._run(data)
            counts[1] += 1
        except CrisError as error:
            counts[2] += 1
            if not 0 < len(str(error)) <= LONGEST_MESSAGE:
                counts[3] += 1
                self._keep("wordy", data, f"a message of {len(str(error))} characters")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is one
            counts[3] += 1
            self._keep("foreign", data, "".join(traceback.format_exception(error)))
        seconds = time.process_time() - began
        if seconds > SLOW_SECONDS:
            counts[4] += 1
            self._keep("slow", data, f"{seconds:.1f} s")
        counts[0] += 1
        counts[5] = max(counts[5], int(seconds * 1000))
        HEAD.pack_into(self._state, 0, *counts, 0)

    def _keep(self, kind: str, data: bytes, text: str) -> None:
        """Keep the first case of each kind and place."""
        places = [line for line in text.splitlines() if line.lstrip().startswith("File ")]
        place = hashlib.sha256("".join(places[-3:] or [text]).encode()).hexdigest()[:10]
        path = self._findings / f"{kind}-{place}"
        if not path.exists():
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(text[-6000:], errors="replace")


def plain(judge: Judge, cases: int, seed: int) -> None:
    """Cases from the corpus by chance: no feedback, no package, the same ones for a seed."""
    corpus = judge.target.corpus or [b""]
    chance = random.Random(f"{judge.target.name} {seed}")
    for number in range(cases):
        data = corpus[number] if number < len(corpus) else _mutated(corpus, chance)
        judge(data[: judge.target.longest])


def _mutated(corpus: list[bytes], chance: random.Random) -> bytes:
    from tests.hard.fuzz.draw import Draw, damaged

    kind = chance.random()
    if kind < 0.15:
        return chance.randbytes(chance.randrange(200))
    data = chance.choice(corpus)
    if kind < 0.3:
        other = chance.choice(corpus)
        return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]
    return damaged(data, Draw(chance.randbytes(64)))


def guided(folder: Path, name: str, scratch: Path, cases: int, seed: int) -> None:
    """Cases that atheris (libFuzzer) makes, guided by the branches they reach. Ends the process."""
    import atheris

    judge = Judge(folder, name, scratch)
    # Not at the import: the loader of an editable installation hides its code from atheris.
    for function in _functions(judge.target.reader):
        atheris.instrument_func(function)
    from tests.hard.fuzz.target import CORPUS

    grown = folder / "corpus"
    grown.mkdir(exist_ok=True)
    arguments = [f"-runs={cases}", f"-seed={seed + 1}", f"-max_len={judge.target.longest}"]
    # Too slow and too large is ours to find and to count; libFuzzer ends at the first.
    arguments += ["-timeout=1000000", "-rss_limit_mb=6000", "-print_final_stats=0", "-verbosity=0"]
    atheris.Setup(["fuzz", *arguments, str(grown), str(CORPUS / name)], judge)
    atheris.Fuzz()


def _functions(modules: tuple[str, ...]) -> list[FunctionType]:
    """All functions of these modules, methods and decorated ones, too."""
    return [
        found
        for found in gc.get_objects()
        if isinstance(found, FunctionType) and found.__globals__.get("__name__") in modules
    ]


def main() -> None:
    name, engine, cases, seed, place, memory = sys.argv[1:]
    os.environ["OPENCV_LOG_LEVEL"] = "OFF"
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(place)
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    # Codecs speak of every broken file; what they say is no finding.
    quiet = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.dup2(quiet, 1)
        if engine == "guided":
            os.dup2(quiet, 2)
    if engine == "guided":
        guided(folder, name, Path(memory), int(cases), int(seed))
    else:
        judge = Judge(folder, name, Path(memory))
        os.dup2(quiet, 2)
        plain(judge, int(cases), int(seed))


if __name__ == "__main__":
    main()
