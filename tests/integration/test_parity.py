"""A real export, damaged on its way or afterwards: the gate and the check find it and name it."""

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from cris_deploy.backends import winograd
from cris_deploy.bundle import WEIGHTS, Bundle, GraphName, Precision
from cris_deploy.bundle_check import check
from cris_deploy.errors import CheckpointError, ParityError
from cris_deploy.manifest import Route
from cris_deploy.text import Tokenizer
from cris_export import export as module
from cris_export import samples
from cris_export.export import ExportOptions, export
from cris_train import checkpoint
from cris_train.model import Cris, CrisConfig
from tests.models import randomised
from tests.tiny_bundle import rehash

STAGES = (GraphName.IMAGE_ENCODER, GraphName.TEXT_ENCODER, GraphName.MASK_DECODER)


@pytest.fixture(scope="module")
def model() -> Cris:
    torch.manual_seed(0)
    return randomised(Cris(CrisConfig.tiny(decoder_layers=1)))


@pytest.fixture(scope="module")
def ckpt(model: Cris, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("ckpt") / "tiny.pth", model)


@pytest.fixture(scope="module")
def sound(ckpt: Path) -> Path:
    return export(ExportOptions(ckpt)).bundle


def damage(bundle: Path, stage: GraphName, factor: float) -> str:
    """Multiply a stage's largest kernel or matrix; gives the name of the node that reads it."""
    graph = onnx.load(bundle / f"{stage}.onnx", load_external_data=False).graph
    # The embedding of 49408 words is the largest by far, and samples use few of its rows.
    found = [t for t in graph.initializer if len(t.dims) > 1 and 49408 not in t.dims]
    tensor = [t for t in found if np.prod(t.dims) == max(np.prod(u.dims) for u in found)][-1]
    place = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = int(place["offset"]), int(place["length"])
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    path = bundle / WEIGHTS
    data = bytearray(path.read_bytes())
    values = np.frombuffer(data[offset : offset + length], dtype)
    data[offset : offset + length] = (values * dtype.type(factor)).tobytes()
    path.write_bytes(data)
    return next(node.name for node in graph.node if tensor.name in node.input)


def test_an_export_records_what_proved_it(sound: Path) -> None:
    parity = Bundle.open(sound).manifest.parity
    assert parity is not None
    proofs = {(proof.backend, proof.device): proof for proof in parity.proofs}
    reference = proofs["onnxruntime", "cpu"]
    assert (reference.compute, reference.required, reference.problem) == ("fp32", True, None)
    assert [route.route for route in reference.routes] == [Route.STAGES, Route.FULL]
    assert [stage.stage for stage in reference.stages] == list(STAGES)
    for stage in reference.stages:
        # float32 through another order of sums
        assert stage.relative_error is not None
        assert stage.relative_error < 1e-4
        assert stage.logit_error is not None
        assert stage.logit_error < 1e-4
    assert parity.mean_iou >= 0.999


def test_few_samples_carry_features(sound: Path) -> None:
    manifest = Bundle.open(sound).manifest
    assert {sample.scene for sample in manifest.samples} == {
        "samples/scene0.npz",
        "samples/scene1.npz",
    }
    assert sum(name.endswith(".npz") for name in manifest.files) == 2 + 6
    assert {Path(sample.image).name for sample in manifest.samples} == {
        "0-astronaut.jpg",
        "1-chelsea.jpg",
    }


