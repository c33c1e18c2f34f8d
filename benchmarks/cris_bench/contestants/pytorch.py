"""PyTorch eager, which everything is compared with, and what else PyTorch can do by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from cris_bench.contestants.contestant import Bound, Identity
from cris_bench.place import Place
from cris_bench.record.rows import Role
from cris_bench.scopes.timing import clocked
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import Compute
from cris_deploy.pixels import image as images
from cris_deploy.pixels.image import Letterbox, Pixels
from cris_deploy.words.tokenizer import Tokenizer
from cris_train.data.target import THRESHOLD
from cris_train.model import Cris

EAGER = "PyTorch eager fp32"
EAGER_SHARED = "PyTorch eager fp32, image shared"
"""The baseline's model, which encodes an image once for all of its expressions."""
_WANTS_COMPILER = "torch.compile wants a C++ compiler (apt install g++)"


class Eager:
    """The model as it was trained, on one device, float32; an image for every expression.

    Args:
        model: In evaluation mode, at `place`.
        tokenizer: CLIP's, with the model's word length; None where only the network is run.
        place: Where it runs.
    """

    single: Final = False

    def __init__(self, model: Cris, tokenizer: Tokenizer | None, place: Place) -> None:
        self.identity = Identity(EAGER, Role.BASELINE, place, Compute.FP32.value)
        self._model = model
        self._tokenizer = tokenizer

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Bind; see `Network`."""
        return _bind(self._model, self.identity.place, image, tokens)

    def segment(self, rgb: Pixels, expression: str) -> NDArray[np.bool_]:
        """From a decoded image (H, W, 3) to its mask (H, W), by the reference's own steps."""
        height, width = rgb.shape[:2]
        assert self._tokenizer is not None
        size = self._model.config.input_size
        where = str(self.identity.place)
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


@dataclass(frozen=True)
class Variant:
    """Another way to run the same model in PyTorch.

    Attributes:
        name: Of the contestant.
        compute: Arithmetic.
        autocast: Type that PyTorch casts inputs of products to; None for no autocast.
        half: Whether the weights are float16.
        channels_last: Whether pictures lie in memory as (n, h, w, C).
        mode: Of torch.compile; None to run eagerly.
        frozen: Whether the compiler may bake the weights in: folded, cast and packed once.
    """

    name: str
    compute: Compute
    autocast: torch.dtype | None = None
    half: bool = False
    channels_last: bool = False
    mode: str | None = None
    frozen: bool = False

    @property
    def weights(self) -> tuple[bool, bool]:
        """What it wants of the weights; variants that want the same share them."""
        return self.half, self.channels_last


_BF16: Final = torch.bfloat16
SHARED: Final = Variant(EAGER_SHARED, Compute.FP32)
# What a CPU's users would try; the last are the slowest to be made ready.
ON_CPU: Final = (
    SHARED,
    Variant("PyTorch eager bf16", Compute.BF16, autocast=_BF16, channels_last=True),
    Variant("PyTorch eager fp32, channels last", Compute.FP32, channels_last=True),
    Variant("torch.compile bf16", Compute.BF16, _BF16, False, True, "default", frozen=True),
    Variant("torch.compile fp32", Compute.FP32, None, False, True, "default", frozen=True),
)
COMPILED: Final = ON_CPU[-1]
# What a GPU's users would try before they export anything.
ON_CUDA: Final = (
    SHARED,
    Variant("PyTorch autocast fp16", Compute.FP16, autocast=torch.float16),
    Variant("PyTorch eager fp16, channels last", Compute.FP16, half=True, channels_last=True),
    Variant("torch.compile fp32", Compute.FP32, mode="default"),
    Variant(
        "torch.compile fp16, max-autotune",
        Compute.FP16,
        half=True,
        channels_last=True,
        mode="max-autotune",
    ),
)


def peers(model: Cris, variants: Sequence[Variant], place: Place) -> list[Peer]:
    """Make them, of as few copies of the weights as they allow; the model stays as it is."""
    copies: dict[tuple[bool, bool], Cris] = {(False, False): model}
    for variant in variants:
        if variant.weights not in copies:
            own = copy.deepcopy(model)
            own = own.half() if variant.half else own
            layout = torch.channels_last if variant.channels_last else torch.contiguous_format
            copies[variant.weights] = own.to(memory_format=layout)
    return [Peer(copies[variant.weights], variant, place) for variant in variants]


class Peer:
    """A variant, for one shape at a time if it is compiled.

    Args:
        model: In evaluation mode, at `place`, its weights as the variant wants them.
        variant: How it is run.
        place: Where.
    """

    single: Final = False

    def __init__(self, model: Cris, variant: Variant, place: Place) -> None:
        self.identity = Identity(variant.name, Role.PEER, place, variant.compute.value)
        self._variant = variant
        self._model: Callable[..., torch.Tensor] = model
        if variant.frozen:
            self._model = torch.compile(model, dynamic=False, options={"freezing": True})
        elif variant.mode is not None:
            self._model = torch.compile(model, dynamic=False, mode=variant.mode)

    def bind(self, image: NDArray[Any], tokens: NDArray[Any]) -> Bound:
        """Run once, which compiles what is to be compiled (minutes at full size); see `Network`.

        Raises:
            BackendError: it cannot be compiled, or not run in its types.
        """
        bound = _bind(self._forward, self.identity.place, image, tokens)
        try:
            bound.run()
        except Exception as error:  # PyTorch's errors share no base class
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            remedy = (
                "it cannot run in these types" if self._variant.mode is None else _WANTS_COMPILER
            )
            raise BackendError(
                f"{self.identity.name} failed ({first}): {remedy}; --no-peers leaves it out"
            ) from error
        return bound

    def _forward(self, image: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        variant = self._variant
        if variant.half:
            image = image.half()
        if variant.channels_last:
            image = image.to(memory_format=torch.channels_last)
        if variant.autocast is None:
            return self._model(image, tokens).float()
        with torch.autocast(image.device.type, variant.autocast):
            return self._model(image, tokens).float()


def _bind(
    model: Callable[..., torch.Tensor], place: Place, image: NDArray[Any], tokens: NDArray[Any]
) -> Bound:
    tensors = tuple(torch.from_numpy(array).to(str(place)) for array in (image, tokens))

    def forward() -> torch.Tensor:
        with torch.inference_mode():
            return model(*tensors)

    if not place.on_gpu:
        return Bound(forward, lambda: forward().numpy())
    from cris_bench.contestants.cuda import PASSES

    stream = torch.cuda.current_stream(str(place))
    return Bound(lambda: clocked(forward, stream, PASSES), lambda: forward().cpu().numpy())
