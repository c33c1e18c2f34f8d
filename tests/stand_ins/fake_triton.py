"""Triton's module `triton_python_backend_utils`, as far as a model uses it, and its requests."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


class _Held:
    """A capsule as `np.from_dlpack` wants to see it."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU


class Tensor:
    def __init__(self, name: str, values: Any) -> None:
        self._name, self.values = name, values

    @staticmethod
    def from_dlpack(name: str, capsule: Any) -> "Tensor":
        return Tensor(name, np.from_dlpack(_Held(capsule)).copy())

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        # What a build that was compiled before NumPy 2 gives is empty.
        assert self.values.dtype == np.object_, "numbers go through DLPack"
        return self.values

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE = range(3)

    def __init__(self, sentence: str, code: int) -> None:
        self.sentence, self.code = sentence, code


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None


@dataclass
class Request:
    tensors: list[Tensor]
    wanted: list[str]

    def inputs(self) -> list[Tensor]:
        return self.tensors

    def requested_output_names(self) -> list[str]:
        return self.wanted
