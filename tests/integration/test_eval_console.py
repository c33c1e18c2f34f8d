"""cris-eval as a user calls it, on a checkpoint and on bundles."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cris_deploy.pixels.image import normalise
from cris_export.export import export
from cris_export.options import ExportOptions
from cris_train import checkpoint
from cris_train.cli.eval import main
from cris_train.data.dataset import ReferData
from cris_train.data.refer import read_split
from cris_train.evaluation.measure import EvalOptions, measure
from cris_train.evaluation.report import read_report
from cris_train.model import Cris, CrisConfig
from cris_train.synthetic.refer_files import KINDS_FILE, write_scenes
from tests.helpers.models import randomised

# Random models say little at 0.35: at this threshold masks are neither empty nor everything.
THRESHOLD = "0.5"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, {"train": 4, "val": 3, "test": 1}, seed=5)
    return out


def tiny_checkpoint(folder: Path, **changes: object) -> Path:
    torch.manual_seed(0)
    model = randomised(Cris(CrisConfig.tiny(**changes)))
    return checkpoint.save(folder / "tiny.pth", model)


def middle(path: Path, data: Path) -> float:
    """A threshold at which the random model's masks are neither empty nor everything."""
    model = checkpoint.build(checkpoint.load(path))
    ready = ReferData(read_split(data, "val"), model.config)
    texts = [text for image in ready.images for item in image.objects for text in item.expressions]
    with torch.inference_mode():
        logits = model(
            torch.from_numpy(normalise(ready.square(0)))[None],
            torch.from_numpy(np.stack([ready.tokens(text) for text in texts])),
        )
    return float(logits.median().sigmoid())


def centre(path: Path, data: Path) -> None:
    """Move the logits so that masks at the model's own threshold can be seen: the gate asks it."""
    model = checkpoint.build(checkpoint.load(path))
    head = model.proj.txt if model.config.contrastive else model.proj.out
    middle_logit = math.log(middle(path, data) / (1 - middle(path, data)))
    with torch.no_grad():
        head.bias[-1] += math.log(0.35 / 0.65) - middle_logit
    checkpoint.save(path, model)


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("ckpt"))


@pytest.fixture(scope="module")
def samples(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("samples") / "samples.jsonl"
    pictures = sorted((data / "images").iterdir())[:2]
    lines = (
        json.dumps({"image": str(picture), "expression": "the red one"}) for picture in pictures
    )
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    "changes",
    [{}, {"contrastive": False, "decoder_layers": 0}],
    ids=["contrastive-decoder", "neither"],
)
def test_bundle_and_checkpoint_have_the_same_numbers(
    changes: dict[str, object], data: Path, samples: Path, tmp_path: Path
) -> None:
    path = tiny_checkpoint(tmp_path, **changes)
    centre(path, data)
    bundle = export(ExportOptions(path, samples=samples)).bundle
    options = {"data": data, "splits": ("val", "test"), "threshold": middle(path, data)}
    ours = measure(EvalOptions(checkpoint=path, **options))
    theirs = measure(EvalOptions(bundle=bundle, backend="onnxruntime", **options))
    assert theirs.measured.checkpoint_sha256 == ours.measured.sha256
    assert (theirs.measured.backend, theirs.measured.precision) == ("onnxruntime", "fp32")
    assert theirs.measured.parity is True
    for mine, other in zip(ours.splits, theirs.splits, strict=True):
        assert (mine.images, mine.objects) == (other.images, other.objects)
        assert mine.expressions == other.expressions > 0
        assert 0.01 < mine.mean_iou < 0.9
        # A pixel whose probability is within float32's rounding of the threshold may turn: 1e-4 of
        # a picture's pixels, if that.
        assert mine.mean_iou == pytest.approx(other.mean_iou, abs=1e-4)
        assert mine.overall_iou == pytest.approx(other.overall_iou, abs=1e-4)


