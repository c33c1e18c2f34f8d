"""A page in a real Chromium, and the host that serves it."""

import contextlib
import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

MODULES = Path(__file__).parents[2] / "build" / "web" / "node_modules"
_DRIVER = Path(__file__).with_name("page.mjs")


def require_browser() -> str:
    """The Chromium to drive; skips the test where there is none, or no node, or no packages."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
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


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a page that is left stops reading
            super().handle()


@contextmanager
def hosted(folder: Path) -> Iterator[str]:
    """The URL of a host of static files, which sends no header of its own."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
