"""What a user has without this project: one call of the exporter, whose graph is run as it is."""

from __future__ import annotations

from pathlib import Path

import torch

from cris_deploy.errors import one_line
from cris_export.errors import ExportError
from cris_export.graph.trace import quiet
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
        with quiet():
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
