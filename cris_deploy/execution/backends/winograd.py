"""Minimal filtering: a 3x3 convolution with a quarter of the products, for OpenVINO in float32.

Winograd's F(4, 3) makes four outputs of a filter of three taps from six products instead of twelve;
in two dimensions 36 products do the work of 144 (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2016, section 4). An image is cut into tiles of 4 x 4 outputs, each of which reads
6 x 6 pixels:

    output = inverse [ (filters' transform) x (forward pixels) ]

Forward and inverse are fixed linear maps of rows and columns, so they are matrix products, and the
edges' zeros are rows of these matrices; between them lie 36 products of matrices of channels. In
float32 the result is as far from the exact one as 1e-5 of its deviation, which float32 has room for
and bfloat16 (0.15) has not.
"""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_OUTPUTS: Final = 4
_TAPS: Final = 3
_FREQUENCIES: Final = _OUTPUTS + _TAPS - 1
# Where the polynomials are evaluated, and at infinity: small and simple, so that little is rounded.
_POINTS: Final = (0.0, 1.0, -1.0, 0.5, -2.0)


class Transforms(NamedTuple):
    """The linear maps of one dimension of `side` pixels, cut into `tiles` of 4; float64."""

    filters: NDArray[np.float64]
    """[6, 3]: taps to frequencies."""
    forward: NDArray[np.float64]
    """[6, tiles, side]: pixels to the frequencies of every tile."""
    inverse: NDArray[np.float64]
    """[side, 6, tiles]: products to outputs."""


def transforms(side: int) -> Transforms:
    """Make the maps for y[i] = sum over k of w[k] x[i + k - 1], `side` pixels between zeros.

    A product of polynomials is known from its values at six points (the last at infinity). What
    filtering needs is the transposed problem, so evaluation makes outputs, and the inverse of
    evaluation, transposed, takes pixels (Lavin and Gray, section 4.1).
    """
    filters, outputs = _powers(_TAPS), _powers(_OUTPUTS)
    pixels = np.linalg.inv(_powers(_FREQUENCIES)).T
    tiles = -(-side // _OUTPUTS)
    forward = np.zeros((_FREQUENCIES, tiles, side))
    inverse = np.zeros((side, _FREQUENCIES, tiles))
    for tile in range(tiles):
        first = tile * _OUTPUTS
        for place in range(_FREQUENCIES):
            if 0 <= first + place - 1 < side:
                forward[:, tile, first + place - 1] = pixels[:, place]
        for place in range(min(_OUTPUTS, side - first)):
            inverse[first + place, :, tile] = outputs[:, place]
    return Transforms(filters, forward, inverse)


def rewrite(model: Any) -> int:
    """Put minimal filtering into an `openvino.Model` of static shapes; say into how many layers."""
    layers = [node for node in model.get_ordered_ops() if _gains(node)]
    for node in layers:
        minimal = _minimal(node)
        minimal.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(minimal.output(0))
    return len(layers)


def _gains(node: Any) -> bool:
    """Whether a layer is a 3x3 convolution for which fewer products are worth the transforms."""
    if node.get_type_name() != "Convolution" or _stored(node) is None:
        return False
    options = node.get_attributes()
    if any(options[name] != [1, 1] for name in ("strides", "dilations", "pads_begin", "pads_end")):
        return False
    outputs, inputs, *taps = node.get_input_shape(1)
    return taps == [_TAPS, _TAPS] and worth_it(inputs, outputs, *node.get_input_shape(0)[2:])


def worth_it(inputs: int, outputs: int, height: int, width: int) -> bool:
    """Whether the products saved outweigh the transforms (channels) and larger weights (pixels)."""
    return min(inputs, outputs) >= 256 and height * width >= 256


def _minimal(node: Any) -> Any:
    """The layer in OpenVINO's operations: [1, inputs, H, W] -> [1, outputs, H, W]."""
    from openvino import opset13 as op

    stored = _stored(node)
    assert stored is not None
    weights = stored.get_data().astype(np.float32)
    outputs, inputs = weights.shape[:2]
    height, width = node.get_input_shape(0)[2:]
    rows, columns = transforms(height), transforms(width)
    down, across = rows.forward.shape[1], columns.forward.shape[1]
    taps = np.ascontiguousarray(weights.transpose(2, 3, 1, 0)).reshape(_TAPS * _TAPS, -1)

    def constant(values: NDArray[Any]) -> Any:
        return op.constant(np.ascontiguousarray(values, np.float32))

    def shaped(value: Any, *shape: int) -> Any:
        return op.reshape(value, op.constant(np.array(shape, np.int64)), special_zero=False)

    def moved(value: Any, *axes: int) -> Any:
        return op.transpose(value, op.constant(np.array(axes, np.int64)))

    def product(left: Any, right: Any) -> Any:
        return op.matmul(left, right, transpose_a=False, transpose_b=False)

    to_rows = constant(rows.forward.reshape(-1, height))
    from_rows = constant(rows.inverse.reshape(height, -1))
    from_columns = constant(columns.inverse.reshape(width, -1))
    pixels = op.convert(node.input_value(0), "f32")
    # Three dimensions: of four, OpenVINO first reorders and then moves what a convolution gave it.
    pixels = moved(shaped(pixels, inputs, height, width), 1, 2, 0)
    results = []
    # Frequencies of the columns one by one: all tensors stay in the order in which they are read.
    for frequency in range(_FREQUENCIES):
        part = product(constant(columns.forward[frequency]), pixels)  # [H, across, inputs]
        part = product(to_rows, shaped(part, height, across * inputs))
        part = shaped(part, _FREQUENCIES, down * across, inputs)
        # The layer's weights at this frequency of the columns and every one of the rows
        here = np.kron(rows.filters, columns.filters[frequency]).astype(np.float32) @ taps
        part = product(part, constant(here.reshape(_FREQUENCIES, inputs, outputs)))
        part = shaped(part, _FREQUENCIES * down, across * outputs)
        results.append(shaped(product(from_rows, part), height, across, outputs))
    result = product(from_columns, op.concat(results, 1))  # [H, W, outputs]
    result = moved(shaped(result, 1, height, width, outputs), 0, 3, 1, 2)
    return op.convert(result, node.get_output_element_type(0))


def _powers(count: int) -> NDArray[np.float64]:
    """[6, count]: the powers 0 to count - 1 of every point; at infinity only the highest counts."""
    powers = np.array([[point**power for power in range(count)] for point in _POINTS])
    return np.vstack([powers, np.eye(count)[-1]])


def _stored(node: Any) -> Any | None:
    """The constant that holds a layer's float32 or float16 weights; None for any others."""
    source = node.input_value(1).get_node()
    if source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant" or not source.get_element_type().is_real():
        return None
    return source
