"""What a build gets beside its network: kernel timings, and a way to watch and stop it."""

import dataclasses
import os
import signal
import threading
from pathlib import Path

import pytest

from cris_deploy.errors import InputError
from cris_deploy.machine.gpu import Gpu
from cris_export.plans.build import build_plans
from cris_export.plans.options import PlanKind, PlanOptions
from cris_export.plans.watch import interruptible
from tests.stand_ins.fake_tensorrt import FakeBuilding

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

H100 = Gpu("NVIDIA H100 80GB HBM3", "sm90", 80 << 30)
TENSORRT = PlanOptions(PlanKind.TENSORRT)


def test_timings_go_from_graph_to_graph_and_into_the_file(
    here, own_bundle: Path, tmp_path: Path
) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    path = tmp_path / "timings"
    options = dataclasses.replace(TENSORRT, timing_cache=path)
    build_plans(own_bundle, options, lambda _: None)
    assert [build.cache for build in trt.builds] == [b"cache:" + b"+" * n for n in range(4)]
    assert path.read_bytes() == b"cache:++++"
    said: list[str] = []
    build_plans(own_bundle, options, said.append)
    assert trt.builds[4].cache == b"cache:++++"
    assert path.read_bytes() == b"cache:" + b"+" * 8
    assert not any("timing cache" in line for line in said)


@pytest.mark.parametrize("content", [b"rubbish", b"cache: of an other GPU"])
def test_an_unusable_timing_cache_is_said_and_replaced(
    here, own_bundle: Path, tmp_path: Path, content: bytes
) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    path = tmp_path / "timings"
    path.write_bytes(content)
    said: list[str] = []
    build_plans(own_bundle, dataclasses.replace(TENSORRT, timing_cache=path), said.append)
    assert sum(f"timing cache {path} is damaged, or of another" in line for line in said) == 1
    assert trt.builds[0].cache == b"cache:"
    assert path.read_bytes() == b"cache:++++"


def test_a_timing_cache_that_cannot_be_written_is_refused_first(
    here, own_bundle: Path, tmp_path: Path
) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "timings", tmp_path):
        with pytest.raises(InputError, match=r"--timing-cache .* cannot be used"):
            build_plans(own_bundle, dataclasses.replace(TENSORRT, timing_cache=path))
    assert trt.builds == []


def test_an_interrupt_stops_the_builder_at_its_next_step() -> None:
    stop = threading.Event()

    def build() -> bool:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: it wakes the thread that waits
        return stop.wait(30)

    # A job in the background of a shell is started with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(build, stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.is_set()


def test_a_step_that_raises_during_a_build_is_raised_after_it(
    here, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cris_export.plans.watch.PROGRESS_SECONDS", 0.0)
    trt = FakeBuilding()
    here(H100, trt)
    said: list[str] = []

    def closed(line: str) -> None:
        said.append(line)
        if "Building 1/2" in line:
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        build_plans(own_bundle, TENSORRT, closed)
    assert said[-1] == "full: Building 1/2"
