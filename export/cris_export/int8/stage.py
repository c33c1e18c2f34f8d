"""A float32 stage becomes an int8 one, calibrated on samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from cris_deploy.manifest import GraphName
from cris_export.float32 import Reference
from cris_export.int8.calibration import observe
from cris_export.int8.equalise import equalise, find_moves
from cris_export.int8.quantise import quantise, quantise_embedding
from cris_export.int8.sites import find_sites, fold_weight_slices, residual_values


def to_int8(models: Mapping[str, ir.Model], reference: Reference) -> None:
    """Quantise the stages, in place.

    Args:
        models: Stage name -> float32 graph.
        reference: The same graphs on disk, and calibration samples. Its graphs are replaced by
            their equalised forms, whose inner values the quantised graphs' can be held against.

    Raises:
        InputError: a tensor is not finite on a sample.
    """
    for name, model in models.items():
        stage = GraphName(name)
        path, feeds = reference.graph(stage), reference.feeds[stage]
        fold_weight_slices(model)
        moves = find_moves(model)
        ranges = observe(path, feeds, [move.name for move in moves], f"{name}: ranges")
        equalise(moves, ranges)
        _write(model, path)
        sites = find_sites(model)
        residuals = residual_values(model, sites)
        values = [site.source for site in sites if site.whole] + residuals
        seen = observe(path, feeds, [value.name or "" for value in values], f"{name}: steps")
        quantise(model, sites, residuals, seen)
        quantise_embedding(model)


def _write(model: ir.Model, path: Path) -> None:
    """Write with all weights inside: a stage stays far below the 2 GB that a file may have."""
    onnx.save(ir.to_proto(model), path)
