"""Who asks for a signature gets the masks of what was signed, or an error that says what to do."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from cris_deploy import Engine
from cris_deploy.bundle import plans
from cris_deploy.bundle.contents import MANIFEST, SIGNATURE, WEIGHTS
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.bundle.signature import key_text
from cris_deploy.errors import BackendError, BundleError, InputError
from cris_export.sign import PASSWORD, Signer, sign_bundle, write_keys
from tests.helpers import tiny_bundle as tiny
from tests.helpers.signing import Keys, segmented
from tests.helpers.tiny_plans import HOST, add_plan


def opened(bundle: Path, key: Any, **options: Any) -> Engine:
    options = {"backend": "onnxruntime", "threads": 1, **options}
    return Engine(bundle, require_signature=key, **options)


def test_the_signed_bundle_gives_its_masks(
    signed: Path, keys: Keys, golden: NDArray[np.bool_]
) -> None:
    for key in (keys.public, str(keys.public), key_text(keys.public)):
        with opened(signed, key) as engine:
            np.testing.assert_array_equal(segmented(engine), golden)
    with Engine(signed, backend="onnxruntime", threads=1) as engine:  # nothing is asked for
        np.testing.assert_array_equal(segmented(engine), golden)


def flip(path: Path, at: int = -2) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rewrite_wholly(bundle: Path) -> None:
    """Other weights, and a manifest that fits them: what no hash in it can tell."""
    tiny.change_weights(bundle, "mix4", np.negative)


def link(bundle: Path, name: str = WEIGHTS) -> None:
    (bundle / name).rename(bundle / "elsewhere")
    (bundle / name).symlink_to("elsewhere")


def link_folder(bundle: Path) -> None:
    (bundle / "samples").rename(bundle / "elsewhere")
    (bundle / "samples").symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda b: (b / SIGNATURE).unlink(), f"has no {SIGNATURE}, and a signature is required"),
        (lambda b: (b / SIGNATURE).write_bytes(b""), f"{SIGNATURE} is no signature"),
        (lambda b: (b / SIGNATURE).write_bytes(b"\xff" * 99999), "is longer than 65,536 bytes"),
        (lambda b: flip(b / SIGNATURE), f"{SIGNATURE} is no signature|is not what the key"),
        (lambda b: flip(b / SIGNATURE, 120), f"{SIGNATURE} is no signature|is not what the key"),
        (lambda b: flip(b / MANIFEST), f"{MANIFEST} is not what the key [0-9A-F]{{16}} signed"),
        (lambda b: (b / MANIFEST).write_bytes(b"{"), "is not what the key"),  # not even read
        (lambda b: tiny.edit(b, "created", value="2026-11-23"), "is not what the key"),
        (rewrite_wholly, "is not what the key .* was changed, or plans were built for it since"),
        (lambda b: flip(b / WEIGHTS), f"{WEIGHTS} was changed"),
        (lambda b: flip(b / "full.onnx"), r"full\.onnx was changed"),
        (lambda b: flip(b / "samples/0.png"), r"samples/0\.png was changed"),
        (lambda b: (b / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
        (link, f"{WEIGHTS} is a link, which a signed bundle may not have"),
        (link_folder, r"samples/0\.\w+ is a link, which a signed bundle may not have"),
    ],
)
def test_what_was_not_signed_is_refused(
    signed: Path, keys: Keys, harm: Callable[[Path], Any], message: str
) -> None:
    harm(signed)
    with pytest.raises(BundleError, match=message):
        opened(signed, keys.public)


def test_another_key_is_refused(signed: Path, keys: Keys) -> None:
    with pytest.raises(BundleError, match=r"is signed by the key .*, and .* is required: take the"):
        opened(signed, keys.other)
    sign_bundle(signed, Signer(keys.other_secret, pytest.fail))  # replaced, not added
    opened(signed, keys.other).close()
    with pytest.raises(BundleError, match="is signed by the key"):
        opened(signed, keys.public)


def test_a_signature_of_another_bundle_is_refused(signed: Path, keys: Keys, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(signed, tmp_path / "twin.bundle"))
    tiny.edit(twin, "created", value="2020-01-01T00:00:00Z")
    sign_bundle(twin, Signer(keys.secret, pytest.fail))
    shutil.copy(twin / SIGNATURE, signed / SIGNATURE)
    with pytest.raises(BundleError, match="is not what the key"):
        opened(signed, keys.public)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("no such file", "is no public key .*No such file.*: give a file that minisign"),
        ("RW" + "A" * 54, "is no public key"),
        (7, "require_signature is 7: give a file"),
        (b"RW", "require_signature is b'RW'"),
        ("", "is no public key"),
    ],
)
def test_what_is_no_key_is_said(signed: Path, key: Any, message: str) -> None:
    with pytest.raises((InputError, BundleError), match=message):
        opened(signed, key)


def test_a_secret_key_is_no_public_one(signed: Path, keys: Keys) -> None:
    with pytest.raises(InputError, match="is no public key"):
        opened(signed, keys.secret)
    with pytest.raises(InputError, match=r"secret key .* cannot be used"):
        Signer(keys.public, pytest.fail)


def test_nothing_unsigned_goes_beside_it(signed: Path, keys: Keys) -> None:
    with pytest.raises(InputError, match="proves nothing with verify off"):
        opened(signed, keys.public, verify=False)
    with pytest.raises(InputError, match="trust_plans takes plans that nobody signed"):
        opened(signed, keys.public, trust_plans=True)
    bundle = Bundle.open(signed, require_signature=keys.public)
    with pytest.raises(InputError, match="trust_plans takes plans that nobody signed"):
        Engine(bundle, trust_plans=True)
    with pytest.raises(InputError, match="require_signature goes with a path"):
        Engine(bundle, require_signature=keys.public)


def test_a_plan_laid_beside_it_is_not_loaded(signed: Path, keys: Keys) -> None:
    record = add_plan(Bundle.open(signed), listed=False)
    bundle = Bundle.open(signed, require_signature=keys.public)
    with pytest.raises(BackendError, match=f"{record.file} is not listed in manifest"):
        plans.choose_plan(bundle, GraphName.FULL, HOST)
    add_plan(Bundle.open(signed))  # listed by who cannot sign
    with pytest.raises(BundleError, match="plans were built for it since"):
        Bundle.open(signed, require_signature=keys.public)
    sign_bundle(signed, Signer(keys.secret, pytest.fail))
    bundle = Bundle.open(signed, require_signature=keys.public)
    assert plans.choose_plan(bundle, GraphName.FULL, HOST) == record
    (plans.folder(bundle) / record.file).write_bytes(b"x" * record.plan_bytes)
    with pytest.raises(BackendError, match="its SHA-256 is not its sidecar's"):
        plans.read_plan(bundle, record)


def test_files_swapped_while_they_are_loaded(
    signed: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights as they are loaded, the signed ones before and after, with their old times."""
    path = signed / WEIGHTS
    real, times = path.read_bytes(), path.stat()
    session = onnxruntime.InferenceSession

    def swapped(*given: Any, **options: Any) -> Any:
        path.write_bytes(bytes(len(real)))
        try:
            return session(*given, **options)
        finally:
            path.write_bytes(real)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    monkeypatch.setattr(onnxruntime, "InferenceSession", swapped)
    with pytest.raises(BundleError, match="is not what was opened"):
        opened(signed, keys.public)


