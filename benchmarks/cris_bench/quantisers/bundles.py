"""A float32 bundle's stages to quantise, and bundles that hold other stages in their place."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from cris_deploy.bundle.manifest import STAGES, GraphName, Precision, Quantisation
from cris_deploy.bundle.reading import TOKENIZER, WEIGHTS, Bundle
from cris_deploy.errors import InputError
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.graph.weights import WeightFile, compose_full
from cris_export.precision.int8.sites import fold_weight_slices
from cris_export.precision.shares import type_share
from cris_export.proof.float32 import Reference, run_stages
from cris_export.proof.samples import SampleSource
from cris_export.write import BundleWriter

MOST_PAIRS = 128


def open_float32(path: Path) -> Bundle:
    """Open a bundle; InputError if it is not float32."""
    bundle = Bundle.open(path)
    if bundle.manifest.precision is not Precision.FP32:
        raise InputError(f"--bundle {path} is {bundle.manifest.precision}: give a float32 one")
    return bundle


@contextlib.contextmanager
def scratch(bundle: Bundle, pairs: Sequence[SampleSource], flag: str) -> Iterator[Reference]:
    """A copy of the bundle's float32 stages, and what they read on pairs; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="cris-quantisers-") as name:
        folder = Path(name)
        shutil.copyfile(bundle.path / WEIGHTS, folder / WEIGHTS)
        for stage in STAGES:
            shutil.copyfile(bundle.graph(stage), folder / f"{stage}.onnx")
            model = ir.load(folder / f"{stage}.onnx")
            fold_weight_slices(model)  # NNCF stops at them, others leave such layers out
            onnx.save(ir.to_proto(model), folder / f"{stage}.onnx")
        size, words = bundle.manifest.model.input_size, bundle.manifest.model.word_len
        tokenizer = Tokenizer.from_file(bundle.path / TOKENIZER, words)
        yield run_stages(folder, pairs, tokenizer, size, flag, MOST_PAIRS)


def load_stages(folder: Path) -> dict[str, ir.Model]:
    """The float32 stages, to be changed in place."""
    return {stage.value: ir.load(folder / f"{stage}.onnx") for stage in STAGES}


def write_bundle(
    source: Bundle, models: Mapping[str, ir.Model], quantisation: Quantisation, output: Path
) -> dict[str, int]:
    """Write a bundle with other stages and the same everything else.

    Args:
        source: The float32 bundle.
        models: Stage name -> graph, of the float32 graph's inputs and outputs.
        quantisation: For the manifest: how large its weights' integers are decides how a CPU
            without VNNI adds.
        output: The new folder.

    Returns:
        File name -> bytes.
    """
    with BundleWriter(output) as writer:
        folder = writer.directory
        for name in source.manifest.files:
            if name == TOKENIZER or name.startswith("samples/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.path / name, folder / name)
        with WeightFile(folder) as weights:
            for model in models.values():
                weights.externalise(model)
        protos = {name: ir.to_proto(models[name]) for name in STAGES}
        protos[GraphName.FULL] = compose_full([protos[stage] for stage in STAGES])
        for name, proto in protos.items():
            onnx.save(proto, folder / f"{name}.onnx")
        manifest = writer.write_manifest(
            dataclasses.replace(
                source.manifest,
                precision=Precision.INT8,
                types={name: type_share(proto) for name, proto in protos.items()},
                parity=None,
                quantisation=quantisation,
                weights={},
                plans={},
            )
        )
        writer.commit()
    return {name: record.bytes for name, record in manifest.files.items()}
