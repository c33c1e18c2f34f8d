"""Every block of the pages is run, in their order, or says why not and meets our parsers."""

import contextlib
import importlib
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import pytest
import yaml

from tests.helpers.page_blocks import (
    PAGES,
    REASONS,
    ROOT,
    Block,
    blocks,
    imported,
    inline,
    parsed,
    shown,
    words_of,
)

# Fences that are read, not run: drawings, output without a command, tables of contents.
READ = ("text", "mermaid", "{image}", "{toctree}", "{argparse}", "{eval-rst}")
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
WITH_BLOCKS = [page for page in PAGES if blocks(page)]

EXPORT = shlex.split(
    "cris-export --ckpt train/demo/scenes.pth --samples train/demo/samples.jsonl -o scenes.bundle"
)


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


@dataclass(frozen=True)
class Exported:
    """What a command that many pages begin with left, so that it is run once."""

    words: list[str]
    bundle: Path
    told: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, traced_once: None) -> Exported:
    folder = tmp_path_factory.mktemp("demo")
    (folder / "train").symlink_to(ROOT / "train")
    with contextlib.chdir(folder):
        code, told = run_ours(EXPORT)
    assert code == 0, told
    return Exported(EXPORT, folder / "scenes.bundle", told)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "scenes"
    assert run_ours(["cris-scenes", str(path), "--train", "8", "--val", "2"])[0] == 0
    return path


@pytest.fixture
def folder(
    exported: Exported, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What pages presuppose: a checkout, a bundle and pictures under the names that they use."""
    for name in ("train", "docs", "benchmarks", "containers", "Makefile"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("scenes", "cris_r50", "model", "demo/scenes", "x"):
        shutil.copytree(exported.bundle, tmp_path / f"{name}.bundle")  # onnx reads no links
    for name in ("street.jpg", "table.jpg", "photo.jpg", "scene.png", "a.jpg", "b.jpg"):
        shutil.copy(ROOT / "train" / "demo" / "scene.png", tmp_path / name)
    line = {"image": "scene.png", "expression": "the purple cross"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scenes").symlink_to(scenes)
    for name in ("before", "after", "results"):
        shutil.copy(ROOT / "benchmarks" / "results" / "cpu-rn50.json", tmp_path / f"{name}.json")
    frame = cv2.imread(str(tmp_path / "street.jpg"))
    kind = cv2.VideoWriter.fourcc(*"mp4v")
    video = cv2.VideoWriter(str(tmp_path / "street.mp4"), kind, 10.0, frame.shape[1::-1])
    for _ in range(3):
        video.write(frame)
    video.release()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_ours(words: list[str]) -> tuple[int, str]:
    """Run a command of ours in this process: its exit code and what it printed."""
    module, _, function = SCRIPTS[words[0]].partition(":")
    told = io.StringIO()
    kept = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
            code = getattr(importlib.import_module(module), function)(words[1:])
    finally:
        signal.signal(signal.SIGTERM, kept)
    return code, told.getvalue()


class Page:
    """One page's blocks, run in one folder."""

    def __init__(self, folder: Path, exported: Exported) -> None:
        self.folder = folder
        self.exported = exported
        self.names: dict[str, object] = {"pairs": [("street.jpg", "the purple cross")] * 2}
        self.output = ""
        self.started: list[subprocess.Popen[bytes]] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def shell(self, block: Block) -> None:
        lines = block.commands()
        simple = all(
            shlex.split(line)[0] in SCRIPTS and not set(line) & set("|&;<$*") for line in lines
        )
        self.output = ""
        for line in lines if simple else ():
            [words] = words_of(line.replace("\n", " "))
            known = words == self.exported.words  # and its bundle is in the folder
            code, told = (0, self.exported.told) if known else run_ours(words)
            assert code == 0, f"{line}: {told}"
            if ">" in line:
                (self.folder / shlex.split(line, comments=True)[-1]).write_text(told)
            self.output += told
        if not simple:
            self._bash(block.text)

    def _bash(self, text: str) -> None:
        # A server that was started goes on behind the block, so its output goes to a file.
        text = text.replace("8000", str(self.port)).replace("8001", str(self.port + 1))
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        log = self.folder / "output.txt"
        with log.open("wb") as told:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", text],
                env={**os.environ, "PATH": path},
                stdout=told,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(process)
        code = process.wait(60)
        self.output = log.read_text()
        assert code == 0, f"{text}: {self.output}"

    def python(self, block: Block) -> None:
        told = io.StringIO()
        with contextlib.redirect_stdout(told):
            exec(compile(block.text, f"line {block.line}", "exec"), self.names)
        self.output = told.getvalue()

    def compare(self, block: Block) -> None:
        """Every line that is shown was printed, in this order; "..." stands for any."""
        printed = list(shown(self.output))
        rest = iter(printed)
        for line in shown(block.text):
            assert line == "..." or line in rest, f"{line!r} is not in {printed}"

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def page(folder: Path, exported: Exported) -> Iterator[Page]:
    running = Page(folder, exported)
    yield running
    running.end()


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=title)
def test_blocks_have_a_fence_and_an_outcome(path: Path) -> None:
    for block in blocks(path):
        place = f"{title(path)}:{block.line}"
        assert block.language, f"{place}: no fence with a language"
        if block.comment == "output":
            assert block.language == "text", place
        elif block.reason is not None:
            assert block.language in ("sh", "python", "yaml", "json"), place
            copied = block.reason.removeprefix("as in ")
            if copied in REASONS:
                continue
            other = "\n".join(each.text for each in blocks(ROOT / copied) if not each.reason)
            assert not [line for line in block.commands() if line not in other], place


@pytest.mark.parametrize("path", WITH_BLOCKS, ids=title)
def test_blocks_meet_the_parsers(path: Path) -> None:
    for block in blocks(path):
        if block.language == "sh":
            for line in block.commands():
                for words in words_of(line):
                    parsed(words)
        elif block.language == "python":
            imported(block.text)
        elif block.language == "yaml":
            list(yaml.safe_load_all(block.text))
        elif block.language == "json":
            for line in [block.text] if block.text.startswith("{\n") else block.text.splitlines():
                json.loads(line)
        else:
            assert block.language.split()[0] in READ, (
                f"{title(path)}:{block.line}: {block.language}"
            )


@pytest.mark.parametrize("path", PAGES, ids=title)
def test_commands_in_sentences_meet_the_parsers(path: Path) -> None:
    for text in inline(path):
        for words in words_of(text):  # named without all that they need
            parsed(words, but="the following arguments are required|expected one argument")


def _runs(path: Path) -> bool:
    return any(b.language in ("sh", "python") and b.reason is None for b in blocks(path))


@pytest.mark.parametrize("path", [path for path in WITH_BLOCKS if _runs(path)], ids=title)
def test_blocks_run(path: Path, page: Page) -> None:
    ways: dict[str, Callable[[Block], None]] = {"sh": page.shell, "python": page.python}
    for block in blocks(path):
        if block.comment == "output":
            page.compare(block)
        elif block.reason is None and block.language in ways:
            ways[block.language](block)
