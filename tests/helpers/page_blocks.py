"""The code blocks of the project's pages, and what can be said of one without running it."""

import argparse
import ast
import contextlib
import importlib
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markdown_it import MarkdownIt

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(
    page
    for page in {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("**/README.md")}
    if page.name != "CHANGELOG.md" and not set(page.parts) & {".venv", "build"}
)
REASONS: Final = (
    "needs a GPU",
    "needs a container runtime",
    "needs a cluster",
    "needs a network",
    "needs a data set",
    "needs a checkpoint of full size",
    "needs HAProxy",
    "needs Ray",
    "needs Triton",
    "needs npm",
    "needs bfloat16 in the processor",
    "needs several machines",
    "takes minutes",
    "takes hours",
    "installs",
    "shows names alone",
)
"""Why a block may be left unrun; `as in PAGE` is the last one, and is looked up there."""

PARSERS: Final = {
    "cris-export check": "cris_export.cli.check",
    "cris-export build": "cris_export.cli.build",
    "cris-export sign": "cris_export.cli.sign",
    "cris-export key": "cris_export.cli.key",
    "cris-export triton": "cris_export.cli.triton",
    "cris-export web": "cris_export.cli.web",
    "cris-export": "cris_export.cli.main",
    "cris-segment": "cris_deploy.cli.segment",
    "cris-serve": "cris_deploy.cli.serve",
    "cris-info": "cris_deploy.cli.info",
    "cris-train": "cris_train.cli.train",
    "cris-eval": "cris_train.cli.eval",
    "cris-data": "cris_train.cli.data",
    "cris-scenes": "cris_train.cli.scenes",
    **{
        f"cris-bench {name}": f"cris_bench.report.{name}" for name in ("kernels", "compare", "cost")
    },
    "cris-bench report": "cris_bench.report.document",
    "cris-bench batcher": "cris_bench.scopes.batcher",
    "cris-bench browser": "cris_bench.scopes.browser",
    "cris-bench serve": "cris_bench.scopes.serving",
    "cris-bench video": "cris_bench.scopes.video",
    "cris-bench ways": "cris_bench.scopes.ways",
    "cris-bench ray": "cris_bench.scopes.ray_losses",
    "cris-bench": "cris_bench.cli",
}
"""Command -> module with its `_parser`; subcommands first."""
OTHERS: Final = {
    *("pip", "python", "python3", "pre-commit", "pytest", "ruff", "make", "torchrun", "curl"),
    *(
        "npm",
        "haproxy",
        "serve",
        "tritonserver",
        "docker",
        "kubectl",
        "git",
        "minisign",
        "sha256sum",
        "cut",
        "nvidia-smi",
        "test",
        ".",
    ),
    *("compute-sanitizer", "kill", "until", "sleep", "do", "done", "mkdir", "cat", "cp", "mv"),
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fence of a page: its language, its text, and the comment that stands before it."""

    line: int
    language: str
    text: str
    comment: str

    @property
    def reason(self) -> str | None:
        """Why it is not run; None if it is."""
        given = re.fullmatch("not run: (.*)", self.comment)
        return given[1] if given else None

    def commands(self) -> list[str]:
        """Logical lines of a shell block without those that are comments alone."""
        text = re.sub(r"<<'(\w+)'(.*?)\n\1\n", "\n", self.text, flags=re.DOTALL)  # files in it
        lines = text.replace("\\\n", " ").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]


def blocks(page: Path) -> list[Block]:
    """Find a page's fences in their order; an indented one has no language, so that it is found."""
    found, comment = [], ""
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            found.append(Block(token.map[0] + 1, token.info.strip(), token.content, comment))
        given = re.fullmatch(r"<!-- (.*) -->", token.content.strip())
        comment = given[1] if token.type == "html_block" and given else ""
    return found


def inline(page: Path) -> Iterator[str]:
    """Give the commands of ours that stand in sentences and tables, but for those with "..."."""
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for child in token.children or ():
            text = child.content.replace(".venv/bin/", "")
            whole = "..." not in text and "[--" not in text and "{" not in text
            if child.type == "code_inline" and re.match(r"cris-[a-z]+ ", text) and whole:
                yield text


def words_of(line: str) -> list[list[str]]:
    """Split a shell line into its commands, without variables before them and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if set(word) <= set("|&;"):
            commands.append([])
        elif word in (">", ">>", ">&"):
            skip = True
        elif skip:
            skip = False
        elif commands[-1] or not re.match(r"[A-Z_]+=", word):
            commands[-1].append(word)
    return [words for words in commands if words]


def parsed(words: list[str], but: str = "^\b$") -> None:
    """Hold a command against its parser, or against the list of others. Raises AssertionError.

    `but` is a pattern of complaints that are let pass.
    """
    name = words[0].removeprefix(".venv/bin/").removeprefix("$(BIN)/")
    words = [name, *words[1:]]
    if "-m" in words[:-1] and words[words.index("-m") + 1] == "cris_train":
        words = ["cris-train", *words[words.index("-m") + 2 :]]
    command = next(
        (known for known in PARSERS if words[: len(known.split())] == known.split()), None
    )
    if command is None:
        assert name in OTHERS, f"{name}: no command of ours, and not in OTHERS"
        _others(words)
        return
    parser: argparse.ArgumentParser = importlib.import_module(PARSERS[command])._parser()
    arguments = words[len(command.split()) :]
    # Subparsers have no intermixed way.
    read = parser.parse_intermixed_args if command == "cris-train" else parser.parse_args
    told = io.StringIO()
    code: object = 0
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            read(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 0 or re.search(but, told.getvalue()), f"{shlex.join(words)}: {told.getvalue()}"


def _others(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in words[1:] if "=" not in word]
        assert not [word for word in named if word not in targets], words
    if "install" in words:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = re.findall(r"(?:\.|cris-deploy)\[(.*?)\]", " ".join(words))
        named = {extra for group in extras for extra in group.split(",")}
        assert named <= project["optional-dependencies"].keys(), words


def imported(text: str) -> None:
    """Compile a Python block, and look whether what it imports of ours is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cris_"):
            module = importlib.import_module(node.module or "")
            assert not [name for name in node.names if not hasattr(module, name.name)]


def shown(text: str) -> Iterator[str]:
    """Lines of an output to compare: figures, hashes and widths of columns vary."""
    for line in text.splitlines():
        plain = re.sub(r"[0-9a-f]{16,}|\d[\d.,:]*(e[+-]?\d+)?", "#", line)
        if plain := " ".join(re.sub(r"[-=:|]{3,}", " ", plain).split()):
            yield plain
