"""What pages quote as said by the programs is said by them."""

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.page_blocks import ROOT

TABLE = re.compile(r"^\| (`.*?`(?: / `.*?`)*) \|", re.MULTILINE)
QUOTED = {"operations.md": "## What it says, what it means", "first-gpu.md": "## When it fails"}
PACKAGES = ("cris_deploy", "export/cris_export", "train/cris_train", "benchmarks/cris_bench")


def texts(path: Path) -> list[str]:
    """All strings of a file, those with values in them joined over the values."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (each.value if isinstance(each, ast.Constant) else "…" for each in node.values)
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.mark.parametrize("page", QUOTED)
def test_sentences_are_said(page: str) -> None:
    said = "\n".join(
        text
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for text in texts(path)
    )
    section = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(QUOTED[page])[2]
    sentences = [each for row in TABLE.findall(section) for each in re.findall("`(.*?)`", row)]
    assert len(sentences) > 5
    for sentence in sentences:
        for part in re.split(r" ?(?:…|\.\.\.|CUDA_ERROR_|x\.y|libcudnn\.so\.9) ?", sentence):
            assert part in said, f"{page}: {part!r} of {sentence!r}"
