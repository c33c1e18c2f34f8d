"""The engine's steps on a GPU: an image's bytes cross the bus once, then only bits of masks.

Letterboxed pixels go over as bytes and are normalised there; features stay there, in the engine's
caches, too; the mask step follows the decoder on the same stream. Back come packed masks, areas and
boxes, and the logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from cris_deploy.bundle.manifest import ModelFacts
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import Device, Graph
from cris_deploy.execution.cuda import foreign
from cris_deploy.execution.cuda.device import CudaDevice, Lane
from cris_deploy.execution.cuda.graph import BoundGraph, DeviceGraph, take_rows
from cris_deploy.execution.cuda.memory import DeviceTensor, Memory, SharedTensor, aligned
from cris_deploy.execution.executor import Decoded, Features, MaskStep, masks_on_host, one_scene
from cris_deploy.pixels import image as images
from cris_deploy.pixels import mask as masks
from cris_deploy.pixels import on_gpu as kernels
from cris_deploy.pixels.image import Pixels

_SCENE: Final = ("f3", "f4", "f5")


@dataclass(frozen=True, slots=True)
class DeviceMask:
    """What the mask decoder and the mask step leave on the device for one pair.

    mask: (H, W) bool; logits: (h, w) in the type of the graph; stats: (5,) int64, see
    `cris_deploy.pixels.on_gpu.STATS`; threshold: probability above which a pixel is in the mask.
    """

    mask: SharedTensor
    logits: SharedTensor
    stats: SharedTensor
    threshold: float


class DeviceExecutor:
    """Everything in the memory of one GPU; see `execution.executor.Executor`."""

    def __init__(self, device: CudaDevice, model: ModelFacts, threads: int | None) -> None:
        self._device = device
        self._model = model
        self._threads = threads
        self._kernels = bool(masks.kernels_status().cuda)
        self.mask_device = Device.CUDA if self._kernels else Device.CPU

    def encode_images(self, graph: Graph, squares: Sequence[Pixels]) -> list[Features]:
        """Encode letterboxed images (S, S, 3) uint8 RGB; the features stay on the device."""
        stage = cast(DeviceGraph, graph)
        features: list[Features] = []
        for part in _parts(len(squares), stage.limit()):
            with self._device.lane() as lane:
                bound = stage.bound(lane, {"image": len(squares[part])})
                self._upload(lane, np.stack(squares[part]), bound.inputs["image"])
                bound.launch()
                features += take_rows(lane, bound.outputs, len(squares[part]))
        return features

    def encode_texts(self, graph: Graph, tokens: NDArray[np.int64]) -> list[Features]:
        """Encode tokens (n, L); the features stay on the device."""
        stage = cast(DeviceGraph, graph)
        features: list[Features] = []
        for part in _parts(len(tokens), stage.limit()):
            with self._device.lane() as lane:
                bound = stage.bound(lane, {"tokens": len(tokens[part])})
                lane.upload(np.ascontiguousarray(tokens[part]), bound.inputs["tokens"])
                bound.launch()
                features += take_rows(lane, bound.outputs, len(tokens[part]))
        return features

    def decode(
        self,
        graph: Graph,
        scenes: Sequence[Features],
        texts: Sequence[Features],
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
    ) -> list[Decoded]:
        """Segment, and wait for the masks; maps of probabilities are made on the CPU."""
        results: list[Decoded] = []
        for part in self._decoder_parts(graph, scenes):
            with self._device.lane() as lane:
                logits = self._queue_decoder(lane, graph, scenes[part], texts[part])
                if self._kernels and not any(step.probabilities for step in how[part]):
                    results += self._masks_of(lane, logits, sizes[part], how[part])
                else:
                    results += self._masks_on_host(lane, logits, sizes[part], how[part])
        return results

    def encode_device_image(
        self, graph: Graph, image: object, stream: object, max_pixels: int
    ) -> tuple[Features, tuple[int, int]]:
        """Letterbox and encode an image on the device: its features and its (height, width)."""
        self._need_kernels()
        height, width = foreign.image_size(image, max_pixels)
        handle = foreign.stream_handle(stream)
        stage = cast(DeviceGraph, graph)
        with self._device.lane() as lane:
            foreign.wait_for_image(self._device.cuda, lane.stream, image, handle)
            bound = stage.bound(lane, {"image": 1})
            side = self._model.input_size
            planes = bound.inputs["image"].rows(0, 1).reshaped(3, side, side)
            kernels.letterbox(image, height, width, planes, stream=lane.stream.handle)
            bound.launch()
            features = take_rows(lane, bound.outputs, 1)[0]
            self._hand_over(lane, handle)
        return features, (height, width)

    def decode_on_device(
        self,
        graph: Graph,
        scenes: Sequence[Features],
        texts: Sequence[Features],
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
        stream: object,
    ) -> list[DeviceMask]:
        """Segment as `decode` does, and leave everything there for use on `stream`."""
        self._need_kernels()
        handle = foreign.stream_handle(stream)
        results: list[DeviceMask] = []
        for part in self._decoder_parts(graph, scenes):
            with self._device.lane() as lane:
                logits = self._queue_decoder(lane, graph, scenes[part], texts[part])
                found, memory = self._queue_masks(lane, logits, sizes[part], how[part])
                self._hand_over(lane, handle)
                # Without a stream they are used on the default one, after this and unseen.
                memory.use_on(handle or 0, stream)
                results += found
        return results

    def memory(self) -> tuple[int, int]:
        """Count the free and all bytes of the GPU's memory."""
        return self._device.cuda.memory(self._device.index)

    def close(self) -> None:
        """Drop all lanes, with the graphs that are bound on them."""
        self._device.close()

    def _decoder_parts(self, graph: Graph, scenes: Sequence[Features]) -> list[slice]:
        if not scenes:
            return []
        shared = _SCENE if one_scene(scenes) and len(scenes) > 1 else ()
        return _parts(len(scenes), cast(DeviceGraph, graph).limit(shared))

    def _queue_decoder(
        self, lane: Lane, graph: Graph, scenes: Sequence[Features], texts: Sequence[Features]
    ) -> DeviceTensor:
        """Queue a run of the mask decoder: logits (n, h, w), until the lane's next work."""
        stage = cast(DeviceGraph, graph)
        seen = scenes[:1] if one_scene(scenes) else scenes
        names = {**dict.fromkeys(texts[0], len(texts)), **dict.fromkeys(seen[0], len(seen))}
        bound = stage.bound(lane, names)
        _fill(bound, texts)
        _fill(bound, seen)
        bound.launch()
        logits = bound.outputs["logits"].rows(0, len(texts))  # (n, 1, h, w) -> (n, h, w)
        return logits.reshaped(len(texts), *logits.shape[2:])

    def _masks_of(
        self,
        lane: Lane,
        logits: DeviceTensor,
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
    ) -> list[Decoded]:
        count = len(sizes)
        packed, stats, memory = self._results(lane.scratch, logits, sizes, packed=True)
        self._queue_mask_step(lane, logits, sizes, how, memory, packed=packed, stats=stats)
        start = packed[0].pointer - memory.pointer
        end = stats.pointer - memory.pointer + stats.nbytes
        arrays = lane.download(DeviceTensor(memory, start, (end - start,), np.uint8), logits)
        bits, values = arrays[0], arrays[1].astype(np.float32)  # a copy in any case
        rows = bits[len(bits) - stats.nbytes :].view(np.int64).reshape(count, kernels.STATS)
        results: list[Decoded] = []
        for index, (height, width) in enumerate(sizes):
            at = packed[index].pointer - packed[0].pointer
            lines = bits[at : at + packed[index].nbytes].reshape(packed[index].shape)
            mask = np.unpackbits(lines, axis=1, count=width).view(np.bool_)
            area, *box = (int(value) for value in rows[index])
            results.append(
                (
                    masks.UpsampledMask(height, width, area, _box(area, box), mask),
                    values[index],
                    how[index],
                )
            )
        return results

    def _masks_on_host(
        self,
        lane: Lane,
        logits: DeviceTensor,
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
    ) -> list[Decoded]:
        values = lane.download(logits)[0].astype(np.float32)
        upsampled = masks_on_host(values, sizes, self._model.input_size, how, self._threads)
        return list(zip(upsampled, values, how, strict=True))

    def _queue_masks(
        self,
        lane: Lane,
        logits: DeviceTensor,
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
    ) -> tuple[list[DeviceMask], Memory]:
        found, stats, memory = self._results(lane.allocate, logits, sizes, packed=False)
        self._queue_mask_step(lane, logits, sizes, how, memory, masks=found, stats=stats)
        kept = DeviceTensor(memory, memory.bytes - logits.nbytes, logits.shape, logits.dtype)
        lane.copy(logits.pointer, kept.pointer, kept.nbytes)
        memory.mark_ready()
        return [
            DeviceMask(
                mask.shared(),
                kept.rows(index, index + 1).reshaped(*kept.shape[1:]).shared(),
                stats.rows(index, index + 1).reshaped(kernels.STATS).shared(),
                how[index].threshold,
            )
            for index, mask in enumerate(found)
        ], memory

    def _results(
        self,
        allocate: Any,
        logits: DeviceTensor,
        sizes: Sequence[tuple[int, int]],
        packed: bool,
    ) -> tuple[list[DeviceTensor], DeviceTensor, Memory]:
        """Lay out, in one allocation: scratch of the kernels, masks, stats, a copy of the logits.

        Masks and stats lie together so that they come back in one copy.
        """
        height, width = logits.shape[1:]
        offset = aligned(kernels.workspace_bytes(sizes, self._model.input_size, (height, width)))
        places = []
        for rows, columns in sizes:
            shape = (rows, (columns + 7) // 8 if packed else columns)
            places.append((offset, shape))
            offset += aligned(shape[0] * shape[1])
        end = offset + aligned(len(sizes) * kernels.STATS * 8)
        memory = allocate(end + (0 if packed else logits.nbytes))
        kind = np.uint8 if packed else np.bool_
        found = [DeviceTensor(memory, place, shape, kind) for place, shape in places]
        return found, DeviceTensor(memory, offset, (len(sizes), kernels.STATS), np.int64), memory

    def _queue_mask_step(
        self,
        lane: Lane,
        logits: DeviceTensor,
        sizes: Sequence[tuple[int, int]],
        how: Sequence[MaskStep],
        memory: Memory,
        **outputs: Any,
    ) -> None:
        model = self._model
        needed = kernels.workspace_bytes(sizes, model.input_size, logits.shape[1:])  # type: ignore[arg-type]
        kernels.upsample_masks(
            logits,
            sizes,
            model.input_size,
            [step.threshold for step in how],
            DeviceTensor(memory, 0, (needed,), np.uint8),
            stream=lane.stream.handle,
            **outputs,
        )

    def _upload(self, lane: Lane, squares: Pixels, planes: DeviceTensor) -> None:
        """Bring (n, S, S, 3) uint8 to the image encoder's input (n, 3, S, S), normalised."""
        if not self._kernels:
            values = images.normalise_all(squares)
            lane.upload(values.astype(planes.dtype, copy=False), planes)
            return
        count, side = squares.shape[:2]
        staged = DeviceTensor(lane.scratch(squares.nbytes), 0, squares.shape, squares.dtype)
        lane.upload(squares, staged)
        for index in range(count):
            # A letterbox of a square onto itself moves no pixel: it is the normalisation.
            kernels.letterbox(
                staged.rows(index, index + 1).reshaped(side, side, 3),
                side,
                side,
                planes.rows(index, index + 1).reshaped(3, side, side),
                stream=lane.stream.handle,
            )

    def _hand_over(self, lane: Lane, stream: int | None) -> None:
        """Order `stream` after the lane, or, without one, wait."""
        if stream is None:
            lane.stream.wait()
        else:
            cuda = self._device.cuda
            cuda.run(cuda.stream(stream).wait, lane.stream.core)

    def _need_kernels(self) -> None:
        if not self._kernels:
            raise BackendError(
                "cris_deploy._kernels was built without CUDA, so images and masks on the device "
                "cannot be had: install with nvcc on PATH (pip install . "
                "-C cmake.define.CRIS_CUDA=ON), or use segment"
            )


def _fill(bound: BoundGraph, rows: Sequence[Features]) -> None:
    for name in rows[0]:
        bound.fill(name, [row[name] for row in rows])


def _parts(count: int, limit: int) -> list[slice]:
    return [slice(start, min(start + limit, count)) for start in range(0, count, limit)]


def _box(area: int, box: list[int]) -> masks.Box | None:
    x0, y0, x1, y1 = box
    return (x0, y0, x1, y1) if area else None
