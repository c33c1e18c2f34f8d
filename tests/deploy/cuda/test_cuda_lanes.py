"""Lanes come back whatever happens, closing ends, and waits have an end. A stand-in's GPU."""

import gc
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cris_deploy import CrisError, Engine, EngineTimeoutError
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.cuda import device as lanes
from cris_deploy.execution.cuda import shared_lock as gate
from cris_deploy.execution.cuda.device import open_device
from tests.stand_ins.fake_cuda import INVALID, LEGACY
from tests.stand_ins.fake_kernels import ForeignArray
from tests.stand_ins.fake_machine import BACKENDS, machine

__all__ = ["machine"]

IMAGE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)
SOON = 0.3  # seconds; a timeout that is meant to pass, and that no call here needs
LATE = 20.0  # and one that is not


class Interrupt:
    """Raises KeyboardInterrupt in this thread at the n-th step of the code that hands out lanes."""

    FILES = (str(Path(lanes.__file__)), str(Path(gate.__file__)))

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> "Interrupt":
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def trace(self, frame, event, argument):
        if frame.f_code.co_filename not in self.FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self.trace


def interrupted(device, at: int) -> bool:
    """Use a lane, interrupted at a step; whether there was such a step."""
    watch = Interrupt(at)
    try:
        with watch, device.lane() as lane:
            lane.empty((8,), np.dtype(np.float32))
    except KeyboardInterrupt:
        pass
    return watch.left <= 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_step_loses_no_lane(machine):
    device = open_device(1, timeout=LATE)
    at = 0
    while True:
        at += 1
        again = interrupted(device, at)
        # One thread at a time, the same number of lanes, nobody left inside.
        with device.lane() as lane:
            with lane.alone():
                pass
            assert [seat.turn is not None for seat in device._seats] == [True]
        assert [seat.turn for seat in device._seats] == [None]
        assert device.gate._inside == set()
        if not again:
            break
    assert at > 300  # every bytecode on the way in and out was one of them
    device.close()
    machine.check()


def test_a_lane_whose_end_was_interrupted_is_not_used_again(machine, monkeypatch):
    device = open_device(1, timeout=LATE)
    drop = device._drop

    def interrupt(seat):
        monkeypatch.setattr(device, "_drop", drop)
        raise KeyboardInterrupt

    used = []

    def fail():
        with device.lane() as lane:
            used.append(lane)
            monkeypatch.setattr(device, "_drop", interrupt)
            raise BackendError("in the midst")

    with pytest.raises(KeyboardInterrupt):
        fail()
    with device.lane() as lane:
        assert lane not in used
    device.close()
    machine.check()


@pytest.mark.parametrize("function", ["cuCtxGetCurrent", "cuCtxSetCurrent", "cuMemPoolTrimTo"])
@pytest.mark.parametrize("times", [1, 2, 3, 4])
def test_an_error_on_the_way_loses_no_lane(machine, function, times):
    with machine.engine("tensorrt", timeout=LATE) as engine:
        engine.segment(IMAGE, "a")
        engine.pipeline.forget()
        machine.cuda.fail(function, INVALID, times)
        for _ in range(times + 1):
            try:
                engine.segment(np.roll(IMAGE, times), "b")
            except BackendError:
                continue
        machine.cuda.failures.clear()
        assert engine.segment(IMAGE, "a").mask.shape == IMAGE.shape[:2]
    machine.check()


def test_errors_while_closing_lose_no_lane(machine):
    device = open_device(2, timeout=LATE)
    with device.lane(), device.lane():
        pass
    machine.cuda.fail("cuCtxGetCurrent", INVALID)
    device.close()
    device.close()
    assert [seat.turn for seat in device._seats] == [None, None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_close_from_two_threads_while_others_run_ends(machine, backend):
    engine = machine.engine(backend, streams=2, image_cache=0, text_cache=0)
    device = engine.pipeline.device_executor()._device

    def ask(index):
        try:
            return engine.segment(np.roll(IMAGE, index), "a").mask.shape
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, index) for index in range(24)]
        closed = [pool.submit(close) for close in (device.close, engine.close, device.close)]
        found = {future.result(LATE) for future in asked}
        for future in closed:
            future.result(LATE)
    assert found <= {IMAGE.shape[:2], "engine is closed: make a new Engine"}
    machine.cuda.finish_all()
    assert machine.cuda.device_bytes == 0
    machine.check()


