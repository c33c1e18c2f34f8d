"""Who waits for whom: images that come late, masks that outlive their result, frees in any thread.

See `fake_cuda` for what the stand-in checks.
"""

import gc
import threading

import numpy as np
import pytest

from cris_deploy.execution.cuda.api import load_cuda
from cris_deploy.execution.cuda.device import open_device
from cris_deploy.execution.cuda.memory import DeviceTensor
from tests.stand_ins.fake_cuda import INVALID_HANDLE, LEGACY, PER_THREAD
from tests.stand_ins.fake_kernels import ForeignArray, ForeignStream
from tests.stand_ins.fake_machine import machine

__all__ = ["machine"]

IMAGE = np.random.default_rng(3).integers(0, 256, (48, 80, 3), dtype=np.uint8)


class Tensor(ForeignArray):
    """An image of a library that speaks DLPack, made on a stream of its own, late."""

    def __init__(self, cuda, values, maker) -> None:
        super().__init__(cuda, np.zeros_like(values))
        self._cuda, self._maker = cuda, maker
        self.asked: list[int] = []
        cuda.enqueue(maker, lambda: cuda.array(self).__setitem__(..., values))

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, *, stream):
        self.asked.append(stream)
        core = load_cuda().core
        core.Device(0).set_current()
        load_cuda().stream(stream).wait(core.Stream.from_handle(self._maker))


def test_an_image_made_on_a_side_stream_is_waited_for(machine):
    side = ForeignStream(machine.cuda).handle
    with machine.engine("tensorrt") as engine:
        expected = engine.segment(IMAGE, "a")
        for stream in (None, ForeignStream(machine.cuda)):
            image = Tensor(machine.cuda, IMAGE, side)
            result = engine.segment_on_device(image, "a", stream=stream)
            if stream is not None:
                machine.cuda.finish(stream.handle)
            np.testing.assert_array_equal(result.to_host().mask, expected.mask)
            (asked,) = image.asked
            assert asked not in (-1, 0, LEGACY, side)  # it is the lane's
    machine.check()


@pytest.mark.parametrize("stream", [None, 0])
def test_masks_are_safe_on_the_default_stream_after_the_result_is_gone(machine, stream):
    with machine.engine("tensorrt") as engine:
        expected = engine.segment(IMAGE, "a")
        result = engine.segment_on_device(ForeignArray(machine.cuda, IMAGE), "a", stream=stream)
        seen = read_later(machine, result.mask, LEGACY)
        del result
        gc.collect()
        for shift in range(3):  # what is freed is given away again
            engine.segment(np.roll(IMAGE, shift + 1), "b")
        machine.cuda.finish(LEGACY)
        np.testing.assert_array_equal(seen[0], expected.mask)
    machine.check()


def read_later(machine, tensor, stream):
    """Queue a kernel of somebody's that reads a tensor and holds nothing of it."""
    interface, seen = tensor.__cuda_array_interface__, []

    class Kept:
        __cuda_array_interface__ = interface

    machine.cuda.enqueue(stream, lambda: seen.append(machine.cuda.array(Kept).copy()))
    return seen


def test_dlpack_hands_over_in_the_consumers_order(machine):
    core = load_cuda().core
    with machine.engine("tensorrt") as engine:
        expected = engine.segment(IMAGE, "a")
        result = engine.segment_on_device(ForeignArray(machine.cuda, IMAGE), "a")
        for tensor, shape, dtype in (
            (result.mask, IMAGE.shape[:2], np.bool_),
            (result.logits, expected.logits.shape, np.float32),
            (result.stats, (5,), np.int64),
        ):
            assert tensor.__dlpack_device__() == (2, 0)
            view = core.utils.StridedMemoryView.from_dlpack(tensor, stream_ptr=LEGACY)
            assert (view.ptr, view.shape, view.dtype) == (tensor.pointer, shape, dtype)
            assert view.device_id == 0
        # The consumer's stream may still read when all objects are gone.
        consumer = ForeignStream(machine.cuda).handle
        capsule = result.mask.__dlpack__(stream=consumer)
        seen = read_later(machine, result.mask, consumer)
        del result, tensor, view, capsule
        gc.collect()
        engine.segment(np.roll(IMAGE, 1), "b")
        machine.cuda.finish(consumer)
        np.testing.assert_array_equal(seen[0], expected.mask)
    machine.check()


