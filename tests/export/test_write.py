"""Bundles appear complete or not at all."""

import ctypes
import dataclasses
import errno
import multiprocessing
import os
import signal
import time

import pytest

from cris_deploy.bundle.reading import Bundle
from cris_deploy.errors import BundleError, InputError
from cris_export import write
from cris_export.write import BundleWriter
from tests.helpers import tiny_bundle as tiny


def test_nothing_appears_without_commit(tmp_path):
    path = tmp_path / "x.bundle"
    with BundleWriter(path) as writer:
        writer.write_manifest(tiny.fill(writer.directory))
        assert Bundle.open(writer.directory).manifest.model.architecture == "tiny"
        assert not path.exists()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError), BundleWriter(path) as writer:
        raise ZeroDivisionError(tiny.fill(writer.directory))
    assert list(tmp_path.iterdir()) == []


def test_commit_without_manifest(tmp_path):
    with BundleWriter(tmp_path / "x") as writer, pytest.raises(BundleError, match="no manifest"):
        writer.commit()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_existing_bundle_is_replaced_at_commit(own_bundle, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(ctypes, "CDLL", lambda _: None)  # a C library without renameat2
    (own_bundle / "old").write_text("old")
    with BundleWriter(own_bundle) as writer:
        writer.write_manifest(tiny.fill(writer.directory))
        assert (own_bundle / "old").exists()
        writer.commit()
    assert not (own_bundle / "old").exists()
    Bundle.open(own_bundle)
    assert list(own_bundle.parent.iterdir()) == [own_bundle]


def test_existing_bundle_survives_failure(own_bundle):
    with pytest.raises(ZeroDivisionError), BundleWriter(own_bundle):
        raise ZeroDivisionError
    Bundle.open(own_bundle)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError("256 requested and 0 written"),  # as NumPy has it
    ],
)
def test_a_full_disk_is_told_with_a_remedy(own_bundle, error):
    before = Bundle.open(own_bundle).manifest_sha256

    def write() -> None:
        with BundleWriter(own_bundle) as writer:
            (writer.directory / "half").write_text("half")
            raise error

    with pytest.raises(InputError, match=r"own\.bundle cannot be written: .*make room") as told:
        write()
    assert "what was there is kept" in str(told.value)
    assert error.args[-1] in str(told.value)
    assert Bundle.open(own_bundle).manifest_sha256 == before
    assert list(own_bundle.parent.iterdir()) == [own_bundle]


def test_what_fails_elsewhere_is_no_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), BundleWriter(tmp_path / "b"):
        (tmp_path / "missing").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_after_the_renaming_loses_nothing(own_bundle, monkeypatch):
    flush = write._flush

    def broken(path):
        if path == own_bundle.parent:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        flush(path)

    monkeypatch.setattr(write, "_flush", broken)
    with pytest.raises(BundleError, match=r"is complete, .*not be on the disk"):
        tiny.write_bundle(own_bundle)
    Bundle.open(own_bundle)
    assert list(own_bundle.parent.iterdir()) == [own_bundle]


def test_other_things_are_not_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(InputError, match="not a bundle"), BundleWriter(tmp_path / name):
            pass
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    tiny.write_bundle(tmp_path / "empty")  # an empty directory is nobody's loss
    Bundle.open(tmp_path / "empty")


def test_parents_are_made_and_unwritable_ones_reported(tmp_path):
    Bundle.open(tiny.write_bundle(tmp_path / "a" / "b" / "x.bundle"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"), BundleWriter(tmp_path / "file/x"):
        pass


def test_adding_parity_does_not_hash_again(tmp_path, monkeypatch):
    hashed = []
    original = write.sha256
    monkeypatch.setattr(write, "sha256", lambda path: hashed.append(path.name) or original(path))
    with BundleWriter(tmp_path / "x") as writer:
        manifest = writer.write_manifest(dataclasses.replace(tiny.fill(writer.directory)))
        count = len(hashed)
        (writer.directory / "full.onnx").touch()
        writer.write_manifest(dataclasses.replace(manifest, parity=None))
        assert hashed[count:] == ["full.onnx"]
        writer.commit()
    assert Bundle.open(tmp_path / "x").manifest.parity is None


def _write_and_wait(path, ready):
    with BundleWriter(path) as writer:
        writer.write_manifest(tiny.fill(writer.directory))
        ready.set()
        time.sleep(60)


def test_killed_writer_leaves_nothing_under_the_name(tmp_path):
    path = tmp_path / "x.bundle"
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_write_and_wait, args=(path, ready))
    process.start()
    assert ready.wait(30)
    assert not path.exists()
    (living,) = tmp_path.iterdir()
    tiny.write_bundle(path)
    assert living.exists()  # a living writer's directory is left alone
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    tiny.write_bundle(path)
    assert list(tmp_path.iterdir()) == [path]
    Bundle.open(path)


def test_bundle_set_aside_by_a_killed_writer_comes_back(own_bundle):
    aside = own_bundle.with_name(f".{own_bundle.name}.0123abcd.replaced")
    own_bundle.rename(aside)
    with BundleWriter(own_bundle):
        pass
    Bundle.open(own_bundle)
    assert not aside.exists()