def test_the_package_is_needed_only_if_asked(signed: Path, keys: Keys, golden: object) -> None:
    """Without it nothing but signatures is missing, and that is said with the remedy."""
    script = (
        "import sys; sys.modules['minisign'] = None\n"
        "from cris_deploy import Engine, InputError\n"
        "Engine(sys.argv[1], backend='onnxruntime', threads=1).close()\n"
        "try: Engine(sys.argv[1], require_signature=sys.argv[2])\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(signed), str(keys.public)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "pip install 'cris-deploy[sign]'" in done.stdout


def test_passwords_of_keys(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "locked"
    public = write_keys(key, "correct horse")
    assert key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match=r"secret key .*locked cannot be used \(wrong password"):
        Signer(key, lambda name: "wrong")
    sign_bundle(own_bundle, Signer(key, lambda name: "correct horse"))
    opened(own_bundle, public).close()
    monkeypatch.setenv(PASSWORD, "correct horse")
    Signer(key, pytest.fail)
    for there in (key, public):
        with pytest.raises(InputError, match=f"{there} exists"):
            write_keys(key, None)
        there.unlink()
    write_keys(key, None)


def test_only_a_whole_bundle_is_signed(own_bundle: Path, keys: Keys) -> None:
    flip(own_bundle / WEIGHTS)
    with pytest.raises(BundleError, match=f"{WEIGHTS} was changed"):
        sign_bundle(own_bundle, Signer(keys.secret, pytest.fail))
    assert not (own_bundle / SIGNATURE).exists()


minisign = shutil.which("minisign")


@pytest.mark.skipif(minisign is None, reason="the tool minisign is not installed")
class TestOfMinisign:
    """The format is minisign's: its own tool reads what is written here, and vice versa."""

    def run(self, *words: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(minisign), *map(str, words)], capture_output=True, text=True, check=False
        )

    def test_it_takes_our_signature(self, signed: Path, keys: Keys) -> None:
        command = ("-V", "-m", signed / MANIFEST, "-p")
        assert self.run(*command, keys.public).returncode == 0
        assert self.run(*command, keys.other).returncode != 0
        flip(signed / MANIFEST)
        assert self.run(*command, keys.public).returncode != 0

    def test_its_signature_is_taken(
        self, own_bundle: Path, tmp_path: Path, golden: NDArray[np.bool_]
    ) -> None:
        secret, public = tmp_path / "m.key", tmp_path / "m.pub"
        assert self.run("-G", "-W", "-s", secret, "-p", public).returncode == 0
        assert self.run("-S", "-s", secret, "-m", own_bundle / MANIFEST).returncode == 0
        with opened(own_bundle, public) as engine:
            np.testing.assert_array_equal(segmented(engine), golden)
        flip(own_bundle / MANIFEST)
        with pytest.raises(BundleError, match="is not what the key"):
            opened(own_bundle, public)

    def test_its_key_signs_here(self, own_bundle: Path, tmp_path: Path) -> None:
        secret, public = tmp_path / "m.key", tmp_path / "m.pub"
        assert self.run("-G", "-W", "-s", secret, "-p", public).returncode == 0
        sign_bundle(own_bundle, Signer(secret, pytest.fail))
        assert self.run("-V", "-m", own_bundle / MANIFEST, "-p", public).returncode == 0
