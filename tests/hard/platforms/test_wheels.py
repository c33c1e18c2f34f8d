"""A wheel, built by each Python that is here, segments the demo in an environment of its own.

No torch is in it, and nothing of this source tree. The masks are those of FP32 PyTorch, whose
logits the bundle holds.
"""

import functools
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.bundle.reading import Bundle
from cris_export.cli.main import main as export
from tests.helpers.kernels_reference import probabilities

pytestmark = pytest.mark.platforms

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).with_name("segment_demo.py")
TOOLS = ROOT / ".venv-trust" / "bin"
VERSIONS = ("3.11", "3.12", "3.13", "3.14")
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
# Logits of ONNX Runtime and PyTorch differ by up to 1e-4 on the demo: so near the threshold a pixel
# may be on either side.
UNDECIDED = 1e-4


@functools.cache
def interpreter(version: str) -> str | None:
    """A Python of that version: this one, of the PATH, of pyenv or of uv."""
    if version == THIS:
        return sys.executable
    home = Path.home()
    places = [
        shutil.which(f"python{version}"),
        *home.glob(f".pyenv/versions/{version}*/bin/python"),
        *home.glob(f".local/share/uv/python/cpython-{version}*/bin/python{version}"),
    ]
    question = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for place in filter(None, places):
        done = subprocess.run([place, "-c", question], capture_output=True, text=True, check=False)
        if done.stdout.strip() == version:  # pyenv's shims answer for versions they do not have
            return str(place)
    return None


def run(*words: object, **options: object) -> str:
    done = subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("demo") / "scenes.bundle"
    checkpoint, samples = (ROOT / "train/demo" / name for name in ("scenes.pth", "samples.jsonl"))
    words = ["--ckpt", checkpoint, "--samples", samples, "-o", bundle, "--backend", "onnxruntime"]
    assert export(list(map(str, words))) == 0
    return bundle


@dataclass(frozen=True)
class Installed:
    """A wheel, and the Python of an environment that has it, its dependencies and no more."""

    wheel: Path
    python: Path


Install = Callable[[str], Installed]


@pytest.fixture(scope="module")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Build and install, once for each version of Python; skips the test if it is not here."""
    root = tmp_path_factory.mktemp("wheels")

    @functools.cache
    def made(version: str) -> Installed | None:
        python = interpreter(version)
        if python is None:
            return None
        folder = root / version
        folder.mkdir()
        # As for a stranger: what the build needs is put into a place of its own.
        options = ("-C", "cmake.define.CRIS_CUDA=OFF", "-C", f"build-dir={folder / 'build'}")
        run(python, "-m", "pip", "wheel", "-q", "--no-deps", *options, "-w", folder, ROOT)
        [wheel] = folder.glob("cris_deploy-*.whl")
        run(python, "-m", "venv", folder / "environment")
        inside = folder / "environment" / "bin" / "python"
        run(inside, "-m", "pip", "install", "-q", f"cris-deploy[cpu] @ {wheel.as_uri()}")
        return Installed(wheel, inside)

    def found(version: str) -> Installed:
        installed = made(version)
        if installed is None:
            pytest.skip(f"there is no Python {version} here")
        return installed

    return found


def compare(demo: Path, masks: Path) -> None:
    """Hold masks against those of FP32 PyTorch, pixel by pixel."""
    bundle = Bundle.open(demo)
    model = bundle.manifest.model
    with np.load(masks) as found:
        assert len(found.files) == len(bundle.manifest.samples) > 2
        for name, sample in zip(found.files, bundle.manifest.samples, strict=True):
            values = probabilities(
                bundle.sample_logits(sample), sample.height, sample.width, model.input_size
            )
            golden = values > model.threshold
            assert golden.any()
            differ = found[name] != golden
            assert (np.abs(values[differ] - model.threshold) < UNDECIDED).all(), sample
            assert differ.sum() <= 2, sample


@pytest.mark.parametrize("version", VERSIONS)
def test_a_wheel_in_an_empty_environment(
    version: str, demo: Path, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = install(version)
    tag = "cp" + version.replace(".", "")
    assert f"-{tag}-{tag}-" in installed.wheel.name
    said = run(installed.python, "-I", SCRIPT, demo, tmp_path / "masks.npz", cwd=tmp_path)
    compare(demo, tmp_path / "masks.npz")
    with capsys.disabled():
        print(f"\n{said.strip()}: those of PyTorch")


def test_the_commands_of_a_wheel(demo: Path, install: Install, tmp_path: Path) -> None:
    commands = install(THIS).python.parent
    picture = ROOT / "train/demo/scene.png"
    words = (demo, picture, "the purple cross", "-o", tmp_path / "out")
    run(commands / "cris-segment", *words, cwd=tmp_path)
    assert list((tmp_path / "out").glob("*.png"))
    assert "onnxruntime" in run(commands / "cris-info", cwd=tmp_path)


def test_a_wheel_for_other_linuxes(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """auditwheel has no library to add, and finds a tag whose systems have all that it needs."""
    if not (TOOLS / "auditwheel").is_file():
        pytest.skip("auditwheel is not installed: make platforms does it")
    wheel = install(THIS).wheel
    environment = {"PATH": f"{TOOLS}:/usr/bin:/bin"}
    run(TOOLS / "auditwheel", "repair", "-w", tmp_path, wheel, env=environment)
    [repaired] = tmp_path.glob("*.whl")
    assert re.search(r"-manylinux_2_\d+_x86_64", repaired.name)
    with zipfile.ZipFile(repaired) as archive:
        assert not [name for name in archive.namelist() if ".libs/" in name]
    with capsys.disabled():
        print(f"\n{repaired.name}")


def test_a_processor_without_avx2(
    demo: Path, install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it on a processor of 2008, emulated: NumPy, OpenCV, ONNX Runtime and the kernels."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None:
        pytest.skip("qemu-x86_64 is not installed")
    command = (emulator, "-cpu", "Nehalem", install(THIS).python)
    said = run(*command, "-I", SCRIPT, demo, tmp_path / "masks.npz", cwd=tmp_path)
    assert "kernels portable" in said
    compare(demo, tmp_path / "masks.npz")
    with capsys.disabled():
        print(f"\nNehalem: {said.strip()}: those of PyTorch")
