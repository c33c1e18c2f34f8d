"""Paths and URLs; a bucket is played by pyarrow's file system for tests."""

from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="Ray is not installed: make .venv-ray/.installed")
from pyarrow import fs

from cris_deploy.batch.places import Place


def places(tmp_path: Path) -> list[Place]:
    bucket = Place(fs._MockFileSystem(), "bucket")
    bucket.make()
    return [bucket, Place.of("x", f"file://{tmp_path}/"), Place.of("x", str(tmp_path))]


def test_files_are_written_found_read_and_removed(tmp_path: Path) -> None:
    for place in places(tmp_path):
        for name in ("b", "a.png", ".hidden"):
            place.within(name).write_whole(name.encode())
            place.within(name).write_whole(name.encode())  # once more replaces it
        assert place.files() == ["a.png", "b"]
        assert place.within("b").read() == b"b"
        assert place.within("b").kind() == fs.FileType.File
        for name in place.files():
            place.within(name).remove()
            place.within(name).remove()
        assert place.files() == []
        assert not place.within("b").kind()


def test_urls_and_absolute_paths_are_themselves(tmp_path: Path) -> None:
    place = Place.of("x", "s3://photos/2026?region=eu-west-1")
    assert (place.filesystem.type_name, place.path) == ("s3", "photos/2026")
    assert place.within("a/b.png").path == "photos/2026/a/b.png"
    other = place.within(f"file://{tmp_path}/a.png")
    assert (other.filesystem.type_name, other.path) == ("local", f"{tmp_path}/a.png")
