"""`python -m tests.hard.concurrency.interrupts BUNDLE COUNT`: a caller who is interrupted.

SIGALRM raises KeyboardInterrupt at random moments of every kind of call, as Ctrl-C does. After each
interrupt the same engine gives its golden masks, from this thread and from another; nothing hangs
(faulthandler ends what does). The engine is used by an undisturbed thread meanwhile.
"""

import faulthandler
import json
import random
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import numpy as np

from cris_deploy import Batcher, Engine

HANGS = 60
WORDS = ["a", "bc"]


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def by_interrupt(error: BaseException) -> bool:
    """Whether this is how an interrupt ends a call."""
    # RuntimeError: Python's own Condition.wait, between giving its lock away and taking it back.
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, RuntimeError) and isinstance(error.__context__, KeyboardInterrupt)
    )


def interrupted(bundle: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Interrupt `count` calls; give what was counted. Exits by faulthandler if anything hangs."""
    drawn, counted = random.Random(seed), Counter[str]()
    rng = np.random.default_rng(seed)
    pictures = [rng.integers(0, 256, (40, 50, 3), np.uint8) for _ in range(3)]
    options = {"backend": "onnxruntime", "threads": 1, "image_cache": 1, "text_cache": 1}
    enough = threading.Event()
    with Engine(bundle, **options) as engine, Batcher(engine) as batcher:
        golden = [[found.mask for found in engine.segment(one, WORDS)] for one in pictures]

        def check(picture: int) -> bool:
            masks = [found.mask for found in engine.segment(pictures[picture], WORDS)]
            return all(map(np.array_equal, masks, golden[picture]))

        def undisturbed() -> int:
            wrong = 0
            for number in range(10**9):
                if enough.is_set():
                    break
                wrong += not check(number % len(pictures))
            return wrong

        def ask(kind: int, picture: int) -> None:
            if kind == 0:
                engine.segment(pictures[picture], WORDS)
            elif kind == 1:
                engine.encode_image(pictures[picture]).segment(WORDS[0])
            elif kind == 2:
                list(engine.stream([(one, WORDS[0]) for one in pictures], batch_size=2))
            else:
                batcher.submit(pictures[picture], WORDS).result(HANGS)

        signal.signal(signal.SIGALRM, _interrupt)
        with ThreadPoolExecutor(2) as pool:
            beside = pool.submit(undisturbed)
            try:
                while counted["interrupted"] < count:
                    faulthandler.dump_traceback_later(HANGS, exit=True)
                    picture = drawn.randrange(len(pictures))
                    try:
                        signal.setitimer(signal.ITIMER_REAL, drawn.uniform(1e-5, 5e-3))
                        for _ in range(1000):
                            ask(drawn.randrange(4), picture)
                    except (KeyboardInterrupt, RuntimeError) as error:
                        if not by_interrupt(error):
                            raise
                        counted["interrupted"] += 1
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                    for other in range(len(pictures)):
                        counted["wrong masks after"] += not check(other)
                        counted["wrong masks elsewhere"] += not pool.submit(check, other).result()
            finally:
                enough.set()
            counted["wrong masks beside"] += beside.result()
            faulthandler.cancel_dump_traceback_later()
    return dict(counted)


if __name__ == "__main__":
    print(json.dumps(interrupted(Path(sys.argv[1]), int(sys.argv[2]))))
