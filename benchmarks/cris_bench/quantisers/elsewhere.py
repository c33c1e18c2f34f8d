"""Run in another Python: `python elsewhere.py TOOL GRAPH.onnx FEEDS.npz OUTPUT.onnx`.

NNCF and ModelOpt pin packages that the engine's environment cannot have. This file imports nothing
of ours, and of theirs only what the named tool needs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx

Feeds = list[dict[str, Any]]


def nncf(graph: str, feeds: Feeds, output: str) -> None:
    """Its defaults for transformers, symmetric, weights of 7 bits against overflow."""
    import nncf

    quantised = nncf.quantize(
        onnx.load(graph),
        nncf.Dataset(feeds),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE
        ),
    )
    onnx.save(quantised, output)


def modelopt_int8(method: str) -> Callable[[str, Feeds, str], None]:
    """ModelOpt's int8 in float32, made for TensorRT: weights have 8 bits."""

    def quantise(graph: str, feeds: Feeds, output: str) -> None:
        from modelopt.onnx.quantization import quantize

        quantize(
            graph,
            quantize_mode="int8",
            calibration_data=_stacked(feeds),
            calibration_method=method,
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=output,
        )

    return quantise


def autocast(graph: str, feeds: Feeds, output: str) -> None:
    """ModelOpt's float16, which keeps in float32 what reaches beyond its limits on the samples."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    data = f"{output}.calibration.npz"
    np.savez(data, **feeds[0])
    onnx.save(
        convert_to_mixed_precision(
            graph, low_precision_type="fp16", keep_io_types=True, calibration_data=data
        ),
        output,
    )


def onnxconverter(graph: str, feeds: Feeds, output: str) -> None:
    """The float16 pass of onnxconverter-common with its defaults."""
    from onnxconverter_common import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(graph), keep_io_types=True), output)


def _stacked(feeds: Feeds) -> dict[str, Any]:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


TOOLS: dict[str, Callable[[str, Feeds, str], None]] = {
    "nncf": nncf,
    "modelopt-max": modelopt_int8("max"),
    "modelopt-entropy": modelopt_int8("entropy"),
    "autocast": autocast,
    "onnxconverter": onnxconverter,
}


def main() -> None:
    """Read, run, write."""
    tool, graph, npz, output = sys.argv[1:]
    feeds: dict[int, dict[str, Any]] = {}
    for key, array in np.load(npz).items():
        index, _, name = key.partition("/")
        feeds.setdefault(int(index), {})[name] = array
    TOOLS[tool](graph, [feeds[index] for index in sorted(feeds)], output)


if __name__ == "__main__":
    main()
