"""int8 as a CPU without VNNI computes it, in NumPy, from the graph.

`vpmaddubsw` multiplies 32 unsigned bytes by 32 signed ones and adds neighbouring products in 16
bits, with saturation. Runtimes feed it a signed activation plus 128, and take back what the 128
added. Which two products are neighbours follows from how the numbers lie in memory: two channels of
one tap of a convolution (its input lies as (n, h, w, C)), two rows of a matrix.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

LOW, HIGH = -(2**15), 2**15 - 1
DOMAIN = "vpmaddubsw"


def multiply(activation: NDArray[np.int8], weight: NDArray[np.int8]) -> NDArray[np.int64]:
    """Multiply (P, K) by (K, N) as `vpmaddubsw` does, rows 2k and 2k + 1 of the weight together."""
    if activation.shape[1] % 2:
        activation = np.pad(activation, ((0, 0), (0, 1)))
        weight = np.pad(weight, ((0, 1), (0, 0)))
    unsigned = activation.astype(np.int32) + 128
    signed = weight.astype(np.int32)
    total = np.rint(unsigned.astype(np.float64) @ signed.astype(np.float64)).astype(np.int64)
    # Only columns whose two weights pull the same way can leave 16 bits.
    risk = np.abs(signed[0::2] + signed[1::2]) * 255 > HIGH
    for pair in np.flatnonzero(risk.any(axis=1)):
        columns = np.flatnonzero(risk[pair])
        sums = (
            unsigned[:, [2 * pair]] * signed[2 * pair, columns]
            + unsigned[:, [2 * pair + 1]] * signed[2 * pair + 1, columns]
        )
        total[:, columns] += np.clip(sums, LOW, HIGH) - sums
    return total - 128 * signed.sum(axis=0)


def convolve(
    activation: NDArray[np.int8],
    weight: NDArray[np.int8],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> NDArray[np.int64]:
    """Convolve (n, C, h, w) with (M, C, kh, kw) into (n, M, h', w')."""
    top, left, bottom, right = pads
    padded = np.pad(activation, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]  # (n, C, h', w', kh, kw)
    count, _, height, width = windows.shape[:4]
    rows = windows.transpose(0, 2, 3, 4, 5, 1).reshape(count * height * width, -1)
    columns = weight.transpose(2, 3, 1, 0).reshape(-1, len(weight))
    return multiply(rows, columns).reshape(count, height, width, -1).transpose(0, 3, 1, 2)


class _Layer(OpRun):
    """A layer between DequantizeLinear nodes: its integers, the steps of both, perhaps a bias."""

    op_domain = DOMAIN

    @staticmethod
    def enlarge(weight: Any, factor: int) -> Any:
        return np.clip(weight.astype(int) * factor, -127, 127).astype(np.int8)

    @staticmethod
    def scale(sums: Any, steps: Any, axis: int, bias: Any) -> tuple[Any]:
        shape = [1] * sums.ndim
        shape[axis] = -1
        result = sums * np.asarray(steps, np.float64).reshape(shape)
        if bias is not None:
            result = result + bias.reshape(shape)
        return (result.astype(np.float32),)


class ByteConv(_Layer):
    def _run(self, q, step, weight, steps, bias=None, strides=None, pads=None, factor=1):  # type: ignore
        sums = convolve(q, self.enlarge(weight, factor), tuple(strides), tuple(pads))
        return self.scale(sums, step * steps / factor, 1, bias)


class ByteMatMul(_Layer):
    def _run(self, q, step, weight, steps, bias=None, trans_b=0, factor=1):  # type: ignore
        weight = self.enlarge(weight.T if trans_b else weight, factor)
        sums = multiply(q.reshape(-1, q.shape[-1]), weight).reshape(*q.shape[:-1], -1)
        return self.scale(sums, step * steps / factor, -1, bias)


def integer_layers(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, NDArray[np.int8]]]:
    """The layers that multiply integers by integers, and their weights."""
    made = {output: node for node in model.graph.node for output in node.output}
    weights = {t.name: t for t in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in {"Conv", "MatMul", "Gemm"}:
            continue
        activation, weight = (made.get(name) for name in node.input[:2])
        if activation is None or weight is None:
            continue
        if {activation.op_type, weight.op_type} == {"DequantizeLinear"}:
            found.append((node, onnx.numpy_helper.to_array(weights[weight.input[0]])))
    return found


def load(path: Path, factor: int = 1) -> ReferenceEvaluator:
    """Load a graph whose integer layers saturate; their integers times, their steps by a factor."""
    model = onnx.load(path)
    made = {output: node for node in model.graph.node for output in node.output}
    for node, _ in integer_layers(model):
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        activation, weight = (made[name] for name in node.input[:2])
        inputs = [*activation.input[:2], *weight.input[:2], *node.input[2:]]
        if node.op_type == "Conv":
            kept = {
                "strides": attributes.get("strides", [1, 1]),
                "pads": attributes.get("pads", [0, 0, 0, 0]),
            }
        else:
            kept = {"trans_b": attributes.get("transB", 0)}
        op_type = "ByteConv" if node.op_type == "Conv" else "ByteMatMul"
        node.CopyFrom(
            helper.make_node(op_type, inputs, node.output, domain=DOMAIN, factor=factor, **kept)
        )
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return ReferenceEvaluator(model, new_ops=[ByteConv, ByteMatMul])