def test_minimal_filtering_is_within_float32(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every 3x3 convolution, of which the small model has none that is worth it."""
    pytest.importorskip("openvino")
    layers = []
    rewrite = winograd.rewrite
    monkeypatch.setattr(winograd, "worth_it", lambda *_: True)
    monkeypatch.setattr(winograd, "rewrite", lambda model: layers.append(rewrite(model)))
    report = check(sound, backend="openvino", precision="fp32", min_iou=0.999)
    assert report.passed, report.problem
    assert sum(layers) > 20
    for stage in report.stages:
        assert stage.relative_error is not None
        assert stage.relative_error < 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_one_changed_tensor_is_found_and_its_stage_named(
    sound: Path, tmp_path: Path, stage: GraphName
) -> None:
    bundle = shutil.copytree(sound, tmp_path / "b")
    damage(bundle, stage, -1.0)
    rehash(bundle)
    report = check(bundle, backend="onnxruntime", device="cpu", min_iou=1.0)
    assert report.problem is not None
    assert f"worst stage {stage}" in report.problem
    errors = {found.stage: found.relative_error or 0.0 for found in report.stages}
    assert errors.pop(stage) > 1e-2
    assert max(errors.values()) < 1e-4


def gate_after(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Damage the bundle between its writing and the gate."""
    real = module.verify.prove

    def prove(bundle, *args, **kwargs):
        change(bundle)
        return real(bundle, *args, **kwargs)

    monkeypatch.setattr(module.verify, "prove", prove)


def test_a_wrong_export_is_refused_by_stage_and_layer(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16, since the float32 graph is then at hand to look for the layer."""
    damaged = []
    gate_after(monkeypatch, lambda b: damaged.append(damage(b, GraphName.IMAGE_ENCODER, 100.0)))
    options = ExportOptions(ckpt, output=tmp_path / "b", precision=Precision.FP16, min_iou=1.0)
    with pytest.raises(ParityError, match=r"onnxruntime .* worst stage image_encoder") as caught:
        export(options)
    assert f" {damaged[0]} of image_encoder" in str(caught.value).partition("worst layer: ")[2]
    assert list(tmp_path.iterdir()) == []


def test_nan_in_an_export(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate_after(monkeypatch, lambda bundle: damage(bundle, GraphName.MASK_DECODER, float("nan")))
    with pytest.raises(ParityError, match=r"NaN or infinity.*begin in mask_decoder") as caught:
        export(ExportOptions(ckpt, output=tmp_path / "b", min_iou=0.0))
    assert "--min-iou" not in str(caught.value)  # no budget would help
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_nan_is_its_own_fault(model: Cris, sound: Path) -> None:
    broken = Cris(model.config)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.backbone.text_projection.fill_(1e38)  # finite, and no sum with it is
    tokenizer = Tokenizer.from_file(Bundle.open(sound).tokenizer, model.config.word_len)
    with pytest.raises(CheckpointError, match=r"PyTorch itself gives NaN.*astronaut\.jpg"):
        samples.answer_samples(broken.eval(), samples.read_samples(None), tokenizer)


def test_many_samples_stay_small(model: Cris, sound: Path, tmp_path: Path) -> None:
    names = [f"p {index}.png" for index in range(4)]
    for index, name in enumerate(names):
        cv2.imwrite(str(tmp_path / name), np.full((20, 30, 3), 60 * index, np.uint8))
    pairs = [
        samples.SampleSource(tmp_path / name, f"thing {n}") for n in range(6) for name in names
    ]
    tokenizer = Tokenizer.from_file(Bundle.open(sound).tokenizer, model.config.word_len)
    written = module._write_samples(tmp_path, samples.answer_samples(model, pairs, tokenizer))
    with_features = [sample for sample in written if sample.scene is not None]
    assert len(written) == 24
    assert len(with_features) == 2 * 4
    assert {sample.image for sample in with_features} == {"samples/0-p_0.png", "samples/1-p_1.png"}
    assert len({sample.text for sample in with_features}) == 8
    assert len(list((tmp_path / "samples").glob("*.npz"))) == 2 + 8


def test_check_runs_without_pytorch(sound: Path) -> None:
    code = f"""
import sys
for name in ("torch", "torchvision", "open_clip", "onnx", "onnxscript", "onnx_ir", "nncf"):
    sys.modules[name] = None  # importing it raises ImportError
from cris_export.cli import main
sys.exit(main(["--check", {str(sound)!r}]))
"""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "mask_decoder" in result.stdout
    assert "passed" in result.stdout
