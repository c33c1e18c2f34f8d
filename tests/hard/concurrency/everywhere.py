"""`python -m tests.hard.concurrency.everywhere BUNDLE`: an interrupt after every single step.

Python runs a signal's handler when a function begins and when a C function has returned. A profile
function raises KeyboardInterrupt at each of these places in turn, once for every event of every
kind of call, in the thread that calls. After each the same engine and batcher give the golden
masks, or faulthandler ends the process. Random signals (interrupts.py) meet such a place once in
thousands.
"""

import faulthandler
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

from cris_deploy import Batcher, Engine
from tests.hard.concurrency.interrupts import by_interrupt

HANGS = 20
WORDS = ["a", "bc"]


def interrupted(call: Callable[[], object], at: int) -> bool:
    """Whether `call` was interrupted at its event number `at`, or had ended before."""
    left = at

    def profile(_: FrameType, event: str, __: Any) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        call()
    except (KeyboardInterrupt, RuntimeError) as error:
        if not by_interrupt(error):
            raise
        return True
    finally:
        sys.setprofile(None)
    return False


def everywhere(bundle: Path, folder: Path) -> dict[str, int]:
    """Interrupt each kind of call at all its events; give their numbers and the wrong masks."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(file := folder / "picture.png")
    pairs = [(file, word) for word in WORDS]
    counted = Counter[str]()
    options = {"backend": "onnxruntime", "threads": 1, "image_cache": 1, "text_cache": 1}
    with Engine(bundle, **options) as engine, Batcher(engine) as batcher:
        golden = [found.mask for found in engine.segment(pixels, WORDS)]
        calls: dict[str, Callable[[], object]] = {
            "segment": lambda: engine.segment(pixels, WORDS),
            "scene": lambda: engine.encode_image(pixels).segment(WORDS),
            "stream": lambda: list(
                engine.stream([(file, word) for word in WORDS], decode_threads=1)
            ),
            "batcher": lambda: batcher.submit(pixels, WORDS).result(HANGS),
        }
        for kind, call in calls.items():
            while True:
                faulthandler.dump_traceback_later(HANGS, exit=True)
                if not interrupted(call, counted[kind]):
                    break
                counted[kind] += 1
                for found in (
                    engine.segment(pixels, WORDS),
                    list(engine.stream(pairs, decode_threads=1)),
                    batcher.submit(pixels, WORDS).result(HANGS),
                ):
                    masks = [each.mask for each in found]
                    counted["wrong masks"] += not all(map(np.array_equal, masks, golden))
        faulthandler.cancel_dump_traceback_later()
    return dict(counted)


if __name__ == "__main__":
    print(json.dumps(everywhere(Path(sys.argv[1]), Path(sys.argv[2]))))
