from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

INTERFACE: int
CUDA_ARCHITECTURES: str

@final
class Frame:
    def __init__(
        self,
        height: int,
        width: int,
        *,
        scale_y: float,
        offset_y: float,
        scale_x: float,
        offset_x: float,
    ) -> None: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def scale_y(self) -> float: ...
    @property
    def offset_y(self) -> float: ...
    @property
    def scale_x(self) -> float: ...
    @property
    def offset_x(self) -> float: ...

@final
class Result:
    @property
    def mask(self) -> NDArray[np.bool_] | None: ...
    @property
    def packed(self) -> NDArray[np.uint8] | None: ...
    @property
    def probabilities(self) -> NDArray[np.float32] | None: ...
    @property
    def counts(self) -> str | None: ...
    @property
    def box(self) -> tuple[int, int, int, int] | None: ...
    @property
    def area(self) -> int: ...

def upsample(
    logits: NDArray[np.float32] | NDArray[np.float16],
    frames: Sequence[Frame],
    thresholds: Sequence[float],
    input_size: int,
    *,
    direct: bool = ...,
    mask: bool = ...,
    packed: bool = ...,
    probabilities: bool = ...,
    rle: bool = ...,
    out: Sequence[NDArray[np.bool_]] | None = ...,
    threads: int = ...,
) -> list[Result]: ...
def letterbox(rgb: NDArray[np.uint8], frame: Frame, size: int) -> NDArray[np.float32]: ...
def rle(mask: NDArray[np.bool_]) -> str: ...
def simd() -> str: ...
def select_simd(name: str) -> None: ...

# Only in a build with CUDA (CUDA_ARCHITECTURES is not empty).
def cuda_workspace_bytes(frames: Sequence[Frame], source_height: int, source_width: int) -> int: ...
def cuda_upsample(
    logits: object,
    frames: Sequence[Frame],
    thresholds: Sequence[float],
    input_size: int,
    workspace: object,
    *,
    masks: Sequence[object] | None = ...,
    packed: Sequence[object] | None = ...,
    probabilities: Sequence[object] | None = ...,
    stats: object | None = ...,
    direct: bool = ...,
    stream: int = ...,
) -> None: ...
def cuda_letterbox(rgb: object, frame: Frame, out: object, *, stream: int = ...) -> None: ...
