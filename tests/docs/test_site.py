"""The site is built without a warning, its links lead somewhere, and it says all that is public."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import cris_deploy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-c", "docs", "-nqW", "--keep-going", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "read"), ".", str(folder / "html")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


class Links(HTMLParser):
    """Where a page leads, and what can be led to in it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


def test_links_lead_somewhere(site: Path) -> None:
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html")}
    followed = 0
    for page, links in pages.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            file = (page.parent / unquote(url.path)).resolve() if url.path else page
            assert file.exists(), f"{page.relative_to(site)} -> {target}"
            if url.fragment and file in pages:
                assert unquote(url.fragment) in pages[file].ids, f"{page.name} -> {target}"
            followed += 1
    assert followed > 1000


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    ids = Links(site / "docs" / "api.html").ids
    assert not [name for name in cris_deploy.__all__ if f"cris_deploy.{name}" not in ids]


def test_every_command_is_in_the_reference(site: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    scripts = re.findall(r"^(cris-\w+) = ", text, re.MULTILINE)
    ids = Links(site / "docs" / "commands.html").ids
    assert len(scripts) >= 9
    assert not [name for name in scripts if name not in ids]
