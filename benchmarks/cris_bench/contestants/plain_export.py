"""What a user has without this project: one call of the exporter, whose graph is run as it is."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from cris_deploy.errors import ExportError, one_line
from cris_train.model import Cris


def export_plain(model: Cris, batch: int, path: Path) -> None:
    """Export the unmodified model, whole, for a fixed batch, with its weights beside the graph.

    Raises:
        ExportError: the exporter failed.
    """
    config = model.config
    image = torch.zeros(batch, 3, config.input_size, config.input_size)
    tokens = torch.zeros(batch, config.word_len, dtype=torch.int64)
    try:
        with _quiet():
            torch.onnx.export(
                model,
                (image, tokens),
                path,
                dynamo=True,
                input_names=["image", "tokens"],
                output_names=["logits"],
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever went wrong in types of its own
        raise ExportError(
            f"the plain export failed ({one_line(error)}): --no-peers leaves it out"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and advice off the user's screen; its errors still raise."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,  # noqa: PTH123 - a device, not a path
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
