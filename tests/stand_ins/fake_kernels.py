"""The kernels' CUDA bindings on the stand-in of `fake_cuda`: the CPU's results, in stream order."""

from dataclasses import dataclass

import numpy as np

from cris_deploy.pixels.image import letterbox, normalise
from cris_deploy.pixels.mask import Output, upsample_masks
from tests.stand_ins.fake_cuda import POISON, FakeCuda


@dataclass(frozen=True)
class Frame:
    height: int
    width: int


class FakeKernels:
    """`cris_deploy._kernels` as far as `cris_deploy.pixels.on_gpu` uses it."""

    CUDA_ARCHITECTURES = "80"

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.upsampled = 0
        self.letterboxed = 0

    def Frame(self, height: int, width: int, **_: float) -> Frame:
        return Frame(height, width)

    def cuda_workspace_bytes(self, frames, height, width) -> int:
        return 1000 * len(frames)

    def cuda_letterbox(self, rgb, frame, out, *, stream=0) -> None:
        self.letterboxed += 1
        if hasattr(rgb, "__dlpack__"):  # as kernels/bindings/device_array.cpp
            rgb.__dlpack__(stream=stream or 1)
        source, target = _place(rgb), _place(out)
        assert source[1] == (frame.height, frame.width, 3)

        def work():
            to = self._cuda.view(*target)
            square = letterbox(self._cuda.view(*source), to.shape[1])
            to[:] = normalise(square)

        self._cuda.enqueue(stream, work)

    def cuda_upsample(
        self,
        logits,
        frames,
        thresholds,
        input_size,
        workspace,
        *,
        masks=None,
        packed=None,
        probabilities=None,
        stats=None,
        direct=False,
        stream=0,
    ) -> None:
        self.upsampled += len(frames)
        assert workspace.shape[0] >= self.cuda_workspace_bytes(frames, 1, 1)
        assert workspace.pointer % 256 == 0
        source, scratch, to_stats = _place(logits), _place(workspace), _place(stats)
        to_masks = [_place(mask) for mask in masks or ()]
        to_packed = [_place(lines) for lines in packed or ()]

        def work():
            self._cuda.view(*scratch)[:] = POISON
            sizes = [(frame.height, frame.width) for frame in frames]
            values = self._cuda.view(*source).copy()
            outputs = Output.MASK | Output.PACKED
            results = upsample_masks(values, sizes, input_size, thresholds, outputs=outputs)
            for index, result in enumerate(results):
                if to_masks:
                    self._cuda.view(*to_masks[index])[:] = result.mask
                if to_packed:
                    self._cuda.view(*to_packed[index])[:] = result.packed
                # As the kernel leaves an empty mask: x0 >= x1.
                box = result.box or (result.width, result.height, 0, 0)
                self._cuda.view(*to_stats)[index] = (result.area, *box)

        self._cuda.enqueue(stream, work)


class ForeignArray:
    """A device array of another library, such as pycuda's: no DLPack, no stream of its own."""

    def __init__(self, cuda: FakeCuda, values: np.ndarray) -> None:
        self.pointer = cuda.allocate(values.nbytes)
        self.shape = values.shape
        cuda.view(self.pointer, values.shape, values.dtype)[:] = values
        self.__cuda_array_interface__ = {
            "version": 2,
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
        }


class ForeignStream:
    """A stream of another library, such as pycuda's."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.handle = cuda.new_stream()


def _place(obj) -> tuple[int, tuple[int, ...], str]:
    interface = obj.__cuda_array_interface__
    return interface["data"][0], tuple(interface["shape"]), interface["typestr"]
