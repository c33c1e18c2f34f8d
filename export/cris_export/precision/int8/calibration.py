"""What values a graph's tensors take on samples, and the step size that rounds them best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from cris_deploy.errors import InputError
from cris_export.precision.ranges import Feed, open_session

LEVELS = 127
"""Steps to either side of zero. Symmetric and signed, because TensorRT reads nothing else: it takes
an unsigned zero point for a signed one, with no more than a warning."""

# Histograms count by the upper bits of a float32: its exponent and 6 bits of its mantissa, so that
# one pass serves any range, at a resolution of 1.6%.
_SHIFT = 17
_BINS = 1 << (31 - _SHIFT)
_CENTRES = ((np.arange(_BINS, dtype=np.uint32) << _SHIFT) + (1 << (_SHIFT - 1))).view(np.float32)
# Clipping below a twentieth of the largest value was never the best on any layer seen.
_FRACTIONS = np.geomspace(0.05, 1.0, 80)


@dataclass
class Observation:
    """What was seen of one tensor.

    Attributes:
        counts: Histogram of magnitudes.
        channels: Largest magnitude per channel: axis 1 of a picture (n, C, h, w), else the last.
        sums: Sum per channel.
        number: Values per channel.
        products: Sum over positions of the products of all channels with each other, (C, C); None
            if it was not asked for.
    """

    counts: NDArray[np.int64]
    channels: NDArray[np.float32]
    sums: NDArray[np.float64]
    number: int
    products: NDArray[np.float64] | None = None

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean per channel."""
        return self.sums / self.number

    def step(self, levels: int = LEVELS, margin: float = 1.0) -> float:
        """The step size of least mean squared error, rounding and clipping together.

        Args:
            levels: Steps from zero to where the range ends.
            margin: What the step is multiplied by, as far as the largest value seen needs it.
        """
        filled = np.flatnonzero(self.counts)
        if not len(filled) or _CENTRES[filled[-1]] == 0:
            return 1.0  # all zero: any step does
        values = _CENTRES[filled].astype(np.float64)
        counts = self.counts[filled]
        steps = float(self.channels.max()) / levels * _FRACTIONS
        errors = [float(counts @ _squared_error(values, step, levels)) for step in steps]
        return min(float(steps[int(np.argmin(errors))]) * margin, float(steps[-1]))

    @property
    def noise(self) -> float:
        """Squared error of rounding at the best step, as a share of the squares."""
        filled = np.flatnonzero(self.counts)
        values, counts = _CENTRES[filled].astype(np.float64), self.counts[filled]
        squares = float(counts @ values**2)
        return float(counts @ _squared_error(values, self.step(), LEVELS)) / max(squares, 1e-30)


def observe(
    model: Path,
    feeds: Sequence[Feed],
    names: Iterable[str],
    what: str,
    products: Iterable[str] = (),
) -> dict[str, Observation]:
    """Run a graph on samples and watch some of its tensors.

    Args:
        model: An ONNX file whose weights lie beside it.
        feeds: One mapping of input names to arrays per sample.
        names: The tensors, graph inputs among them.
        what: For the progress bar.
        products: Tensors whose products of channels are wanted, too.

    Returns:
        Tensor name -> Observation.

    Raises:
        InputError: a tensor is not finite on some sample.
    """
    multiplied = set(products)
    wanted = sorted({*names, *multiplied})
    if not wanted:  # asked for no outputs, a session gives all
        return {}
    proto = onnx.load(model, load_external_data=False)
    known = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    proto.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in wanted if name not in known
    )
    session = open_session(proto, model.parent, plain=False)
    outputs = [name for name in wanted if name not in {v.name for v in proto.graph.input}]
    seen: dict[str, Observation] = {}
    for feed in tqdm(feeds, what, leave=False, disable=None):
        values = dict(zip(outputs, session.run(outputs, dict(feed)), strict=True))
        for name in wanted:
            value = values[name] if name in values else feed[name]
            _watch(seen, name, value, name in multiplied)
    return seen


def _watch(
    seen: dict[str, Observation], name: str, value: NDArray[np.float32], multiplied: bool
) -> None:
    magnitude = np.abs(np.ascontiguousarray(value, dtype=np.float32))
    axes = (0, 2, 3) if value.ndim == 4 else tuple(range(value.ndim - 1))
    channels = magnitude.max(axis=axes)
    if not np.isfinite(channels).all():
        raise InputError(
            f"--calibration: {name} is not finite on a sample: the checkpoint is damaged, or the "
            "image or expression is unusable"
        )
    bins = (magnitude.view(np.uint32) >> _SHIFT).ravel()
    counts = np.bincount(bins, minlength=_BINS)
    sums = value.sum(axis=axes, dtype=np.float64)
    number = value.size // len(channels)
    rows = value.reshape(-1, value.shape[-1]).astype(np.float64) if multiplied else None
    products = None if rows is None else rows.T @ rows
    if name not in seen:
        seen[name] = Observation(counts, channels, sums, number, products)
        return
    known = seen[name]
    known.counts += counts
    known.sums += sums
    known.number += number
    np.maximum(known.channels, channels, out=known.channels)
    if products is not None:
        assert known.products is not None
        known.products += products


def _squared_error(values: NDArray[np.float64], step: float, levels: int) -> NDArray[np.float64]:
    """Expected squared error of magnitudes: below half a step, within the range, and beyond it."""
    return np.where(
        values < step / 2,
        values**2,
        np.where(values < (levels + 0.5) * step, step**2 / 12, (values - levels * step) ** 2),
    )
