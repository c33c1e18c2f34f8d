"""A real export, damaged on its way or afterwards: the gate and the check find it and name it."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch

from cris_deploy.bundle.manifest import Route
from cris_deploy.bundle.reading import WEIGHTS, Bundle, GraphName, Precision
from cris_deploy.execution.backends import winograd
from cris_deploy.proof.check import check
from cris_deploy.proof.gate import Bound
from cris_deploy.words.tokenizer import Tokenizer
from cris_export import export as module
from cris_export.cli import main as cli
from cris_export.errors import ParityError
from cris_export.export import export
from cris_export.options import ExportOptions
from cris_export.proof import samples
from cris_train import checkpoint
from cris_train.errors import CheckpointError
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised
from tests.helpers.tiny_bundle import rehash

DEMO = Path(__file__).parents[2] / "train" / "demo"
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
    for route in reference.routes:
        # float32 through another order of sums; the budget is 2e-4
        assert route.worst_relative_error is not None
        assert route.worst_relative_error < 2e-5
    assert reference.logit_budget == parity.logit_budgets["fp32"] == 2e-4
    assert parity.visible_share is not None
    assert parity.visible_share >= 0.5
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


def noise(bundle: Path, graph: GraphName, pick) -> tuple[str, str]:
    """5% of noise on the weight of one layer; gives the node's name and the weight's."""
    path = bundle / f"{graph}.onnx"
    proto = onnx.load(path, load_external_data=False)
    readers = {n: node for node in proto.graph.node for n in node.input[:2]}
    layers = [
        t
        for t in proto.graph.initializer
        if t.name in readers
        and readers[t.name].op_type in {"Conv", "Gemm", "MatMul"}
        and onnx.helper.tensor_dtype_to_np_dtype(t.data_type).kind == "f"
        and len(t.dims) > 1
    ]
    tensor = pick(layers, key=lambda t: int(np.prod(t.dims)))
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    place = {entry.key: entry.value for entry in tensor.external_data}
    random = np.random.default_rng(0)

    def noised(data: bytes) -> bytes:
        values = np.frombuffer(data, dtype)
        return (values * random.normal(1, 0.05, values.shape)).astype(dtype).tobytes()

    if place:
        offset, length = int(place["offset"]), int(place["length"])
        data = bytearray((bundle / WEIGHTS).read_bytes())
        data[offset : offset + length] = noised(bytes(data[offset : offset + length]))
        (bundle / WEIGHTS).write_bytes(data)
    else:
        tensor.raw_data = noised(tensor.raw_data)
        onnx.save(proto, path)
    rehash(bundle)
    return readers[tensor.name].name, tensor.name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("pick", [min, max], ids=["smallest", "largest"])
def test_noise_in_one_layer_is_refused_with_stage_and_layer(
    sound: Path, tmp_path: Path, stage: GraphName, pick
) -> None:
    bundle = shutil.copytree(sound, tmp_path / "b")
    node, tensor = noise(bundle, stage, pick)
    report = check(bundle, backend="onnxruntime", device="cpu")
    assert f" {node} of {stage} ({tensor}) are not those that were exported" in report.problem
    # What an earlier version exported has no hashes of its weights: the stage is named still, if
    # the layer says anything. The smallest of the image encoder moves its outputs by 6e-5.
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["weights"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    report = check(bundle, backend="onnxruntime", device="cpu", max_logit_error=2e-5)
    assert report.missed in {Bound.MASK_IOU, Bound.LOGIT_ERROR, Bound.STAGE_ERROR}
    assert f"worst stage {stage}" in report.problem
    assert "not those that were exported" not in report.problem


HEADS = {
    "zeroed": lambda weight, bias: (weight.zero_(), bias.zero_()),
    "minus-50": lambda weight, bias: bias[-1].sub_(50),
    "plus-50": lambda weight, bias: bias[-1].add_(50),
}


@pytest.mark.parametrize("change", HEADS.values(), ids=HEADS)
def test_a_checkpoint_whose_masks_show_nothing_is_refused(
    tmp_path: Path, change, capsys: pytest.CaptureFixture[str]
) -> None:
    ckpt = torch.load(DEMO / "scenes.pth", weights_only=True)
    state = {name.removeprefix("module."): value for name, value in ckpt["state_dict"].items()}
    change(state["proj.txt.weight"], state["proj.txt.bias"])
    torch.save(ckpt, tmp_path / "head.pth")
    flags = ["--ckpt", str(tmp_path / "head.pth"), "--samples", str(DEMO / "samples.jsonl")]
    assert cli.main([*flags, "--min-iou", "0", "--max-logit-error", "9"]) == 1
    error = capsys.readouterr().err
    assert "nothing can be seen" in error
    assert "--samples FILE" in error
    assert "tracing" not in error  # in seconds, not after the work
    assert [path.name for path in tmp_path.iterdir()] == ["head.pth"]


def test_a_gate_that_is_off_hands_over_what_failed(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate_after(monkeypatch, lambda bundle: damage(bundle, GraphName.MASK_DECODER, float("nan")))
    export(ExportOptions(ckpt, output=tmp_path / "b", gate=False))
    parity = Bundle.open(tmp_path / "b", verify=False).manifest.parity
    assert parity is not None
    assert not parity.passed
    assert parity.max_logit_error is parity.worst_relative_error is None
    assert all(proof.problem is not None for proof in parity.proofs)
    (reference,) = [proof for proof in parity.proofs if proof.backend == "onnxruntime"]
    assert "begin in mask_decoder" in reference.problem


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
    written = samples.write_samples(tmp_path, samples.answer_samples(model, pairs, tokenizer))
    with_features = [sample for sample in written if sample.scene is not None]
    assert len(written) == 24
    assert len(with_features) == 2 * 4
    assert {sample.image for sample in with_features} == {"samples/0-p_0.png", "samples/1-p_1.png"}
    assert len({sample.text for sample in with_features}) == 8
    assert len(list((tmp_path / "samples").glob("*.npz"))) == 2 + 8
