"""The parser of every console: examples as they are typed, a description that is wrapped."""

import pytest

from cris_deploy import __version__
from cris_deploy.cli import Parser
from cris_deploy.execution.backends import Device

EXAMPLES = ("cris-x " + "a" * 100, "cris-x b --c d")


def test_help_has_examples_as_they_are_typed() -> None:
    text = Parser(prog="cris-x", description="many words " * 20, examples=EXAMPLES).format_help()
    described, _, examples = text.partition("examples:\n")
    assert described.count("many words") == 20
    assert max(map(len, described.splitlines())) <= 80
    assert [line.strip() for line in examples.splitlines()] == list(EXAMPLES)


def test_version_is_the_commands_not_its_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="cris-x")
    parser.add_subparsers().add_parser("y", examples=EXAMPLES)
    with pytest.raises(SystemExit, match="0"):
        parser.parse_args(["--version"])
    assert capsys.readouterr().out == f"cris-x {__version__}\n"
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["y", "--version"])


def test_choices_of_an_enum_are_shown_by_their_values(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="cris-x")
    parser.add_argument("--device", choices=["auto", *Device])
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--device", "tpu"])
    assert "(choose from 'auto', 'cpu', 'cuda')" in capsys.readouterr().err
