"""Every call that an engine makes to CUDA's driver fails once, on the stand-in for it.

From the first call of loading to the last of closing, each call in turn, with an error that leaves
the GPU usable. The engine gives the golden mask or an error of ours, the next request is answered
rightly, and nothing is done that CUDA forbids. An evenly spread part of them here; CRIS_HARD=1 in
the environment, as in `make hard`, takes all.
"""

import gc
import os

import numpy as np
import pytest

from cris_deploy.errors import BackendError, CrisError
from tests.hard.faults.starving import spread
from tests.stand_ins.fake_cuda import INVALID, OUT_OF_MEMORY, FakeCuda
from tests.stand_ins.fake_machine import BACKENDS, Machine, machine

__all__ = ["machine"]

pytest.importorskip("cuda.bindings", reason="the stand-in is under the real cuda-bindings")
IMAGE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
MOST = None if os.environ.get("CRIS_HARD") else 4
# What cannot fail, or says how another call failed.
SPARED = ("cuGetErrorName", "cuGetErrorString")


class FailingCall:
    """Counts the driver's calls, and lets one of them fail."""

    def __init__(self, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen, self.moment, self.status, self.failed = 0, 0, INVALID, ""
        call = cuda._call

        def counted(function, arguments: tuple) -> int:
            if function.__name__ not in SPARED:
                self.seen += 1
                if self.seen == self.moment:
                    self.failed = function.__name__
                    return self.status
            return call(function, arguments)

        monkeypatch.setattr(cuda, "_call", counted)

    def arm(self, moment: int, status: int = INVALID) -> None:
        self.seen, self.moment, self.status, self.failed = 0, moment, status, ""


def life(machine: Machine, backend: str) -> list[np.ndarray]:
    """A short life of an engine: load, three requests, close; the masks."""
    with machine.engine(backend, timeout=60) as engine:
        masks = [engine.segment(IMAGE, "a").mask for _ in range(2)]
        engine.pipeline.forget()
        return [*masks, engine.segment(IMAGE, ["a", "b"])[0].mask]


@pytest.mark.parametrize("status", [INVALID, OUT_OF_MEMORY])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_call(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, backend: str, status: int
) -> None:
    failing = FailingCall(machine.cuda, monkeypatch)
    failing.arm(0)
    golden = life(machine, backend)
    gc.collect()
    calls, outcomes = failing.seen, {"right": 0, "told": 0}
    for moment in spread(calls, MOST):
        failing.arm(moment, status)
        where = f"call {moment} of {calls}, "
        told = "CUDA"
        try:
            found = life(machine, backend)
            outcomes["right"] += 1
        except BackendError as error:
            outcomes["told"] += 1
            found, told = golden, str(error)
        except CrisError as error:
            pytest.fail(f"{where}{failing.failed}: {type(error).__name__}: {error}")
        same(found, golden, where + failing.failed)
        assert "CUDA" in told or "GPU" in told, where + failing.failed
        failing.arm(0)
        same(life(machine, backend), golden, f"after {where}")
        assert machine.cuda.problems == [], where
    assert outcomes["told"] > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_call_of_a_request(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """In an engine that lives on."""
    failing = FailingCall(machine.cuda, monkeypatch)
    with machine.engine(backend, timeout=60) as engine:
        golden = [engine.segment(IMAGE, "a").mask]
        engine.pipeline.forget()
        failing.arm(0)
        engine.segment(IMAGE, "a")
        for moment in spread(failing.seen, MOST):
            engine.pipeline.forget()
            failing.arm(moment)
            try:
                same([engine.segment(IMAGE, "a").mask], golden, failing.failed)
            except BackendError:
                assert failing.failed
            failing.arm(0)
            same([engine.segment(IMAGE, "a").mask], golden, f"after call {moment}")
    assert machine.cuda.problems == []


def same(found: list[np.ndarray], golden: list[np.ndarray], where: str) -> None:
    """Another batch size, another order of sums: a pixel at the threshold may differ."""
    for mask, expected in zip(found, golden, strict=True):
        assert mask.shape == expected.shape, where
        assert (mask != expected).mean() < 0.01, where
