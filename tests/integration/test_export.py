"""Checkpoint -> bundle -> mask, with a tiny model: the whole way, and what is refused on it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cris_deploy import Engine
from cris_deploy.bundle.reading import Bundle, GraphName, Precision
from cris_deploy.errors import InputError
from cris_deploy.pixels import image as images
from cris_deploy.pixels.mask import mask_from_logits
from cris_deploy.proof.check import check
from cris_deploy.proof.gate import Bound
from cris_deploy.words.tokenizer import Tokenizer
from cris_export.cli import main as cli
from cris_export.errors import ParityError
from cris_export.export import ExportReport, export
from cris_export.options import ExportOptions
from cris_train import checkpoint
from cris_train.errors import CheckpointError
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised
from tests.helpers.tiny_bundle import rehash

EXPRESSIONS = [
    "the man in red",
    "café – naïve façade",
    "cats &amp; dogs",
    "left\tof   the\nbench",
    "!!! 🚲 велосипед 自転車",
]


@pytest.fixture(scope="module")
def model() -> Cris:
    torch.manual_seed(0)
    return randomised(Cris(CrisConfig.tiny(decoder_layers=2)))


@pytest.fixture(scope="module")
def ckpt(model: Cris, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(tmp_path_factory.mktemp("ckpt") / "tiny.pth", model)


@pytest.fixture(scope="module")
def report(ckpt: Path) -> ExportReport:
    return export(ExportOptions(ckpt))


@pytest.fixture(scope="module")
def half(ckpt: Path) -> ExportReport:
    return export(
        ExportOptions(ckpt, output=ckpt.with_name("half"), precision=Precision.FP16, min_iou=0.9)
    )


def pixels(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth random picture, (height, width, 3) uint8."""
    import cv2

    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def expected_logits(model: Cris, bundle: Path, rgb: np.ndarray, expression: str) -> np.ndarray:
    config = model.config
    tokenizer = Tokenizer.from_file(Bundle.open(bundle).tokenizer, config.word_len)
    square = images.normalise(images.letterbox(rgb, config.input_size))
    with torch.no_grad():
        return model(
            torch.from_numpy(square)[None],
            torch.from_numpy(tokenizer.encode([expression]).tokens),
        )[0, 0].numpy()


def test_bundle_is_complete(report: ExportReport, ckpt: Path) -> None:
    assert report.bundle == ckpt.with_suffix(".bundle")
    bundle = Bundle.open(report.bundle)
    names = {
        p.relative_to(report.bundle).as_posix() for p in report.bundle.rglob("*") if p.is_file()
    }
    assert names == {*bundle.manifest.files, "manifest.json"}
    assert bundle.manifest.parity is not None
    assert bundle.manifest.parity.passed
    assert bundle.manifest.model.parameters == sum(
        p.numel() for p in Cris(CrisConfig.tiny(decoder_layers=2)).parameters()
    )
    assert len(bundle.manifest.samples) == 6


def test_weights_are_stored_once(report: ExportReport, model: Cris) -> None:
    stored = sum(value.numel() * 4 for value in model.parameters())
    weights = report.bundle / "weights.bin"
    assert weights.stat().st_size <= 1.05 * stored
    for name in GraphName:
        graph = onnx.load(report.bundle / f"{name}.onnx", load_external_data=False)
        for tensor in graph.graph.initializer:
            location = {entry.key: entry.value for entry in tensor.external_data}
            assert location.get("location", "weights.bin") == "weights.bin"


def test_no_trace_of_the_exporting_machine(report: ExportReport) -> None:
    here = os.fsencode(Path(__file__).parents[2])
    for name in GraphName:
        assert here not in (report.bundle / f"{name}.onnx").read_bytes()


@pytest.mark.parametrize("size", [(48, 64), (17, 31), (400, 20), (9, 600), (1, 1)])
def test_engine_gives_the_models_masks(
    report: ExportReport, model: Cris, size: tuple[int, int]
) -> None:
    rgb = pixels(sum(size), *size)
    with Engine(report.bundle) as engine:
        for result in engine.segment(rgb, EXPRESSIONS):
            logits = expected_logits(model, report.bundle, rgb, result.expression)
            # float32 through another order of sums
            np.testing.assert_allclose(result.logits, logits, atol=1e-4)
            expected = mask_from_logits(logits, *size, model.config.input_size, 0.35)
            assert (result.mask != expected).mean() <= 1e-3


