"""Plots and reports from records."""

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from cris_bench.record.file import write_record
from cris_bench.record.rows import Scope
from cris_bench.record.schema import BundleFacts, Parity, Record
from cris_bench.report.document import document, main
from tests.stand_ins.fake_record import ours, record, row, whole_record

pytest.importorskip("matplotlib", reason="plots are in the extra 'bench'")

from cris_bench.report.plot import draw, speed_figure, throughput_figure


def _words(found: Record) -> list[str]:
    """Words behind the bars of all panels, from the lowest bar to the highest."""
    figure = speed_figure(found, tuple(Scope))
    assert figure is not None
    return [text.get_text() for panel in figure.axes for text in panel.texts]


def test_every_contestant_has_a_bar_of_its_rate() -> None:
    figure = speed_figure(record(), tuple(Scope))
    assert figure is not None
    (panel,) = figure.axes
    assert [bar.get_width() for bar in panel.patches] == pytest.approx([2.0, 10.0])
    assert [tick.get_text() for tick in panel.get_yticklabels()] == [
        "PyTorch eager fp32",
        "openvino int8",
    ]
    assert _words(record()) == ["2.00", "10.00, 5.00 (4.90 to 5.10) x eager"]


def test_a_panel_for_each_scope_batch_and_expressions() -> None:
    network = speed_figure(whole_record(), (Scope.NETWORK,))
    calls = speed_figure(whole_record(), (Scope.END_TO_END, Scope.EXPRESSION))
    titles = []
    for figure in (network, calls):
        assert figure is not None
        titles.append([panel.get_title(loc="left") for panel in figure.axes])
    assert titles == [
        ["Network only", "Network only, 1 x 8 masks a pass"],
        ["End to end", "Further expression"],
    ]
    assert speed_figure(whole_record(), (Scope.DEVICE,)) is None


def test_a_panel_is_as_high_as_it_has_bars() -> None:
    many = [row(f"peer {n}", expressions=8, masks=8) for n in range(9)]
    # In the record, whose small shapes come first, the scope with one bar stands between the two.
    found = record(row(), row(scope=Scope.END_TO_END), *many)
    figure = speed_figure(found, (Scope.NETWORK, Scope.END_TO_END))
    assert figure is not None
    figure.draw_without_rendering()
    assert [len(panel.patches) for panel in figure.axes] == [1, 9, 1]
    one, nine, other = (panel.bbox.height for panel in figure.axes)
    assert nine > 2 * max(one, other)


def test_a_failed_gate_is_said() -> None:
    failed = BundleFacts("int8", "ab" * 32, 1, Parity.FAILED)
    assert "PARITY GATE FAILED" in _words(record(ours(), bundles={"int8": failed}))[0]


def test_rates_grow_with_batches_and_clients() -> None:
    (clients,) = whole_record().clients
    rows = [ours(), ours(batch=4, masks=4, seconds=(0.2,) * 6)]
    found = record(*rows, clients=(clients, dataclasses.replace(clients, threads=8)))
    figure = throughput_figure(found)
    assert figure is not None
    by_batch, by_clients = figure.axes
    assert [list(line.get_xdata()) for line in by_batch.lines] == [[1, 4]]
    assert list(by_batch.lines[0].get_ydata()) == pytest.approx([10.0, 20.0])
    assert list(by_clients.lines[0].get_xdata()) == [4, 8]
    assert throughput_figure(record()) is None


def test_files_are_drawn_and_the_same_again(tmp_path: Path) -> None:
    paths = draw({"one": whole_record()}, tmp_path / "a")
    assert [path.name for path in paths] == ["one-network.svg", "one-calls.svg"]
    draw({"one": whole_record()}, tmp_path / "b")
    # matplotlib names clip paths by where they lie in memory.
    drawn = [
        re.sub(r"#?\bp[0-9a-f]{10}\b", "", (tmp_path / n / paths[0].name).read_text()) for n in "ab"
    ]
    assert drawn[0] == drawn[1]
    assert paths[0].read_text().count("<svg") == 1


def test_what_is_no_rate_is_not_drawn(tmp_path: Path) -> None:
    assert draw({"one": record(ours(scope=Scope.LOAD, ratio=None))}, tmp_path) == []


def test_a_report_is_printed_without_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_record(tmp_path / "one.json", record())
    assert main([str(tmp_path / "one.json")]) == 0
    assert "## one" in capsys.readouterr().out
    assert main([str(tmp_path / "one.json"), "--plots", str(tmp_path / "out")]) == 2
    assert "pip install 'cris-deploy[bench]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_with_plots_and_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, entry in (("one", whole_record()), ("two", record())):
        write_record(tmp_path / f"{name}.json", entry)
    paths = [str(tmp_path / name) for name in ("one.json", "two.json")]
    out = tmp_path / "out"
    assert main([*paths, "--plots", str(out), "--price", "3.6"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "one-network.svg",
        "one-calls.svg",
        "two-network.svg",
    }
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## one", "## two"]
    assert "500.00" in text  # two masks a second, at 0.1 cents a second
    assert main([*paths, "--price", "0"]) == 2


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
