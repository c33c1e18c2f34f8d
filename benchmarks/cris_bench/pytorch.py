"""PyTorch eager, which everything is compared with, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cris_bench.contestants import THRESHOLD, Bound, Identity
from cris_bench.record import Role
from cris_deploy import image as images
from cris_deploy.backends import Compute, Device
from cris_deploy.errors import BackendError
from cris_deploy.image import Letterbox, Pixels
from cris_deploy.text import Tokenizer
from cris_train.model import Cris

EAGER = "PyTorch eager fp32"
COMPILED = "torch.compile fp32"


class Eager:
    """The model as it was trained, on one device, float32.

    Args:
        model: In evaluation mode, on `device`.
        tokenizer: CLIP's, with the model's word length; None where only the network is run.
        device: Where it runs.
    """

    def __init__(self, model: Cris, tokenizer: Tokenizer | None, device: Device) -> None:
        self.identity = Identity(EAGER, Role.BASELINE, device, Compute.FP32.value)
        self._model = model
        self._tokenizer = tokenizer

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Bind; see `Network`."""
        return _bind(self._model, self.identity.device, image, tokens)

    def segment(self, rgb: Pixels, expression: str) -> NDArray[np.bool_]:
        """From a decoded image (H, W, 3) to its mask (H, W), by the reference's own steps."""
        height, width = rgb.shape[:2]
        assert self._tokenizer is not None
        size = self._model.config.input_size
        where = self.identity.device.value
        square = torch.from_numpy(images.letterbox(rgb, size).transpose(2, 0, 1))  # HWC -> CHW
        mean = torch.tensor(images.MEAN).reshape(3, 1, 1)
        std = torch.tensor(images.STD).reshape(3, 1, 1)
        pixels = square.float().div_(255.0).sub_(mean).div_(std)[None]  # (1, 3, S, S)
        tokens = torch.from_numpy(self._tokenizer.encode([expression]).tokens)
        with torch.inference_mode():
            logits = self._model(pixels.to(where), tokens.to(where))
            values = functional.interpolate(
                torch.sigmoid(logits), (size, size), mode="bicubic", align_corners=True
            )
        whole = cv2.warpAffine(
            values[0, 0].cpu().numpy(),
            Letterbox(height, width, size).inverse,
            (width, height),
            flags=cv2.INTER_CUBIC,
            borderValue=0.0,
        )
        return np.asarray(whole > THRESHOLD)

    def segment_file(self, data: bytes, expression: str) -> NDArray[np.bool_]:
        """As `segment`, from a file's bytes."""
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        return self.segment(np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)), expression)


class Compiled:
    """torch.compile of the same model, for one shape at a time."""

    def __init__(self, model: Cris, device: Device) -> None:
        self.identity = Identity(COMPILED, Role.PEER, device, Compute.FP32.value)
        self._model = torch.compile(model, dynamic=False)

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Compile, which takes a minute at full size; see `Network`.

        Raises:
            BackendError: it cannot be compiled.
        """
        bound = _bind(self._model, self.identity.device, image, tokens)
        try:
            bound.run()
        except Exception as error:  # its errors share no base class
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackendError(
                f"torch.compile failed ({first}): it wants a C++ compiler (apt install g++); "
                f"--no-peers or --quick leaves it out"
            ) from error
        return bound


def _bind(
    model: Callable[..., torch.Tensor], device: Device, image: NDArray[Any], tokens: NDArray[Any]
) -> Bound:
    tensors = tuple(torch.from_numpy(array).to(device.value) for array in (image, tokens))

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(*tensors)

    if device is Device.CPU:
        return Bound(forward, lambda: forward().numpy())
    from cris_bench.cuda import clocked

    return Bound(
        lambda: clocked(forward, torch.cuda.current_stream()), lambda: forward().cpu().numpy()
    )
