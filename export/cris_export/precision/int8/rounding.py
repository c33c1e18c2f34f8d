"""Weights become integers, one step size per output channel.

A weight that is multiplied in int8 has 7 bits, so that no CPU saturates
(`cris_deploy/machine/cpu.py`): ONNX Runtime and OpenVINO both add 128 to a signed activation and
multiply unsigned by signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from cris_deploy.machine.cpu import EXACT_LEVELS
from cris_export.precision.int8.calibration import LEVELS, Observation
from cris_export.precision.int8.sites import Site

# Share of the mean power of the inputs that is added to the power of each: what samples never
# showed may come later, and few samples do not span all inputs.
_DAMPING = 0.03
# Rows between two updates of all that follow: so many fit into a core's cache.
_BLOCK = 64


@dataclass(frozen=True)
class Rounded:
    """A weight in int8.

    Attributes:
        integers: -127 to 127, or -64 to 64 where they are multiplied as integers; int8, of the
            weight's shape.
        steps: Step size per output channel, float32.
        axis: Of the output channels.
    """

    integers: NDArray[np.int8]
    steps: NDArray[np.float32]
    axis: int

    @property
    def values(self) -> NDArray[np.float64]:
        """The weight that is computed with."""
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return self.integers.astype(np.float64) * self.steps.reshape(shape)


def round_weights(sites: Sequence[Site], seen: Mapping[str, Observation]) -> dict[str, Rounded]:
    """Round the weights of layers, by the weights' names.

    Matrices whose inputs' products were observed are rounded with compensation, all others to the
    nearest integer. What no layer multiplies in int8 is only stored so, and has all 8 bits.
    """
    layers: dict[ir.Value, list[Site]] = {}
    for site in sites:
        layers.setdefault(site.weight, []).append(site)
    rounded = {}
    for weight, users in layers.items():
        assert weight.const_value is not None
        array = weight.const_value.numpy()
        products = [
            observation.products
            for site in users
            if (observation := seen.get(site.source.name or ""))
            and observation.products is not None
        ]
        levels = EXACT_LEVELS if any(site.whole for site in users) else LEVELS
        if array.ndim == 2 and len(products) == len(users):
            result = compensate(array, users[0].outputs, np.sum(products, axis=0), levels)
        else:
            result = round_weight(array, users[0].outputs, levels)
        rounded[weight.name or ""] = result
    return rounded


def round_weight(weight: NDArray[np.float32], axis: int, levels: int = LEVELS) -> Rounded:
    """Round to the nearest integer of -levels to levels, with a step size per index of one axis."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    steps = np.abs(weight).max(axis=others, keepdims=True) / levels
    steps = np.where(steps > 0, steps, 1).astype(np.float32)
    integers = np.clip(np.rint(weight / steps), -levels, levels).astype(np.int8)
    return Rounded(integers, steps.ravel(), axis)


def compensate(
    weight: NDArray[np.float32], axis: int, products: NDArray[np.float64], levels: int = LEVELS
) -> Rounded:
    """Round a matrix so that its results, not its numbers, change least.

    Inputs are correlated, so the error of one rounded weight can be taken back by those that are
    not rounded yet: row by row, each row's error times its regression on the rows to come (GPTQ,
    Frantar et al. 2023). The step sizes are those of `round_weight`.

    Args:
        weight: (inputs, outputs), or (outputs, inputs) if `axis` is 0.
        axis: Of the output channels.
        products: (inputs, inputs), sum over samples of the inputs' products with each other.
        levels: Steps to either side of zero.
    """
    steps = round_weight(weight, axis, levels).steps.astype(np.float64)
    rest = np.array(weight if axis == 1 else weight.T, np.float64)  # (inputs, outputs)
    count = len(rest)
    power = float(np.trace(products)) / count
    damped = products + np.eye(count) * (_DAMPING * power if power > 0 else 1.0)
    # Row i of the upper Cholesky factor of the inverse holds the regression of input i on i + 1...
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    integers = np.empty(rest.shape, np.int8)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.empty((end - start, rest.shape[1]))
        for row in range(start, end):
            nearest = np.clip(np.rint(rest[row] / steps), -levels, levels)
            integers[row] = nearest
            error = (rest[row] - nearest * steps) / factor[row, row]
            rest[row + 1 : end] -= np.outer(factor[row, row + 1 : end], error)
            errors[row - start] = error
        rest[end:] -= factor[start:end, end:].T @ errors
    return Rounded(
        np.ascontiguousarray(integers if axis == 1 else integers.T), steps.astype(np.float32), axis
    )