def test_batches_and_stages_agree(report: ExportReport) -> None:
    """An image alone, in a batch of 5, full graph or stages, one expression or several."""
    bundle = Bundle.open(report.bundle)
    tokenizer = Tokenizer.from_file(bundle.tokenizer, 17)
    rgbs = [pixels(seed, 64, 64) for seed in range(5)]
    batch = np.stack([images.normalise(images.letterbox(rgb, 64)) for rgb in rgbs])
    tokens = tokenizer.encode(EXPRESSIONS).tokens
    full = onnxruntime.InferenceSession(str(bundle.graph(GraphName.FULL)))
    (together,) = full.run(None, {"image": batch, "tokens": tokens})
    with Engine(report.bundle, cache=False) as engine:
        streamed = list(engine.stream(zip(rgbs, EXPRESSIONS, strict=True), batch_size=5))
        for index in range(5):
            one = slice(index, index + 1)
            (alone,) = full.run(None, {"image": batch[one], "tokens": tokens[one]})
            staged = engine.segment(rgbs[index], EXPRESSIONS[index])
            many = engine.segment(rgbs[index], [*EXPRESSIONS, *EXPRESSIONS[:3]])[index]
            for other in (together[index, 0], staged.logits, many.logits, streamed[index].logits):
                np.testing.assert_allclose(other, alone[0, 0], atol=1e-4)


def test_float16_bundle_is_typed_half_the_size_and_runs(
    report: ExportReport, half: ExportReport
) -> None:
    whole, typed = (r.bundle / "weights.bin" for r in (report, half))
    assert typed.stat().st_size <= 0.51 * whole.stat().st_size
    for share in half.types.values():
        assert share.nodes["float16"] > 10 * share.nodes.get("float32", 0)
    rgb = pixels(3, 40, 70)
    with Engine(half.bundle) as engine, Engine(report.bundle) as exact:
        results = engine.segment(rgb, EXPRESSIONS), exact.segment(rgb, EXPRESSIONS)
    for mine, truth in zip(*results, strict=True):
        assert mine.logits.dtype == np.float32
        # 11 bits through some fifty layers, logits of order one
        np.testing.assert_allclose(mine.logits, truth.logits, atol=0.05)


def test_a_changed_weight_of_a_float16_bundle_is_found_below_its_budget(
    half: ExportReport, tmp_path: Path
) -> None:
    """One value by its last bit: nothing that rounding would not hide."""
    bundle = shutil.copytree(half.bundle, tmp_path / "b")
    graph = onnx.load(bundle / "image_encoder.onnx", load_external_data=False).graph
    tensor = next(t for t in graph.initializer if t.external_data and len(t.dims) == 4)
    layer = next(n for n in graph.node if tensor.name in n.input)
    place = {entry.key: entry.value for entry in tensor.external_data}
    data = bytearray((bundle / "weights.bin").read_bytes())
    data[int(place["offset"])] ^= 1
    (bundle / "weights.bin").write_bytes(data)
    rehash(bundle)
    found = check(bundle, backend="onnxruntime", device="cpu")
    assert found.missed is Bound.WEIGHTS
    assert f"Conv {layer.name} of image_encoder ({tensor.name})" in found.problem


@pytest.mark.parametrize("opset", [18, 22])
def test_other_opsets(ckpt: Path, tmp_path: Path, opset: int) -> None:
    done = export(ExportOptions(ckpt, output=tmp_path / "b", opset=opset))
    assert done.parity.passed
    graph = onnx.load(tmp_path / "b" / "full.onnx", load_external_data=False)
    assert {i.version for i in graph.opset_import if i.domain == ""} == {opset}


def test_word_length_and_own_samples(ckpt: Path, tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "photo.png"), pixels(0, 64, 64))
    lines = [{"image": "photo.png", "expression": text} for text in EXPRESSIONS]
    samples = tmp_path / "own.jsonl"
    samples.write_text("\n".join(json.dumps(line) for line in lines))
    done = export(ExportOptions(ckpt, output=tmp_path / "b", word_len=22, samples=samples))
    manifest = Bundle.open(done.bundle).manifest
    assert manifest.model.word_len == 22
    assert [sample.expression for sample in manifest.samples] == EXPRESSIONS
    assert len({sample.image for sample in manifest.samples}) == 1


