"""Tux Paint's pictures: fetched by list, and nothing else stands in their scenes."""

import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from cris_deploy.errors import InputError
from cris_train.cli.scenes import main
from cris_train.synthetic.named import sources
from cris_train.synthetic.named.maker import NamedMaker
from cris_train.synthetic.named.names import photographed, things
from tests.helpers.named_pictures import write_pictures

LISTED = sorted(code for thing in photographed("tuxpaint") for code in thing.codes)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without them, and an apt-get and a dpkg-deb that have a package of stand-ins."""
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    picture = np.full((60, 40, 4), 255, np.uint8)
    for code in LISTED:
        path = stamps / code.removeprefix("tuxpaint/")
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
    cv2.imwrite(str(stamps / "not-listed.png"), picture)
    with tarfile.open(tmp_path / "files.tar", "w") as packed:
        packed.add(tmp_path / "usr", "./usr")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in (("apt-get", "touch it.deb"), ("dpkg-deb", f"cat {tmp_path}/files.tar")):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return write_pictures(tmp_path / "cache")


def test_what_is_listed_is_fetched(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cris-scenes --fetch --pictures tuxpaint"):
        sources.require(cache, tuxpaint=True)
    sources.fetch(cache, tuxpaint=True)
    sources.require(cache, tuxpaint=True)
    found = [str(path.relative_to(cache)) for path in cache.glob("tuxpaint/**/*.png")]
    assert sorted(found) == LISTED
    assert not list(cache.glob("tmp*"))


def test_a_package_of_another_version_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "files.tar", "w"):
        pass
    with pytest.raises(InputError, match=r"tuxpaint-stamps-default has no .*another version"):
        sources.fetch(cache, tuxpaint=True)
    (tmp_path / "bin" / "dpkg-deb").write_text("#!/bin/sh\necho no such archive >&2; exit 2\n")
    with pytest.raises(InputError, match=r"dpkg-deb.*no such archive"):
        sources.fetch(cache, tuxpaint=True)
    assert sorted(path.name for path in cache.iterdir()) == ["cutouts", "photographs"]


def test_only_listed_things_stand_in_their_scenes(cache: Path) -> None:
    sources.fetch(cache, tuxpaint=True)
    maker = NamedMaker(cache, tuxpaint=True)
    assert maker.categories == tuple(thing.name for thing in things())
    with_pictures = {i for i, thing in enumerate(maker.things) if thing.codes}
    assert len(with_pictures) > 80
    seen: set[int] = set()
    for index in range(30):
        _, _, layout, _ = maker.draw(1, "test", index)
        for placed in layout.placed:
            assert placed.code in LISTED
            assert placed.paint is None
            seen.add(placed.thing)
    assert seen <= with_pictures
    assert len(seen) > 30


def test_shapes_have_no_such_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out"), "--pictures", "tuxpaint"]) == 2
    assert "take kind named" in capsys.readouterr().err
