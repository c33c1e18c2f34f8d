"""A page in a real Chromium, and the host that serves it."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cris_bench.scopes.browser import find_chromium, hosted

__all__ = ["MODULES", "drive", "hosted", "require_browser"]

MODULES = Path(__file__).parents[2] / "build" / "web" / "node_modules"
_DRIVER = Path(__file__).with_name("page.mjs")


def require_browser() -> str:
    """The Chromium to drive; skips the test where there is none, or no node, or no packages."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("chromium is not installed")
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (MODULES / "playwright-core").is_dir():
        pytest.skip("npm's packages are not installed: make build/web/node_modules")
    return chromium


def drive(url: str, steps: Sequence[Mapping[str, Any]], **plan: Any) -> list[Any]:
    """What the steps give, one after the other; the page must raise nothing."""
    done = subprocess.run(
        ["node", _DRIVER, url, MODULES, require_browser()],
        input=json.dumps({"steps": steps, **plan}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["errors"] == []
    report: list[Any] = answer["report"]
    return report
