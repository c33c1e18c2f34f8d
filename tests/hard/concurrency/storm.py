"""`python -m tests.hard.concurrency.storm --record FILE.json`: many threads, one engine.

Threads of every kind of call on one engine whose caches hold one row each, so that every row is
thrown out under somebody who uses it. Now and then the engine is closed under them and another
takes its place: a call then gives its golden masks or says that the engine is closed.
"""

import argparse
import json
import os
import platform
import random
import shlex
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cris_deploy import Batcher, Engine
from cris_deploy.errors import InputError

THREADS = 64
WORDS = ("a", "bc", "d e", "fgh")
# Of equal sizes and of others: a batch has both.
SIZES = ((48, 64), (48, 64), (31, 90), (200, 33), (64, 64), (7, 5))
TOLERANCE = 1e-4
"""Another batch size, other sums in float32; a pixel that near the threshold may differ."""
CLOSED = ("engine is closed", "batcher is closed")


class Storm:
    """Threads, the engine that they ask, and what they found."""

    def __init__(self, bundle: Path, backend: str, seed: int = 0) -> None:
        self._bundle, self._backend, self._seed = bundle, backend, seed
        rng = np.random.default_rng(seed)
        self.pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
        with self._open() as engine:
            self.golden = [engine.segment(picture, list(WORDS)) for picture in self.pictures]
        self.counted: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock, self._enough = threading.Lock(), threading.Event()
        self._engine = self._open()
        self._batcher = Batcher(self._engine)

    def _open(self) -> Engine:
        options: dict[str, Any] = {"backend": self._backend, "threads": 1, "streams": 1}
        return Engine(self._bundle, image_cache=1, text_cache=1, **options)

    def run(
        self,
        seconds: float,
        threads: int = THREADS,
        close_every: float = 5.0,
        closes: int = 1,
    ) -> None:
        """Let the threads ask for `seconds`, and until the engine was closed under them and
        replaced `closes` times: a slow machine takes longer for that."""
        workers = [threading.Thread(target=self._work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 or self.counted["closed under load"] < closes:
            time.sleep(min(left, close_every) if left > 0 else close_every)
            self._replace()
        self._enough.set()
        for worker in workers:
            worker.join(120)
            if worker.is_alive():
                self.failures.append(f"{worker.name} hangs")
        self._batcher.close()
        self._engine.close()

    def _replace(self) -> None:
        new = self._open()
        batcher = Batcher(new)
        with self._lock:
            old, self._engine = self._engine, new
            old_batcher, self._batcher = self._batcher, batcher
        old.close()  # under its batcher and all that ask
        old_batcher.close()
        self.counted["closed under load"] += 1

    def _work(self, number: int) -> None:
        drawn = random.Random(f"{self._seed} {number}")
        kinds = (self._segment, self._scene, self._stream, self._batched, self._looked_at)
        while not self._enough.is_set():
            kind = drawn.choice(kinds)
            with self._lock:
                engine, batcher = self._engine, self._batcher
            try:
                kind(drawn, engine, batcher)
                outcome = kind.__name__.strip("_")
            except InputError as error:
                told = any(sentence in str(error) for sentence in CLOSED)
                outcome = "told that it is closed" if told else self._failed(kind, error)
            except Exception as error:
                outcome = self._failed(kind, error)
            with self._lock:
                self.counted[outcome] += 1

    def _failed(self, kind: Callable[..., None], error: Exception) -> str:
        with self._lock:
            self.failures.append(f"{kind.__name__}: {type(error).__name__}: {error}"[:400])
        return "failed"

    def _segment(self, drawn: random.Random, engine: Engine, _: Batcher) -> None:
        picture = drawn.randrange(len(SIZES))
        words = drawn.sample(WORDS, drawn.randint(1, len(WORDS)))
        self._check(picture, words, engine.segment(self.pictures[picture], words))

    def _scene(self, drawn: random.Random, engine: Engine, _: Batcher) -> None:
        picture = drawn.randrange(len(SIZES))
        scene = engine.encode_image(self.pictures[picture])
        for word in drawn.sample(WORDS, 2):
            self._check(picture, [word], [scene.segment(word)])

    def _stream(self, drawn: random.Random, engine: Engine, _: Batcher) -> None:
        chosen = [(drawn.randrange(len(SIZES)), drawn.choice(WORDS)) for _ in range(5)]
        pairs = [(self.pictures[picture], word) for picture, word in chosen]
        results = engine.stream(pairs, batch_size=drawn.randint(1, 4))
        for (picture, word), result in zip(chosen, results, strict=True):
            self._check(picture, [word], [result])

    def _batched(self, drawn: random.Random, _: Engine, batcher: Batcher) -> None:
        picture = drawn.randrange(len(SIZES))
        words = drawn.sample(WORDS, 2)
        self._check(picture, words, batcher.submit(self.pictures[picture], words).result(120))

    def _looked_at(self, _: random.Random, engine: Engine, __: Batcher) -> None:
        info = engine.cache_info()
        assert info.images.kept <= 1
        assert info.expressions.kept <= 1
        assert engine.memory().process > 0

    def _check(self, picture: int, words: Sequence[str], results: Sequence[Any]) -> None:
        assert len(results) == len(words)
        for word, result in zip(words, results, strict=True):
            expected = self.golden[picture][WORDS.index(word)]
            np.testing.assert_allclose(result.logits, expected.logits, atol=TOLERANCE)
            assert result.mask.shape == expected.mask.shape
            differ = (result.mask != expected.mask).mean()
            assert differ < 0.01, f"a wrong mask: {differ:.1%} of its pixels"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, write the record. Exit 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hard.concurrency.storm")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--record", type=Path, required=True)
    args = parser.parse_args(argv)
    from tests.helpers.tiny_bundle import write_bundle

    given = sys.argv[1:] if argv is None else argv
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        storm = Storm(write_bundle(Path(folder) / "b"), args.backend)
        storm.run(60 * args.minutes, args.threads)
    record = {
        "command": shlex.join(["python", "-m", "tests.hard.concurrency.storm", *given]),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "threads": args.threads,
        "minutes": args.minutes,
        "calls": dict(sorted(storm.counted.items())),
        "failures": storm.failures[:100],
    }
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))
    return int(bool(storm.failures))


if __name__ == "__main__":
    sys.exit(main())
