"""Reports of an evaluation: there and back, beside the paper, and against each other."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cris_deploy.documents import to_json
from cris_deploy.errors import InputError
from cris_deploy.files import write_whole
from cris_train.evaluation.report import (
    EvalReport,
    KindScore,
    LeftOut,
    Measured,
    MeasuredKind,
    Presence,
    SplitScore,
    compare,
    read_report,
)
from cris_train.evaluation.report_text import describe, markdown

PRECISION = {"Pr@50": 0.9, "Pr@60": 0.8, "Pr@70": 0.7, "Pr@80": 0.6, "Pr@90": 0.5}
CHECKPOINT = Measured(
    kind=MeasuredKind.CHECKPOINT,
    name="scenes.pth",
    sha256="ab" * 32,
    checkpoint_sha256="ab" * 32,
    architecture="RN50",
    decoder_layers=3,
    contrastive=True,
    input_size=416,
    word_len=17,
    backend="pytorch",
    backend_version="2.9",
    device="cpu",
    precision="fp32",
)
BUNDLE = replace(CHECKPOINT, kind=MeasuredKind.BUNDLE, name="x.bundle", stored="fp16", parity=True)
VAL = SplitScore("val", 3, 5, 9, 0.5, 0.625, PRECISION, {"plain": KindScore(4, 0.75)})


def report(*splits: SplitScore, **changes: object) -> EvalReport:
    plain = EvalReport(
        measured=CHECKPOINT,
        data="refcoco",
        split_by="unc",
        threshold=0.35,
        limit=0,
        splits=splits or (VAL,),
        seconds=1.5,
        versions={"numpy": "2.0"},
        created="2026-01-01T00:00:00+00:00",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_json_there_and_back(tmp_path: Path) -> None:
    left_out = replace(VAL, split="testA", left_out=(LeftOut("a.jpg", "it is broken"),))
    for measured in (CHECKPOINT, BUNDLE):
        original = report(VAL, left_out, measured=measured)
        document = {**original.to_json(), "difference_in_points": {"val": {"mIoU": 0.5}}}
        path = write_whole(tmp_path / "r.json", to_json(document).encode())
        assert read_report(path) == original


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("splits"), "splits is missing"),
        (lambda d: d.update(format=2), "format 2, .* reads up to 1"),
        (lambda d: d["splits"][0].pop("mean_iou"), r"splits\[0\].mean_iou is missing"),
        (lambda d: d["splits"][0].update(mean_iou="high"), r'splits\[0\].mean_iou is "high"'),
        (lambda d: d["splits"][0]["precision"].update({"Pr@50": 90}), "'Pr@50'] is 90"),
        (lambda d: d["splits"][0]["precision"].pop("Pr@70"), r"splits\[0\]: precision lacks Pr@70"),
        (lambda d: d["measured"].update(kind="guess"), 'measured.kind is "guess"'),
        (lambda d: d["measured"].update(sha256="12"), 'measured.sha256 is "12"'),
    ],
)
def test_reports_that_are_refused(tmp_path: Path, change, message: str) -> None:
    document = json.loads(json.dumps(report().to_json()))
    change(document)
    path = write_whole(tmp_path / "r.json", json.dumps(document).encode())
    with pytest.raises(InputError, match=message) as caught:
        read_report(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[]", "3"])
def test_files_that_are_no_reports(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match="report"):
        read_report(path)


def test_differences_are_points_of_ours_minus_theirs() -> None:
    other = report(replace(VAL, mean_iou=0.51, precision={**PRECISION, "Pr@90": 0.25}))
    (found,) = compare(report(VAL, replace(VAL, split="testA")), other)
    assert found.split == "val"
    assert found.note is None
    assert found.points["mIoU"] == pytest.approx(-1.0)
    assert found.points["oIoU"] == 0.0
    assert found.points["Pr@90"] == pytest.approx(25.0)
    text = describe(report(), (found,))
    assert "-1.00" in text
    assert "+25.00" in text
    tiny = replace(found, points=dict.fromkeys(found.points, -1e-09))
    assert "-0.00" not in describe(report(), (tiny,))


def test_differences_of_unlike_things_are_marked() -> None:
    other = report(replace(VAL, expressions=8), data="refcoco+", threshold=0.5)
    (found,) = compare(report(), other)
    assert found.note is not None
    for unlike in ("data refcoco and refcoco+", "expressions 9 and 8", "threshold 0.35 and 0.5"):
        assert unlike in found.note
    assert found.note in describe(report(), (found,))
    with pytest.raises(InputError, match="has other splits: testB"):
        compare(report(), report(replace(VAL, split="testB")))


def test_what_a_reader_sees() -> None:
    broken = tuple(LeftOut("a.jpg", f"{n}.jpg is broken") for n in range(25))
    text = describe(report(replace(VAL, left_out=broken), limit=3))
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    numbers = ["3", "5", "9", "50.00", "62.50", "90.00", "80.00", "70.00", "60.00", "50.00"]
    assert ["", "val (first 3 images)", *numbers, ""] in cells
    assert ["", "val: plain", "4", "75.00", ""] in cells
    assert "25 left out" in text
    assert "- 19.jpg is broken" in text
    assert "20.jpg" not in text
    assert "and 5 more" in text
    assert "contrastive head" in text
    page = markdown(report(), (), ("sheet-best.png",))
    assert page.startswith("# scenes.pth on refcoco\n")
    assert "![sheet-best.png](sheet-best.png)\n" in page


def test_a_bundle_that_failed_its_gate_is_marked() -> None:
    assert "PARITY" not in describe(report(measured=BUNDLE))
    assert "FAILED ITS PARITY GATE" in describe(report(measured=replace(BUNDLE, parity=False)))
    assert "no record" in describe(report(measured=replace(BUNDLE, parity=None)))
    assert CHECKPOINT.mark is None


def test_nothing_is_nan() -> None:
    # JSON has no NaN; an evaluation without a single expression is an error before this.
    assert not any(math.isnan(value) for value in VAL.metrics.values())
    assert "NaN" not in json.dumps(report().to_json(), allow_nan=False)


def test_groups_of_generated_scenes_are_tables_of_their_own() -> None:
    score = replace(
        VAL, by_words={"3-4": KindScore(9, 0.5)}, by_size={"below 1%": KindScore(2, 0.125)}
    )
    text = describe(report(score))
    assert "val: 3-4" in text
    assert "val: below 1%" in text
    assert "12.50" in text
    assert "object's share" not in describe(report())


def test_what_is_not_there_has_a_table() -> None:
    told = Presence(0.5, "val", 200, 0.95, 100, 0.625)
    text = describe(report(VAL, replace(VAL, split="test", presence=told)))
    [row] = [line for line in text.splitlines() if "chosen on val" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["test, score 0.500 (chosen on val)", "200", "95.0", "100", "62.5"]
    assert "is it there?" not in describe(report())
