"""Threads, signals and processes around one engine, for seconds; `make hard` takes minutes."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.machine.versions import version_of
from tests.hard.concurrency.storm import Storm
from tests.hard.concurrency.thread_sanitizer import HERE, ROOT, build, run

RACE = """
#include <thread>
int number = 0;
int main() {
  std::thread other([] { for (int i = 0; i < 100000; ++i) ++number; });
  for (int i = 0; i < 100000; ++i) ++number;
  other.join();
}
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_many_threads_on_one_engine(tiny_bundle: Path, backend: str) -> None:
    if version_of(backend) is None:
        pytest.skip(f"{backend} is not installed")
    storm = Storm(tiny_bundle, backend)
    storm.run(2.0, threads=64, close_every=0.5, closes=3)

    assert storm.failures == []
    assert {"segment", "scene", "stream", "batched", "looked_at"} <= storm.counted.keys()
    assert storm.counted["closed under load"] >= 3


def test_a_wrong_mask_is_a_failure(tiny_bundle: Path) -> None:
    storm = Storm(tiny_bundle, "onnxruntime")
    for results in storm.golden:
        for result in results:
            np.logical_not(result.mask, out=result.mask)
    storm.run(0.3, threads=2, close_every=1.0)

    assert any("a wrong mask" in failure for failure in storm.failures)


def test_a_hundred_interrupts(tiny_bundle: Path) -> None:
    done = child("tests.hard.concurrency.interrupts", tiny_bundle, "100")

    assert done.pop("interrupted") == 100
    assert set(done.values()) == {0}, done


def test_an_interrupt_after_every_step(tiny_bundle: Path, tmp_path: Path) -> None:
    done = child("tests.hard.concurrency.everywhere", tiny_bundle, str(tmp_path))

    assert done.pop("wrong masks") == 0
    assert done.keys() == {"segment", "scene", "stream", "batcher"}
    assert min(done.values()) > 50  # places, each of which was interrupted once


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_fork_and_spawn_after_use(tiny_bundle: Path, backend: str) -> None:
    if version_of(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = child("tests.hard.concurrency.processes", tiny_bundle, backend)

    inherited = done.pop("inherited by fork")
    assert inherited == "right" or "make a new Engine" in inherited, inherited
    assert set(done.values()) == {"right"}, done


def child(module: str, bundle: Path, *arguments: str) -> dict:
    """Run a module of this folder in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module, str(bundle), *arguments],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300, "check": False},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("g++") is None, reason="needs g++ on x86-64"
)
def test_kernels_under_thread_sanitizer(tmp_path: Path) -> None:
    (tmp_path / "race.cpp").write_text(RACE)
    raced = run(build(tmp_path, tmp_path / "race.cpp"), 0)
    if "WARNING: ThreadSanitizer: data race" not in raced.stderr:
        pytest.skip(f"ThreadSanitizer does not run here: {raced.stderr[:200]}")
    done = run(build(tmp_path, HERE / "kernels.cpp"), 1.0)

    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 wrong" in done.stdout
