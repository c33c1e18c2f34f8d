"""What the project's pages name is there: links and files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]
    if page.name != "CHANGELOG.md"
)
# Where a path in backticks may start: a README speaks of its own folder.
PACKAGES = ("export/cris_export", "train/cris_train", "benchmarks/cris_bench", "cris_deploy")
STARTS = ("", "export", "train", "benchmarks", "docs", *PACKAGES)
MADE = ("data/", "runs/", "demo/", "segmented/")  # by commands of the pages
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PATH = re.compile(r"`((?:[\w.+-]+/)+[\w.+-]*\.(?:py|md|json|jsonl|ya?ml|cpp|cu|h|png|toml|sh))`")


def named(page: Path) -> list[str]:
    # What others' repositories have is named behind this heading.
    text = page.read_text(encoding="utf-8").partition("## Beside others")[0]
    return LINK.findall(text) + PATH.findall(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_are_there(page: Path) -> None:
    starts = [page.parent, *(ROOT / start for start in STARTS)]
    for name in named(page):
        made = name.startswith(
            ("data/", "runs/", "demo/", "segmented/")
        )  # by the commands of the page
        assert made or any((start / name).exists() for start in starts), name
