"""cris-bench as a command: its subcommands, and what their help shows."""

import re
import shlex

import pytest

from cris_bench import cli


@pytest.mark.parametrize("command", [[], *([name] for name in cli.SUBCOMMANDS)], ids=" ".join)
def test_help_shows_two_examples_of_options_that_exist(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*command, "--help"])
    assert exit_.value.code == 0
    options, _, examples = capsys.readouterr().out.partition("examples:")
    lines = [shlex.split(line) for line in examples.strip().splitlines()]
    assert len(lines) == 2
    for words in lines:
        assert words[: 1 + len(command)] == ["cris-bench", *command]
        for flag in (word for word in words if word.startswith("-")):
            assert re.search(rf"(^|\s){flag}\b", options), flag


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert re.fullmatch(r"cris-bench \d\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["kernels", "--iterations", "0"], "iterations"),
        (["compare", "missing.json", "missing.json"], "missing.json"),
        (["report", "missing.json"], "missing.json"),
    ],
)
def test_subcommands_are_found(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cris-bench {flags[0]}: error: ")
    assert said in error
