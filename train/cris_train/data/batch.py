"""Samples, batches of bytes, and batches as the model is fed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from cris_deploy.pixels import image as images

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """B pictures with k expressions each.

    Attributes:
        image: (B, 3, S, S) float32, letterboxed and normalised.
        tokens: (B * k, L) int64, the k expressions of a picture in a row.
        target: (B * k, 1, S/4, S/4) float32, 0 to 1.
        names: The B file names, so that a bad step can be traced to its pictures.
        crops: Side of the objects to cut out of it, pixels; None for a batch of whole pictures.
    """

    image: Tensor
    tokens: Tensor
    target: Tensor
    names: tuple[str, ...]
    crops: int | None = None


@dataclass(frozen=True)
class Sample:
    """A picture with k of its expressions.

    Attributes:
        square: (S, S, 3) uint8 RGB, letterboxed.
        tokens: (k, L) int64.
        target: (k, S/4, S/4) uint8, 255 is one.
        name: File name of the picture.
    """

    square: npt.NDArray[np.uint8]
    tokens: npt.NDArray[np.int64]
    target: npt.NDArray[np.uint8]
    name: str


@dataclass(frozen=True)
class PackedBatch:
    """B pictures with k expressions each, as bytes: a quarter of the floats.

    Attributes:
        square: (B, S, S, 3) uint8 RGB, letterboxed.
        tokens: (B * k, L) int64, the k expressions of a picture in a row.
        target: (B * k, 1, S/4, S/4) uint8, 255 is one.
        names: The B file names.
    """

    square: Tensor
    tokens: Tensor
    target: Tensor
    names: tuple[str, ...]

    def pin_memory(self) -> PackedBatch:
        """The same in page-locked memory, which a GPU copies from while the host goes on."""
        return PackedBatch(
            self.square.pin_memory(),
            self.tokens.pin_memory(),
            self.target.pin_memory(),
            self.names,
        )

    def unpack(self, device: torch.device | str = "cpu") -> Batch:
        """Normalise to what the model is fed, on `device`: deployment's values, bit for bit.

        The picture is contiguous on a CPU, and in channels-last memory elsewhere.
        """
        place = torch.device(device)
        if place.type != "cpu":
            return unpack_on_device(self, place)
        count, side = self.square.shape[:2]
        # NumPy's memory, not torch's: it asks for huge pages, and half the time is page faults.
        every = np.empty((count, 3, side, side), np.float32)
        tables = _picture_values().numpy().reshape(3, 256)
        for planes, square in zip(every, self.square.numpy(), strict=True):
            for plane, channel, table in zip(planes, cv2.split(square), tables, strict=True):
                cv2.LUT(channel, table, dst=plane)
        return Batch(
            torch.from_numpy(every),
            self.tokens,
            _target_values()[self.target.int()],
            self.names,
        )


def unpack_on_device(packed: PackedBatch, device: torch.device) -> Batch:
    """As `PackedBatch.unpack`: bytes go over, the device looks up floats. Works on a CPU, too."""
    channel = torch.arange(0, 3 * 256, 256, dtype=torch.int32, device=device)
    square = packed.square.to(device, non_blocking=True)
    target = packed.target.to(device, non_blocking=True)
    # NHWC -> NCHW. Tables, because devices divide by a constant in ways of their own.
    image = _picture_values(device)[square.int() + channel].permute(0, 3, 1, 2)
    return Batch(
        image,
        packed.tokens.to(device, non_blocking=True),
        _target_values(device)[target.int()],
        packed.names,
    )


def pack(samples: Sequence[Sample]) -> PackedBatch:
    """Stack B samples of k expressions; in a loader's worker into memory that it shares."""
    return PackedBatch(
        default_collate([sample.square for sample in samples]),
        default_collate([sample.tokens for sample in samples]).flatten(0, 1),
        default_collate([sample.target for sample in samples]).flatten(0, 1)[:, None],
        tuple(sample.name for sample in samples),
    )


@cache
def _picture_values(device: torch.device = CPU) -> Tensor:
    """What deployment's `normalise` makes of each value, (3 * 256,) float32, red first.

    On its device for good: a copy from memory that is not pinned waits for it.
    """
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    return torch.from_numpy(images.normalise(every).reshape(-1)).to(device)


@cache
def _target_values(device: torch.device = CPU) -> Tensor:
    """(256,) float32, 0 to 1; as above."""
    return torch.from_numpy(np.arange(256, dtype=np.float32) / np.float32(255)).to(device)
