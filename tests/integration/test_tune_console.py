"""From a checkpoint and a folder to a proved bundle: one command, and the one that it prints."""

import shlex
from pathlib import Path

import pytest

from cris_deploy.bundle.reading import Bundle, Precision
from cris_export.cli import main as export_cli
from cris_train.cli import train
from cris_train.synthetic.refer_files import write_scenes

DEMO = Path(__file__).parents[2] / "train" / "demo"


def test_the_printed_command_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path / "data", {"train": 6}, seed=4)
    run = tmp_path / "my run"
    quick = [
        *("images_per_batch=2", "expressions_per_image=2", "lessons=[{samples: 4}]"),
        *("precision=fp32", "hold_out=0.5", "tensorboard=false", "sheet_tiles=0"),
    ]
    argv = ["--init", str(DEMO / "scenes.pth"), "--data", str(tmp_path / "data")]
    assert train.main([*argv, "--output", str(run), *quick]) == 0
    command = shlex.split(capsys.readouterr().out.strip().splitlines()[-1])
    assert command[0] == "cris-export"
    assert export_cli.main(command[1:]) == 0
    manifest = Bundle.open(run / "tuned.bundle").manifest
    assert manifest.precision is Precision.INT8
    assert manifest.parity is not None
