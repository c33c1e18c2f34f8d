"""Exports that are kept between runs, under a name made of all that they are made of.

They lie in `$CRIS_BENCH_CACHE`, or else in `cris-bench` below the user's cache folder, and take at
most as many bytes as they are allowed: what was not used for longest goes first. Any of it may be
deleted at any time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cris_deploy
import cris_export
import cris_train.model
from cris_bench.record.machine import PACKAGES
from cris_deploy.errors import InputError
from cris_deploy.files import make_folder
from cris_deploy.machine.cpu import this_cpu
from cris_deploy.machine.versions import versions_of

VARIABLE: Final = "CRIS_BENCH_CACHE"
MOST_BYTES: Final = 10 * 10**9
"""Five exports of a full-size model and their peers are 2.5 GB."""


def default_folder() -> Path:
    """Where exports are kept if nothing else is said."""
    said = os.environ.get(VARIABLE)
    if said:
        return Path(said)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cris-bench"


class Exports:
    """A folder of them.

    Args:
        folder: Made if missing.
        most_bytes: What they may take together.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder = make_folder(folder)
        self._most_bytes = most_bytes

    def get(self, make: Callable[[Path], object], *said: object) -> Path:
        """Give the folder of what is said, made by `make` in an empty folder if it is not there.

        Args:
            make: Writes everything into the folder that it is given.
            said: All that decides what is written, beside this project's source, the packages and
                the processor's instructions.

        Raises:
            InputError: the folder cannot be written.
        """
        name = hashlib.sha256(repr((said, _surroundings())).encode()).hexdigest()[:32]
        place = self.folder / name
        if not place.is_dir():
            # Made beside its place and renamed: nobody finds half of it.
            try:
                partial = Path(tempfile.mkdtemp(dir=self.folder, prefix=".partial-"))
            except OSError as error:
                raise InputError(f"{self.folder} cannot be written: {error.strerror}") from error
            try:
                make(partial)
                partial.rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        os.utime(place)
        self._forget(place)
        return place

    def _forget(self, used: Path) -> None:
        """Delete what was not used for longest, until the rest may stay; never what is used."""
        places = sorted(
            (place for place in self.folder.iterdir() if place.is_dir() and place != used),
            key=lambda place: place.stat().st_mtime,
        )
        sizes = {place: _bytes(place) for place in [*places, used]}
        while places and sum(sizes.values()) > self._most_bytes:
            oldest = places.pop(0)
            del sizes[oldest]
            shutil.rmtree(oldest, ignore_errors=True)


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@functools.cache
def _surroundings() -> str:
    """The source of what exports, the packages that help, and what int8 depends on."""
    digest, here = hashlib.sha256(), Path(__file__).parent
    roots = [Path(package.__path__[0]) for package in (cris_deploy, cris_export, cris_train.model)]
    files = [here / "contestants" / f"{name}.py" for name in ("plain_export", "quantised")]
    for file in sorted([*(f for root in roots for f in root.rglob("*.py")), *files]):
        digest.update(file.read_bytes())
    versions = versions_of(PACKAGES)
    versions.pop("cris-deploy", None)  # its source says more
    digest.update(repr((versions, this_cpu().features)).encode())
    return digest.hexdigest()
