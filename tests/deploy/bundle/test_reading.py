"""Bundles are read only when nothing in them was changed."""

import dataclasses
import hashlib
import os

import pytest

from cris_deploy.bundle.reading import (
    MANIFEST,
    WEIGHTS,
    Bundle,
    GraphName,
)
from cris_deploy.errors import BundleError, InputError
from tests.helpers import tiny_bundle as tiny


def test_round_trip(tiny_bundle):
    bundle = Bundle.open(tiny_bundle)
    written = tiny.manifest(dict(bundle.manifest.graphs))
    assert dataclasses.replace(bundle.manifest, files={}, weights={}) == written
    weights = bundle.manifest.weights
    assert set(weights) == set(GraphName)
    assert weights[GraphName.FULL]["project"] == weights[GraphName.MASK_DECODER]["project"]
    assert set(bundle.manifest.files) == {
        *(f"{name}.onnx" for name in GraphName),
        *("tokenizer.json", WEIGHTS, "samples/0.png", "samples/0.npy", "samples/1.npy"),
        *("samples/scene0.npz", "samples/text0.npz"),
    }
    assert bundle.graph(GraphName.FULL).is_file()
    assert bundle.tokenizer.is_file()
    assert "FileState" not in repr(bundle)
    sample, _ = bundle.manifest.samples
    assert bundle.sample_image(sample).is_file()
    assert bundle.sample_logits(sample).shape == (tiny.SIZE // 4, tiny.SIZE // 4)


@pytest.mark.parametrize("name", ["full.onnx", WEIGHTS, "samples/0.npy", "tokenizer.json"])
def test_one_changed_byte(own_bundle, name):
    path = own_bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name} was changed"):
        Bundle.open(own_bundle)
    Bundle.open(own_bundle, verify=False)  # waived


@pytest.mark.parametrize("verify", [True, False])
def test_missing_short_and_extra_files(own_bundle, verify):
    (own_bundle / "notes.txt").write_text("extra files are ignored")
    Bundle.open(own_bundle, verify=verify)
    weights = (own_bundle / WEIGHTS).read_bytes()
    (own_bundle / WEIGHTS).write_bytes(weights[:-1])
    with pytest.raises(BundleError, match=rf"{WEIGHTS} has .* bytes instead of"):
        Bundle.open(own_bundle, verify=verify)
    (own_bundle / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=rf"{WEIGHTS} is missing"):
        Bundle.open(own_bundle, verify=verify)


def test_directory_instead_of_file(own_bundle):
    (own_bundle / WEIGHTS).unlink()
    (own_bundle / WEIGHTS).mkdir()
    with pytest.raises(BundleError, match="is not a file: copy or export the bundle again"):
        Bundle.open(own_bundle)


def test_link_out_of_the_bundle(own_bundle, tmp_path):
    outside = tmp_path / "weights"
    (own_bundle / WEIGHTS).rename(outside)
    (own_bundle / WEIGHTS).symlink_to(outside)
    with pytest.raises(BundleError, match="link out of the bundle"):
        Bundle.open(own_bundle)
    (own_bundle / WEIGHTS).unlink()
    (own_bundle / WEIGHTS).symlink_to(WEIGHTS)  # a loop
    with pytest.raises(BundleError, match=WEIGHTS):
        Bundle.open(own_bundle)


def test_link_inside_and_link_to_the_bundle(own_bundle, tmp_path):
    (own_bundle / WEIGHTS).rename(own_bundle / "real.bin")
    (own_bundle / WEIGHTS).symlink_to("real.bin")
    (tmp_path / "link").symlink_to(own_bundle)
    Bundle.open(tmp_path / "link")


def test_not_a_bundle(tmp_path):
    with pytest.raises(BundleError, match=rf"{tmp_path}/none does not exist: give .*cris-export"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match="has no manifest"):
        Bundle.open(tmp_path)
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(BundleError, match=rf"{MANIFEST} cannot be read .*: copy or export"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match=rf"{tmp_path}/file is not a directory: give"):
        Bundle.open(tmp_path / "file")


def test_the_manifest_that_is_meant(own_bundle):
    digest = hashlib.sha256((own_bundle / MANIFEST).read_bytes()).hexdigest()
    opened = Bundle.open(own_bundle, manifest_sha256=digest.upper())
    assert opened.manifest_sha256 == digest
    tiny.edit(own_bundle, "created", value="2026-11-23")  # valid as before
    Bundle.open(own_bundle)
    with pytest.raises(BundleError, match=rf"has the SHA-256 .*, expected {digest}: it is another"):
        Bundle.open(own_bundle, manifest_sha256=digest)
    for bad in (digest[:-1], digest + "0", digest[:-1] + "g", 1):
        with pytest.raises(InputError, match=r"manifest_sha256 is .*: give 64 hexadecimal digits"):
            Bundle.open(own_bundle, manifest_sha256=bad)


def change(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name", ["full.onnx", WEIGHTS, "tokenizer.json"])
def test_files_that_are_no_longer_what_was_opened(own_bundle, name):
    bundle = Bundle.open(own_bundle)
    bundle.require_unchanged(list(GraphName))
    path = own_bundle / name
    os.link(path, own_bundle / "link")  # changes its status, not what it is
    os.utime(path)
    assert Bundle.open(own_bundle) == bundle
    bundle.require_unchanged(list(GraphName))
    (own_bundle / "copy").write_bytes(path.read_bytes())
    (own_bundle / "copy").rename(path)
    bundle.require_unchanged(list(GraphName))  # another file with the same content
    (own_bundle / "copy").write_bytes(change(path.read_bytes()))
    (own_bundle / "copy").rename(path)
    with pytest.raises(BundleError, match=rf"{name} is not what was opened.*make a new Engine"):
        bundle.require_unchanged(list(GraphName))
    path.unlink()
    with pytest.raises(BundleError, match=rf"{name} is not what was opened"):
        bundle.require_unchanged(list(GraphName))
