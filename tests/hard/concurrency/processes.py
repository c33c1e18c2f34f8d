"""`python -m tests.hard.concurrency.processes BUNDLE BACKEND`: fork and spawn after use.

A child that inherits a used engine either gives the golden masks or is told to make its own; one
that makes its own, forked or spawned, gives them. Nothing hangs.
"""

import json
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cris_deploy import Engine
from cris_deploy.errors import CrisError

HANGS = 60
# The mask is large enough for several threads of the kernels' own pool.
PICTURE = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
WORDS = ["a", "bc"]


def masks(engine: Engine) -> bytes:
    """The masks of an uncached picture, packed."""
    found = engine.segment(PICTURE, WORDS)
    return b"".join(np.packbits(each.mask).tobytes() for each in found)


def make(bundle: Path, backend: str) -> Engine:
    """An engine with a pool of threads."""
    return Engine(bundle, backend=backend, threads=2, cache=False)


def own(bundle: Path, backend: str) -> bytes:
    """In a child: an engine of its own."""
    with make(bundle, backend) as engine:
        return masks(engine)


def _child(to: Connection, work: Callable[..., bytes], *arguments: object) -> None:
    try:
        to.send(work(*arguments))
    except CrisError as error:
        to.send(str(error))
    to.close()


def ask(method: str, work: Callable[..., bytes], *arguments: object) -> bytes | str | None:
    """Do a work in a child: its masks, what it was told, or None if it hangs or dies."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(there, work, *arguments))
    child.start()
    there.close()
    try:
        return here.recv() if here.poll(HANGS) else None
    except EOFError:
        return None
    finally:
        child.kill()
        child.join()


def outcomes(bundle: Path, backend: str) -> dict[str, str]:
    """What children of each kind give: "right", "wrong", "hangs" or what they are told."""
    with make(bundle, backend) as engine:
        golden = masks(engine)
        found = {
            "inherited by fork": ask("fork", masks, engine),
            "own after fork": ask("fork", own, bundle, backend),
            "own after spawn": ask("spawn", own, bundle, backend),
        }
        found["in the parent, afterwards"] = masks(engine)
    return {
        name: "hangs or dies"
        if one is None
        else one
        if isinstance(one, str)
        else ("right" if one == golden else "wrong")
        for name, one in found.items()
    }


if __name__ == "__main__":
    print(json.dumps(outcomes(Path(sys.argv[1]), sys.argv[2])))
