"""`cris-bench browser`: a page is loaded in a real Chromium, and what cannot be is said."""

from pathlib import Path

import pytest

from cris_bench.cli import main
from cris_bench.scopes.browser import BrowserRecord
from cris_deploy.documents import read
from cris_export.cli.main import main as cris_export
from tests.helpers.page import MODULES, require_browser


def test_browser(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    require_browser()
    page, output = tmp_path / "page", tmp_path / "browser.json"
    assert cris_export(["web", str(tiny_bundle), str(page), "--modules", str(MODULES)]) == 0
    command = ["browser", str(page), "--modules", str(MODULES), "--rounds", "1", "--masks", "2"]

    assert main([*command, "-o", str(output)]) == 0
    assert "one thread (1)" in capsys.readouterr().out
    record = read(BrowserRecord, output.read_bytes(), str(output))
    assert [(load.way, len(load.masks)) for load in record.loads] == [
        ("one thread", 2),
        ("threads", 2),
    ]
    assert record.loads[0].threads == 1
    assert all(load.ready > 0 and min(load.pictures + load.masks) > 0 for load in record.loads)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rounds", "0"], "--rounds is 0: give 1 or more"),
        (["--modules", "nowhere"], "modules nowhere lacks playwright-core"),
        ([], "is no page: write one with cris-export web"),
    ],
)
def test_what_cannot_be_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    require_browser()
    if arguments:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "model.json").write_text("{}")

    assert main(["browser", str(tmp_path), *arguments]) == 2
    assert reason in capsys.readouterr().err