# Timeouts


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), "2"])
def test_timeout_is_seconds(machine, timeout):
    with pytest.raises(InputError, match=r"timeout is .*: give seconds above 0, or None"):
        machine.engine("tensorrt", timeout=timeout)


def test_a_wait_for_a_stream_ends(machine):
    device = open_device(1, timeout=SOON)
    with device.lane():
        started = time.monotonic()
        with pytest.raises(EngineTimeoutError, match=r"streams came free in 0\.3 s.*timeout"):
            device.lane().__enter__()
        assert time.monotonic() - started >= SOON
    with device.lane():
        pass
    with pytest.raises(EngineTimeoutError), device.lane():
        device.close()  # waits for the one who calls it
    assert issubclass(EngineTimeoutError, TimeoutError)
    assert issubclass(EngineTimeoutError, CrisError)


def test_a_wait_to_be_alone_ends(machine):
    device = open_device(2, timeout=SOON)
    with (
        device.lane() as first,
        device.lane(),
        pytest.raises(EngineTimeoutError, match="other threads have kept the GPU"),
        first.alone(),
    ):
        pass
    with (
        device.lane() as first,
        first.alone(),
        pytest.raises(EngineTimeoutError, match="has had the GPU alone"),
        device.gate.inside(),
    ):
        pass
    device.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gpu_that_does_not_end_is_given_up_and_may_come_back(machine, backend):
    with machine.engine(backend, timeout=SOON) as engine:
        expected = engine.segment(IMAGE, "a")
        on_device = engine.segment_on_device(ForeignArray(machine.cuda, IMAGE), "a")
        machine.cuda.hung = True
        for _ in range(2):
            with pytest.raises(EngineTimeoutError, match=r"not ended in 0\.3 s: raise timeout"):
                engine.segment(IMAGE, "a")
        with pytest.raises(EngineTimeoutError, match="has not ended"):
            on_device.to_host()
        machine.cuda.hung = False
        np.testing.assert_array_equal(on_device.to_host().mask, expected.mask)
        for _ in range(3):
            np.testing.assert_allclose(
                engine.segment(IMAGE, "a").logits, expected.logits, atol=1e-4
            )
        engine.pipeline.forget()
        machine.cuda.fail("cuMemcpyAsync", INVALID)
        with pytest.raises(BackendError):  # the next that is dropped takes them along
            engine.segment(IMAGE, "a")
        assert engine.pipeline.device_executor()._device._leaving == []
        engine.segment(IMAGE, "a")
    del engine, on_device
    gc.collect()
    assert machine.cuda.streams.keys() == {LEGACY}  # the default stream
    machine.check()


def test_a_timeout_that_does_not_pass_changes_nothing(machine):
    with machine.engine("tensorrt", timeout=LATE) as engine, Engine(machine.bundle) as other:
        for count in (1, 3):
            names = [f"n{index}" for index in range(count)]
            for ours, wanted in zip(
                engine.segment(IMAGE, names), other.segment(IMAGE, names), strict=True
            ):
                np.testing.assert_allclose(ours.logits, wanted.logits, atol=1e-4)
    machine.check()


def test_openvino_waits_for_a_request_no_longer(own_bundle):
    with Engine(own_bundle, backend="openvino", timeout=SOON, image_cache=0) as engine:
        engine.segment(IMAGE, "a")
        (graph,) = {
            id(g): g for name, g in engine.pipeline.stages.items() if "image" in name
        }.values()
        with graph._requests.one(), pytest.raises(EngineTimeoutError, match="none of 1 streams"):
            engine.segment(IMAGE, "a")
        engine.segment(IMAGE, "a")


def test_threads_wait_in_turn(machine):
    device = open_device(1, timeout=LATE)
    order, inside = [], threading.Semaphore(0)

    def work(index):
        with device.lane():
            inside.release()
            order.append(index)

    with device.lane():
        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join(LATE)
    assert sorted(order) == [0, 1, 2, 3]
    device.close()
