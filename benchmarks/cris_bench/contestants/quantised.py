"""The plain export in int8, by the quantisers that come with the runtimes.

Each is used as its documentation advises for convolutions and attention on a CPU, calibrated on
the pairs on which this project's own export is calibrated.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from cris_deploy.errors import BackendError, one_line
from cris_deploy.machine.cpu import this_cpu
from cris_deploy.pixels import image as images
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.proof.samples import read_samples

INSTALL: Final = "pip install 'cris-deploy[peers]'"
Feed = dict[str, NDArray[Any]]


def calibration(tokenizer: Tokenizer, size: int) -> list[Feed]:
    """The packaged pairs as the plain export takes them, one by one."""
    feeds: list[Feed] = []
    for pair in read_samples(None):
        square = images.letterbox(images.decode(pair.image), size)
        image = images.normalise_all([square])
        feeds.append({"image": image, "tokens": tokenizer.encode([pair.expression]).tokens})
    return feeds


def quantise_for_onnxruntime(plain: Path, feeds: list[Feed], target: Path) -> None:
    """ONNX Runtime's `quantize_static`: Q/DQ pairs, steps per channel, unsigned activations.

    Raises:
        BackendError: it failed.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    prepared = target.with_name("prepared.onnx")
    try:
        quant_pre_process(str(plain), str(prepared), save_as_external_data=True)
        quantization.quantize_static(
            str(prepared),
            str(target),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            reduce_range=this_cpu().saturates,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=True,
        )
    except Exception as error:  # of any type
        raise BackendError(f"quantize_static failed: {one_line(error)}") from error
    finally:
        for file in target.parent.glob("prepared*"):
            file.unlink()


def quantise_for_openvino(plain: Path, feeds: list[Feed], target: Path) -> None:
    """NNCF's `quantize`, with its settings for transformers.

    Raises:
        BackendError: it is not installed, or failed.
    """
    if importlib.util.find_spec("nncf") is None:
        raise BackendError(f"nncf is not installed: run {INSTALL}")
    import nncf
    import openvino

    from cris_deploy.execution.backends.openvino import core

    try:
        quantised = nncf.quantize(
            core().read_model(plain),
            nncf.Dataset(feeds),
            subset_size=len(feeds),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        openvino.save_model(quantised, target, compress_to_fp16=False)
    except Exception as error:  # of any type
        raise BackendError(f"nncf.quantize failed: {one_line(error)}") from error
