"""Plots and reports from records."""

import dataclasses
import sys
from pathlib import Path

import pytest

from cris_bench.record.file import write_record
from cris_bench.record.rows import Scope
from cris_bench.record.schema import BundleFacts, Parity, Record
from cris_bench.report.document import document, main
from tests.stand_ins.fake_record import ours, record, row, whole_record

pytest.importorskip("matplotlib", reason="plots are in the extra 'bench'")

from cris_bench.report.plot import ceiling_figure, draw, speed_figure


def _words(records: dict[str, Record]) -> list[str]:
    """Words behind the bars of all panels."""
    figure = speed_figure(records)
    assert figure is not None
    return [text.get_text() for panel in figure.axes for text in panel.texts]


def test_every_contestant_has_a_bar_of_its_rate() -> None:
    figure = speed_figure({"one": record()})
    assert figure is not None
    (panel,) = figure.axes
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([2.0, 10.0])
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [
        "PyTorch eager fp32",
        "openvino int8",
    ]
    low, high = panel.get_ylim()
    assert low > high  # the first is on top
    assert _words({"one": record()}) == ["2.00, 1.00 x", "10.00, 5.00 x"]


def test_a_panel_for_each_scope_batch_and_expressions() -> None:
    figure = speed_figure({"one": whole_record()})
    assert figure is not None
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "Network only",
        "Network only, batch 1, 8 expressions an image",
        "End to end",
        "Further expression",
    ]


def test_the_papers_figure_is_a_line_within_the_axis() -> None:
    figure = speed_figure({"one": record()})
    assert figure is not None
    (panel,) = figure.axes
    assert 19.22 in [line.get_xdata()[0] for line in panel.lines]  # type: ignore[index]
    assert panel.get_xlim()[1] > 19.22
    assert "19.22" in figure.legends[0].get_texts()[-1].get_text()


def test_marks_are_words() -> None:
    failed = BundleFacts("int8", "ab" * 32, 1, Parity.FAILED)
    noisy = ours(seconds=(0.05, 0.1, 0.1, 0.2))
    assert "noisy, PARITY GATE FAILED" in _words({"r": record(noisy, bundles={"int8": failed})})[0]


def test_records_stand_side_by_side() -> None:
    figure = speed_figure({"before": record(), "after": record(row(), ours("bf16"))})
    assert figure is not None
    (panel,) = figure.axes
    places = sorted(bar.get_y() for bar in panel.patches)
    heights = [bar.get_height() for bar in panel.patches]
    assert len(places) == 4
    assert all(b - a >= h for a, b, h in zip(places, places[1:], heights, strict=False))
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[-2:] == ["before", "after"]


def test_shares_of_the_ceiling() -> None:
    figure = ceiling_figure({"one": whole_record()})
    assert figure is not None
    (panel,) = figure.axes
    # 850 and 260 of 1500 Gop/s
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([56.67, 17.33], abs=0.01)
    assert ceiling_figure({"one": record()}) is None


def test_files_are_drawn_and_the_same_again(tmp_path: Path) -> None:
    paths = draw({"one": whole_record()}, tmp_path / "a")
    assert [path.name for path in paths] == ["speed.png", "ceiling.png"]
    draw({"one": whole_record()}, tmp_path / "b")
    for name in ("speed.svg", "ceiling.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_text().count("<svg") == 1
    assert paths[0].read_bytes()[:4] == b"\x89PNG"


def test_what_is_no_rate_is_not_drawn(tmp_path: Path) -> None:
    assert draw({"one": record(ours(scope=Scope.LOAD, ratio=None))}, tmp_path) == []


def test_a_report_is_printed_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_record(tmp_path / "one.json", record())
    assert main([str(tmp_path / "one.json")]) == 0
    assert "## one" in capsys.readouterr().out
    assert main([str(tmp_path / "one.json"), "-o", str(tmp_path / "out")]) == 2
    assert "pip install 'cris-deploy[bench]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_with_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, entry in (("one", whole_record()), ("two", record())):
        write_record(tmp_path / f"{name}.json", entry)
    paths = [str(tmp_path / name) for name in ("one.json", "two.json")]
    assert main([*paths, "-o", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.md")
    text = (tmp_path / "out" / "report.md").read_text()
    for plot in ("speed.svg", "ceiling.svg"):
        assert f"({plot})" in text
        assert (tmp_path / "out" / plot).exists()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## one", "## two"]


def test_headings_have_one_order() -> None:
    levels = [
        len(line.split()[0]) for line in document({"r": record()}).splitlines() if line[:1] == "#"
    ]
    assert levels == [1, 2, 3, 3, 3]


def test_records_of_one_name_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(tmp_path / "a" / "r.json", record())
    write_record(tmp_path / "b" / "r.json", dataclasses.replace(record(), commit=None))
    assert main([str(tmp_path / "a" / "r.json"), str(tmp_path / "b" / "r.json")]) == 2
    assert "rename one" in capsys.readouterr().err