def nothing_left(folder: Path) -> bool:
    return not list(folder.iterdir())


def test_missed_budget_leaves_nothing(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cris_export import export as module

    real = module.samples.answer_samples

    def shifted(*args, **kwargs):
        """As if the exported graph were wrong: PyTorch's masks turned inside out."""
        return [dataclasses.replace(a, logits=-a.logits) for a in real(*args, **kwargs)]

    monkeypatch.setattr(module.samples, "answer_samples", shifted)
    with pytest.raises(ParityError, match="min-iou"):
        export(ExportOptions(ckpt, output=tmp_path / "b"))
    assert nothing_left(tmp_path)
    assert cli.main(["--ckpt", str(ckpt), "-o", str(tmp_path / "b")]) == 1
    assert "below the budget" in capsys.readouterr().err
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--ckpt", "missing.pth"], "no such checkpoint"),
        (["--opset", "7"], "--opset"),
        (["--min-iou", "1.5"], "--min-iou"),
        (["--min-iou", "nan"], "--min-iou"),
        (["--max-logit-error", "-1"], "max_logit_error"),
        (["--backend", "abacus"], "backend is 'abacus'"),
        (["--backend", "tensorrt"], "--backend tensorrt"),
        (["--device", "cuda"], "--device cuda"),
        (["--word-len", "99"], "word_len"),
        (["--samples", "missing.jsonl"], "--samples"),
    ],
)
def test_bad_flags(
    ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert cli.main(["--ckpt", str(ckpt), "-o", str(tmp_path / "b"), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert nothing_left(tmp_path)


def test_bad_samples(ckpt: Path, tmp_path: Path) -> None:
    samples = tmp_path / "s.jsonl"
    for text, said in (
        ("", "no sample"),
        ("{nonsense", "line 1 is not valid JSON"),
        ('{"image": "a.png"}', "line 1: expression is missing"),
        ('{"image": 1, "expression": "x"}', "image is 1, expected a string: write lines such as"),
        ('{"image": "missing.png", "expression": "x"}', r"missing\.png does not exist"),
        ('{"image": "s.jsonl", "expression": "x"}', r"s\.jsonl"),
    ):
        samples.write_text(text)
        with pytest.raises(InputError, match=said):
            export(ExportOptions(ckpt, output=tmp_path / "b", samples=samples))
    assert [p.name for p in tmp_path.iterdir()] == ["s.jsonl"]


def test_another_models_checkpoint(tmp_path: Path) -> None:
    state = {"module.conv1.weight": torch.zeros(64, 3, 7, 7)}
    torch.save({"state_dict": state}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="not a CRIS checkpoint"):
        export(ExportOptions(tmp_path / "resnet.pth"))
    assert [p.name for p in tmp_path.iterdir()] == ["resnet.pth"]


def test_a_folder_that_is_no_bundle_is_not_replaced(ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not a bundle"):
        export(ExportOptions(ckpt, output=tmp_path / "b"))
    assert (tmp_path / "b" / "thesis.txt").read_text() == "precious"


def test_killed_export_leaves_no_bundle(ckpt: Path, tmp_path: Path) -> None:
    folders = {number: tmp_path / number.name for number in (signal.SIGKILL, signal.SIGTERM)}
    running = {}
    for number, folder in folders.items():  # side by side: tracing takes one core
        folder.mkdir()
        command = [sys.executable, "-m", "cris_export.cli.main", "--ckpt", str(ckpt)]
        command += ["-o", str(folder / "b")]
        running[number] = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    waiting = dict(running)
    while waiting and time.monotonic() < deadline:
        for number, process in list(waiting.items()):
            # Half-way: files are being written, under a hidden name.
            if list(folders[number].glob(".b.*/*.onnx")):
                waiting.pop(number).send_signal(number)
            else:
                assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert not waiting
    for number, folder in folders.items():
        running[number].communicate(timeout=60)
        assert running[number].returncode != 0
        assert not (folder / "b").exists()
        if number is not signal.SIGKILL:
            assert nothing_left(folder)
        # The next export clears what a killed one could not.
        export(ExportOptions(ckpt, output=folder / "b"))
        assert [p.name for p in folder.iterdir()] == ["b"]