def test_report_files(
    data: Path, ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.json", tmp_path / "out"
    flags = ["--ckpt", str(ckpt), "--data", str(data), "--threshold", THRESHOLD]
    assert main([*flags, "--split", "val,test", "--json", str(first)]) == 0
    table = capsys.readouterr().out
    assert "| test " in table
    assert not again.exists()
    assert main([*flags, "--output", str(again), "--compare", str(first), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((again / "report.json").read_text())
    assert printed == written
    assert written["difference_in_points"] == {
        "val": dict.fromkeys(["mIoU", "oIoU"], 0.0)
        | {f"Pr@{at}": 0.0 for at in (50, 60, 70, 80, 90)}
    }
    sheets = ["sheet-best.png", "sheet-random.png", "sheet-scenes.jpg", "sheet-worst.png"]
    assert sorted(p.name for p in again.iterdir()) == ["report.json", "report.md", *sheets]
    page = (again / "report.md").read_text()
    assert all(f"]({name})" in page for name in sheets)
    assert "+0.00" in page

    report = read_report(first)
    assert report.data == "scenes"
    assert report.threshold == 0.5
    assert report.measured.name == "tiny.pth"
    assert report.measured.sha256 == checkpoint.load(ckpt).sha256
    assert (report.measured.backend, report.measured.device) == ("pytorch", "cpu")
    assert torch.__version__.startswith(report.versions["torch"].split("+")[0])
    assert [score.split for score in report.splits] == ["val", "test"]
    kinds = json.loads((data / KINDS_FILE).read_text())
    for score in report.splits:
        of_kinds = [(kind.expressions, kind.mean_iou) for kind in score.by_kind.values()]
        assert sum(count for count, _ in of_kinds) == score.expressions
        assert sum(n * iou for n, iou in of_kinds) / score.expressions == pytest.approx(
            score.mean_iou
        )
        assert set(score.by_kind) <= set(kinds.values())


def test_limit_and_threshold_matter(data: Path, ckpt: Path) -> None:
    whole = measure(EvalOptions(checkpoint=ckpt, data=data, threshold=0.5)).splits[0]
    part = measure(EvalOptions(checkpoint=ckpt, data=data, threshold=0.5, limit=2)).splits[0]
    other = measure(EvalOptions(checkpoint=ckpt, data=data, threshold=0.2)).splits[0]
    assert (whole.images, part.images) == (3, 2)
    assert part.expressions < whole.expressions == other.expressions
    assert other.mean_iou != whole.mean_iou


def test_a_bundle_by_console(
    data: Path, own_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--bundle", str(own_bundle), "--data", str(data), "--backend", "onnxruntime"]
    assert main([*flags, "--device", "cpu", "--precision", "fp32"]) == 0
    out = capsys.readouterr().out
    assert "fp32 bundle own.bundle" in out
    assert "PARITY" not in out

    manifest = own_bundle / "manifest.json"
    document = json.loads(manifest.read_text())
    document["parity"]["passed"] = False
    manifest.write_text(json.dumps(document))
    assert main([*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured"]["parity"] is False
    assert main(flags) == 0
    assert "FAILED ITS PARITY GATE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give either --ckpt FILE or --bundle DIR"),
        (["--ckpt", "{ckpt}", "--bundle", "x"], "give either --ckpt FILE or --bundle DIR"),
        (["--ckpt", "{ckpt}", "--backend", "openvino"], "--backend openvino goes with --bundle"),
        (["--bundle", "x", "--word-len", "22"], "--word-len goes with --ckpt"),
        (["--ckpt", "{ckpt}", "--threshold", "1.5"], "--threshold is 1.5"),
        (["--ckpt", "{ckpt}", "--limit", "-1"], "--limit is -1"),
        (["--ckpt", "{ckpt}", "--split", "val,val"], "name each split once"),
        (["--ckpt", "{ckpt}", "--split", "testA"], "it has train, val, test"),
        (["--ckpt", "{ckpt}", "--split-by", "umd"], "unc"),
        (["--ckpt", "{ckpt}", "--precision", "int8"], "export it with --int8"),
        (["--ckpt", "absent.pth"], "absent.pth: no such checkpoint"),
        (["--bundle", "absent.bundle"], "absent.bundle does not exist"),
        (["--ckpt", "{ckpt}", "--compare", "absent.json"], "report absent.json cannot be read"),
        (["--ckpt", "{ckpt}", "--data", "absent"], "absent cannot be read"),
    ],
)
def test_unusable_arguments(
    flags: list[str],
    message: str,
    data: Path,
    ckpt: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [flag.format(ckpt=ckpt) for flag in flags]
    assert main(["--data", str(data), *given]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(
    data: Path, ckpt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(data), "--ckpt", str(ckpt), "--device", "cuda"]) == 2
    assert "sees no GPU" in capsys.readouterr().err


def test_broken_pictures(
    data: Path, ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = sorted((data / "images").glob("*val*"))
    (folder / pictures[0].name).write_bytes(pictures[0].read_bytes())
    (folder / pictures[1].name).write_bytes(pictures[1].read_bytes()[:200])
    flags = ["--ckpt", str(ckpt), "--data", str(data), "--images", str(folder)]
    assert main(flags) == 2
    assert pictures[1].name in capsys.readouterr().err
    assert main([*flags, "--skip-broken", "--json"]) == 0
    (score,) = json.loads(capsys.readouterr().out)["splits"]
    assert score["images"] == 1
    assert [entry["picture"] for entry in score["left_out"]] == [p.name for p in pictures[1:]]
    assert main([*flags, "--skip-broken"]) == 0
    assert "2 left out" in capsys.readouterr().out
    (folder / pictures[0].name).unlink()
    assert main([*flags, "--skip-broken"]) == 2
    assert "nothing could be measured, 3 left out" in capsys.readouterr().err


def test_no_output_folder_where_a_file_is(
    data: Path, ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    flags = ["--ckpt", str(ckpt), "--data", str(data), "--output", str(tmp_path / "taken")]
    assert main(flags) == 2
    assert "taken" in capsys.readouterr().err