def test_dlpack_keeps_the_memory(machine):
    with machine.engine("tensorrt") as engine:
        result = engine.segment_on_device(ForeignArray(machine.cuda, IMAGE), "a")
        capsule = result.mask.__dlpack__(stream=-1)
        machine.cuda.finish_all()
        held = machine.cuda.device_bytes
        del result
        gc.collect()
        machine.cuda.finish_all()
        assert machine.cuda.device_bytes == held
        del capsule
        gc.collect()
        machine.cuda.finish_all()
        assert machine.cuda.device_bytes < held
    machine.check()


def test_memory_whose_reader_cannot_be_asked_waits_for_the_device_or_is_kept(machine):
    for trouble in (None, "cuCtxSynchronize"):
        device = open_device(1)
        stream = machine.cuda.new_stream()
        with device.lane() as lane:
            tensor = lane.empty((64,), np.dtype(np.uint8))
            tensor.memory.mark_ready()
            tensor.memory.use_on(stream, None)
            seen = read_later(machine, tensor, stream)
        machine.cuda.end_stream(stream)  # its owner's business, but no reason for garbage
        if trouble is not None:
            machine.cuda.fail(trouble, INVALID_HANDLE)
        blocks = len(machine.cuda.live())
        del tensor, lane
        gc.collect()
        machine.cuda.finish_all()
        assert not seen[0].any()  # zeros, not what fills freed memory
        assert len(machine.cuda.live()) == blocks - (trouble is None)
        device.close()
        machine.check()


def test_a_per_thread_default_stream_is_that_of_the_thread_that_used_it(machine):
    """Its handle means another stream in the thread that frees."""
    device = open_device(1)
    kept, seen = [], []

    def use():
        with device.lane() as lane:
            tensor = lane.empty((64,), np.dtype(np.uint8))
            tensor.memory.mark_ready()
            tensor.memory.use_on(PER_THREAD, None)
            seen.append(read_later(machine, tensor, PER_THREAD))
        kept.append(tensor)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(20)
    kept.clear()
    with device.lane() as lane:
        lane.stream.wait()  # the free among what it has queued
    machine.cuda.finish_all()
    assert not seen[0][0].any()  # zeros, not what fills freed memory

    use()  # in one thread, and nobody waits for the device
    machine.cuda.calls.clear()
    kept.clear()
    assert "cuCtxSynchronize" not in machine.cuda.calls
    machine.cuda.finish_all()
    assert not seen[1][0].any()
    device.close()
    machine.check()


def test_any_thread_may_free_and_fetch_without_a_device_of_its_own(machine):
    with machine.engine("tensorrt") as engine:
        expected = engine.segment(IMAGE, "a")
        results = [
            engine.segment_on_device(ForeignArray(machine.cuda, IMAGE), "a") for _ in range(2)
        ]
        found = []

        def work():
            assert threading.get_ident() not in machine.cuda.contexts
            found.append(results.pop().to_host())
            results.clear()
            assert threading.get_ident() not in machine.cuda.contexts  # left as it was

        gc.collect()
        machine.cuda.finish_all()
        held, size = machine.cuda.device_bytes, results[0].mask.memory.bytes
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
        np.testing.assert_array_equal(found[0].mask, expected.mask)
        machine.cuda.finish_all()
        assert machine.cuda.device_bytes == held - 2 * size
    machine.check()


def test_shared_tensors_are_as_the_others(machine):
    device = open_device(1)
    with device.lane() as lane:
        tensor = lane.empty((2, 3), np.dtype(np.float32))
        tensor.memory.mark_ready()
        shared = tensor.rows(1, 2).shared()
        assert shared.pointer == tensor.pointer + 12
        assert not hasattr(DeviceTensor, "__dlpack__")  # kernels take those the short way
        np.testing.assert_array_equal(shared.to_host(), np.zeros((1, 3), np.float32))
    device.close()
    machine.check()
