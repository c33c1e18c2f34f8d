"""Every command that opens a bundle can be told which one is meant, and keeps to it."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from cris_deploy.bundle.contents import MANIFEST, SIGNATURE
from cris_deploy.bundle.reading import Bundle
from cris_deploy.bundle.signature import key_text
from cris_deploy.cli import segment
from cris_deploy.serving.ray_options import read_options
from cris_export.cli import main as export
from cris_export.plans.build import build_plans
from cris_export.plans.options import PlanKind, PlanOptions
from cris_export.sign import PASSWORD, Signer
from cris_train.cli import eval as evaluation
from tests.helpers import tiny_bundle as tiny
from tests.helpers.server import serving
from tests.helpers.signing import PICTURE, WORDS, Keys

CPU = ("--backend", "onnxruntime")
Command = Callable[[Sequence[str]], int]


def commands(bundle: Path, folder: Path) -> list[tuple[Command, list[str]]]:
    """What opens a bundle in this process, with all that it needs to come as far as that."""
    picture = folder / "picture.png"
    cv2.imwrite(str(picture), PICTURE[..., ::-1])
    data = ("--data", str(folder / "data"))
    return [
        (segment.main, [str(bundle), str(picture), WORDS, "-o", str(folder / "out"), *CPU]),
        (export.main, ["check", str(bundle), *CPU]),
        (export.main, ["triton", str(bundle), str(folder / "models")]),
        (export.main, ["web", str(bundle), str(folder / "page")]),
        (evaluation.main, ["--bundle", str(bundle), *data]),
    ]


def test_commands_refuse_what_is_not_meant(
    signed: Path, keys: Keys, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for main, words in commands(signed, tmp_path):
        if main is not evaluation.main:  # it wants its data first
            assert main([*words, "--require-signature", str(keys.other)]) == 2, words
            assert "is signed by the key" in capsys.readouterr().err
            assert main([*words, "--manifest-sha256", "0" * 64]) == 2, words
            assert "expected 0000" in capsys.readouterr().err
    # In serving it is a process of its own, which ends before it serves.
    for option, said in (
        (("--require-signature", str(keys.other)), "is signed by the key"),
        (("--require-signature", "nothing"), "is no public key"),
        (("--manifest-sha256", "0" * 64), "expected 0000"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "cris_deploy.cli.serve", str(signed), *option],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2, done.stderr
        assert said in done.stderr


def test_commands_take_what_is_meant(
    signed: Path, keys: Keys, tmp_path: Path, golden: NDArray[np.bool_]
) -> None:
    digest = Bundle.open(signed).manifest_sha256
    meant = ("--require-signature", key_text(keys.public), "--manifest-sha256", digest)
    for main, words in commands(signed, tmp_path)[:3]:
        assert main([*words, *meant]) == 0, words
    [mask] = (path for path in (tmp_path / "out").glob("*.png") if "overlay" not in path.name)
    written = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(written > 0, golden)
    # A repository for Triton has the signature of the bundle in it.
    [copy] = (tmp_path / "models").rglob(MANIFEST)
    Bundle.open(copy.parent, require_signature=keys.public)


def test_replicas_are_given_the_key_itself(keys: Keys) -> None:
    """Its file need not be where Ray starts them; a hash of digits alone is no number."""
    options = read_options(
        {"bundle": "b", "require_signature": str(keys.public), "manifest_sha256": "1" * 64}
    )
    assert options.require_signature == key_text(keys.public)
    assert options.manifest_sha256 == "1" * 64


def test_a_checkpoint_has_no_signature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--ckpt", "x.pth", "--data", str(tmp_path), "--require-signature", "key"]
    assert evaluation.main(words) == 2
    assert "--require-signature goes with --bundle" in capsys.readouterr().err


def test_a_server_keeps_to_its_key(signed: Path, keys: Keys, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    key = tmp_path / "key.pub"
    shutil.copy(keys.public, key)
    with serving(signed, tmp_path / "log", "--require-signature", str(key)) as server:

        def reload(sentence: str) -> None:
            before, end = server.log.read_text().count(sentence), time.monotonic() + 60
            server.process.send_signal(signal.SIGHUP)
            while server.log.read_text().count(sentence) == before:
                assert time.monotonic() < end, server.log.read_text()
                time.sleep(0.02)

        reload("the bundle was replaced")
        # Another bundle with a manifest that fits, and the key of who made it in our key's place.
        shutil.copy(keys.other, key)
        tiny.change_weights(signed, "mix4", np.negative)
        Signer(keys.other_secret, pytest.fail).sign(signed)
        reload("the bundle was not replaced")
        assert "is signed by the key" in server.log.read_text()


def test_plans_are_not_listed_in_what_is_signed_by_another(signed: Path, keys: Keys) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    options = PlanOptions(PlanKind.TENSORRT_RTX, targets=("sm86",))
    before = (signed / MANIFEST).read_bytes()
    with pytest.raises(Exception, match=r"is signed, and plans are listed .*: give --sign KEY"):
        build_plans(signed, options)
    assert (signed / MANIFEST).read_bytes() == before
    assert build_plans(signed, options, signer=Signer(keys.secret, pytest.fail))
    opened = Bundle.open(signed, require_signature=keys.public)
    assert len(opened.manifest.plans) == 4


def test_an_export_is_signed(keys: Keys, tmp_path: Path, traced_once: None) -> None:
    torch = pytest.importorskip("torch")
    from cris_deploy.errors import InputError
    from cris_export.export import export as make
    from cris_export.options import ExportOptions
    from cris_train import checkpoint
    from cris_train.model import Cris, CrisConfig
    from tests.helpers.models import randomised

    torch.manual_seed(0)
    model = randomised(Cris(CrisConfig.tiny(decoder_layers=2)))
    path = checkpoint.save(tmp_path / "tiny.pth", model)
    report = make(ExportOptions(path, signer=Signer(keys.secret, pytest.fail)))
    opened = Bundle.open(report.bundle, require_signature=keys.public)
    assert SIGNATURE not in opened.manifest.files
    with pytest.raises(InputError, match="cannot be used"):  # before any work
        Signer(tmp_path / "no such key", pytest.fail)


def test_keys_by_command(
    own_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = tmp_path / "release.key"
    assert export.main(["key", str(key)]) == 2  # nobody can be asked here
    assert f"set {PASSWORD}" in capsys.readouterr().err
    assert export.main(["key", str(key), "--no-password"]) == 0
    assert capsys.readouterr().out.strip() == f"{key}.pub"
    assert export.main(["key", str(key), "--no-password"]) == 2
    assert export.main(["sign", str(own_bundle), "--key", str(key)]) == 0
    Bundle.open(own_bundle, require_signature=f"{key}.pub")
    monkeypatch.setenv(PASSWORD, "correct horse")
    locked = tmp_path / "locked"
    assert export.main(["key", str(locked)]) == 0
    monkeypatch.delenv(PASSWORD)
    assert export.main(["sign", str(own_bundle), "--key", str(locked)]) == 2
    assert f"set {PASSWORD}" in capsys.readouterr().err
