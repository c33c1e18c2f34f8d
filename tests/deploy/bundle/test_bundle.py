"""Bundles: complete or not there, and read only when nothing was changed."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from cris_deploy.bundle.arrays import read_arrays
from cris_deploy.bundle.external_data import locations
from cris_deploy.bundle.manifest import Quantisation
from cris_deploy.bundle.reading import (
    FORMAT,
    MANIFEST,
    WEIGHTS,
    Bundle,
    GraphName,
    Manifest,
    Precision,
)
from cris_deploy.errors import BundleError
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
    sample, _ = bundle.manifest.samples
    assert bundle.sample_image(sample).is_file()
    assert bundle.sample_logits(sample).shape == (tiny.SIZE // 4, tiny.SIZE // 4)


def test_parity_may_be_absent(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    without = dataclasses.replace(manifest, parity=None)
    assert Manifest.from_json(without.to_json(), "m") == without


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
    with pytest.raises(BundleError, match="not a file"):
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
    with pytest.raises(BundleError, match=r"does not exist.*cris-export"):
        Bundle.open(tmp_path / "none")
    with pytest.raises(BundleError, match="has no manifest"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="not a directory"):
        Bundle.open(tmp_path / "file")


def edit(bundle: Path, *keys, value) -> None:
    path = bundle / MANIFEST
    document = json.loads(path.read_text())
    target = document
    for key in keys[:-1]:
        target = target[key]
    if value is KeyError:
        del target[keys[-1]]
    else:
        target[keys[-1]] = value
    path.write_text(json.dumps(document))


def test_what_earlier_versions_did_not_write(own_bundle):
    edit(own_bundle, "parity", "proofs", value=KeyError)
    for key in ("scene", "text"):
        edit(own_bundle, "samples", 0, key, value=KeyError)
    manifest = Bundle.open(own_bundle).manifest
    assert manifest.parity is not None
    assert manifest.parity.proofs == ()
    assert manifest.samples[0].scene is None


def test_quantisation(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.weight_levels == 0
    earlier = dataclasses.replace(manifest, precision=Precision.INT8)
    assert earlier.weight_levels == 127
    today = dataclasses.replace(earlier, quantisation=Quantisation(64, 0.995, 0.99))
    assert today.weight_levels == 64
    assert Manifest.from_json(today.to_json(), "m") == today
    for field, value in (("weight_levels", 0), ("correlation", 1.5), ("min_correlation", None)):
        document = json.loads(today.to_json())
        document["quantisation"][field] = value
        with pytest.raises(BundleError, match=f"quantisation.{field}"):
            Manifest.from_json(json.dumps(document), "m")


def test_newer_format(own_bundle):
    edit(own_bundle, "format", value=FORMAT + 1)
    edit(own_bundle, "graphs", value="something new")  # the format is looked at first
    with pytest.raises(BundleError, match="upgrade cris-deploy"):
        Bundle.open(own_bundle)


def test_unknown_keys_are_ignored(own_bundle):
    edit(own_bundle, "comment", value={"by": "someone"})
    edit(own_bundle, "model", "colour", value=3)
    Bundle.open(own_bundle)


@pytest.mark.parametrize(
    ("keys", "value", "field"),
    [
        (("format",), True, "format"),
        (("format",), 0, "format"),
        (("format",), "1", "format"),
        (("model",), [], "model"),
        (("model", "input_size"), 416.5, "model.input_size"),
        (("model", "input_size"), 10**9, "model.input_size is 1000000000, .* at most 4,096"),
        (("model", "mask_size"), 4097, "model.mask_size is 4097, .* at most 4,096"),
        (("model", "word_len"), 78, "model.word_len is 78, .* at most 77"),
        (
            ("graphs", "full", "inputs", 0, "shape"),
            ["n", 3, 10**6, 10**6],
            r"inputs\[0\].shape is .*, expected at most 268,435,456 elements",
        ),
        (("graphs", "full", "inputs", 0, "shape"), [10**12], r"shape\[0\] is 10+, .* at most"),
        (("graphs", "full", "inputs", 0, "shape"), [1] * 9, "at most 8 elements, not 9"),
        (("graphs", "full", "outputs"), [{}] * 65, "outputs is .*, expected at most 64 elements"),
        (("samples",), [{}] * 20_001, "samples is .*, expected at most 20,000 elements"),
        (("samples", 0, "height"), 10**9, r"samples\[0\].height is 10+, .* at most 100,000,000"),
        (("samples", 0, "width"), 10**8, r"samples\[0\].height is 45, .* pixels with the width"),
        (("files", WEIGHTS), KeyError, "files does not list weights.bin: export again"),
        (("files", "tokenizer.json", "bytes"), 10**11, "tokenizer.json has 100,000,000,000 bytes"),
        (("files", "full.onnx", "bytes"), 2**30, "full.onnx has 1,073,741,824 bytes, over the"),
        (("plans",), [], "plans is .*, expected an object"),
        (("plans",), {"../x": {}}, "plans is .*, expected a relative path inside the bundle"),
        (("plans",), {"x.plan": {"sha256": "a"}}, "plans.x.plan.sha256"),
        (("model", "word_len"), KeyError, "model.word_len is missing"),
        (("model", "threshold"), 1.5, "model.threshold"),
        (("model", "threshold"), float("nan"), "model.threshold"),
        (("model", "contrastive"), 1, "model.contrastive"),
        (("model", "checkpoint_sha256"), "abc", "model.checkpoint_sha256"),
        (("precision",), "fp8", "precision"),
        (("precision",), ["fp32"], "precision"),
        (("graphs", "full"), KeyError, "graphs.full is missing"),
        (("graphs", "full", "file"), "other.onnx", "graphs.full.file"),
        (("graphs", "full", "inputs", 0, "dtype"), "int8", r"graphs.full.inputs\[0\].dtype"),
        (("graphs", "full", "inputs", 0, "shape"), ["n", 0], r"shape\[1\]"),
        (("graphs", "full", "inputs"), {}, "graphs.full.inputs"),
        (("types",), KeyError, "types is missing"),
        (("types", "full"), KeyError, "types.full is missing"),
        (("types", "full", "nodes"), {"float64": 1}, "types.full.nodes"),
        (("types", "full", "weight_bytes", "float32"), 0.5, "types.full.weight_bytes.float32"),
        (("types", "full", "multiply_adds"), KeyError, "types.full.multiply_adds is missing"),
        (("types", "full", "conversions"), -1, "types.full.conversions"),
        (("types", "full", "islands", "node"), 3, "types.full.islands.node"),
        (("versions", "onnx"), 1, "versions.onnx"),
        (("samples", 0, "image"), "../0.png", r"samples\[0\].image"),
        (("samples",), None, "samples"),
        (("parity", "passed"), "yes", "parity.passed"),
        (("samples", 0, "scene"), "samples/none.npz", r"samples\[0\].scene"),
        (("parity", "proofs", 0, "backend"), None, r"parity.proofs\[0\].backend"),
        (("parity", "proofs", 0, "problem"), 1, r"parity.proofs\[0\].problem"),
        (("parity", "proofs", 0, "routes", 0, "mean_iou"), 1.5, r"routes\[0\].mean_iou"),
        (("parity", "proofs", 0, "routes", 0, "max_logit_error"), -1, r"routes\[0\].max_logit"),
        (("parity", "proofs", 0, "stages", 0, "stage"), "neck", r"stages\[0\].stage"),
        (("parity", "proofs"), {}, "parity.proofs"),
        (("created",), 5, "created"),
        (("files",), [], "files"),
        (("files", "full.onnx"), None, "files.full.onnx"),
        (("files", WEIGHTS, "bytes"), -1, "files.weights.bin.bytes"),
        (("files", "tokenizer.json"), KeyError, "tokenizer.json"),
    ],
)
def test_wrong_field_is_named(own_bundle, keys, value, field):
    edit(own_bundle, *keys, value=value)
    with pytest.raises(BundleError, match=field):
        Bundle.open(own_bundle)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../../x", "", ".", "a//b", "./a", "a\\b", "C:x", "a\0b", ".."],
)
def test_names_that_leave_the_bundle(own_bundle, name):
    edit(own_bundle, "files", name, value={"sha256": "0" * 64, "bytes": 0})
    with pytest.raises(BundleError, match="relative path inside"):
        Bundle.open(own_bundle)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"format": ' + b"9" * 5000]
)
def test_manifest_that_is_not_one(own_bundle, text):
    (own_bundle / MANIFEST).write_bytes(text)
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(own_bundle)


def test_a_manifest_of_any_length_is_not_read(own_bundle):
    os.truncate(own_bundle / MANIFEST, 100 << 30)  # sparse: it takes no room
    with pytest.raises(BundleError, match=r"manifest.json is longer than 16,777,216 bytes"):
        Bundle.open(own_bundle)


def test_the_manifest_that_is_meant(own_bundle):
    digest = hashlib.sha256((own_bundle / MANIFEST).read_bytes()).hexdigest()
    opened = Bundle.open(own_bundle, manifest_sha256=digest.upper())
    assert opened.manifest_sha256 == digest
    edit(own_bundle, "created", value="2026-11-23")  # valid as before
    Bundle.open(own_bundle)
    with pytest.raises(BundleError, match=rf"has the SHA-256 .*, expected {digest}: it is another"):
        Bundle.open(own_bundle, manifest_sha256=digest)


def store_elsewhere(bundle: Path, location: str) -> None:
    """Let one tensor of the mask decoder lie in another file, and write its hash."""
    path = bundle / "mask_decoder.onnx"
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, path)
    tiny.rehash(bundle)


@pytest.mark.parametrize("location", ["other.bin", "engines/x.plan", "../w.bin", "/etc/passwd"])
def test_weights_in_a_file_that_no_hash_covers(own_bundle, location):
    shutil.copy(own_bundle / WEIGHTS, own_bundle / "other.bin")
    store_elsewhere(own_bundle, location)
    message = rf"mask_decoder.onnx reads weights from '{location}', which manifest.json does not"
    for verify in (True, False):
        with pytest.raises(BundleError, match=message):
            Bundle.open(own_bundle, verify=verify)


def test_external_data_is_found_wherever_a_graph_may_have_it():
    def outside(location: str) -> onnx.TensorProto:
        tensor = onnx.TensorProto(name="x", data_type=1, dims=[1])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=location)
        return tensor

    make, sparse = onnx.helper.make_node, onnx.SparseTensorProto
    body = onnx.helper.make_graph([make("Constant", [], ["y"], value=outside("e"))], "b", [], [])
    nodes = [
        make("Constant", [], ["x"], value=outside("a")),
        make("Loop", ["x"], ["z"], body=body),
        make("Own", [], ["s"], many=[outside("f"), outside("g")]),
        make("Own", [], ["s"], one=sparse(values=outside("h"), indices=outside("i"))),
    ]
    graph = onnx.helper.make_graph(nodes, "location", [], [], [outside("b")])
    graph.sparse_initializer.append(sparse(values=outside("c"), indices=outside("d")))
    function = onnx.helper.make_function(
        "own", "F", [], [], [make("Constant", [], ["q"], value=outside("j"))], []
    )
    model = onnx.helper.make_model(graph, functions=[function], doc_string="location")
    assert locations(model.SerializeToString()) == set("abcdefghij")


@pytest.mark.parametrize(
    "content", [b"not a graph", b"\x3a\xff", b"\x3a\x05ab", b"\xff" * 12, b"\x3b", bytes(9)]
)
def test_a_graph_that_is_no_protobuf(own_bundle, content):
    (own_bundle / "full.onnx").write_bytes(content)
    tiny.rehash(own_bundle)
    with pytest.raises(BundleError, match=r"full.onnx is not an ONNX file"):
        Bundle.open(own_bundle)


def claims(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """A .npy file whose header claims a shape, and no data."""
    stream = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (claims((10**6, 10**6)), r"has shape \(1000000, 1000000\), expected \(16, 16\)"),
        (claims((16, 16)), "has 0 bytes of 1,024"),
        (claims((16, 16), "|O"), "holds object, not numbers"),
        (claims((16, 16), "<U99999"), "not numbers"),
        (claims((16, 16), "<f8") + bytes(2048), "holds float64, expected float32"),
        (b"\x93NUMPY\x02\x00" + b"\xff" * 4, "version"),
        (b"\x93NUM", "cannot be read"),
    ],
)
def test_reference_logits_are_read_no_further_than_they_are_right(own_bundle, content, message):
    (own_bundle / "samples/0.npy").write_bytes(content)
    tiny.rehash(own_bundle)
    bundle = Bundle.open(own_bundle)
    with pytest.raises(BundleError, match=message):
        bundle.sample_logits(bundle.manifest.samples[0])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_of_an_archive(tmp_path, method):
    path = tmp_path / "x.npz"
    values = np.arange(6, dtype=np.float16).reshape(2, 3)

    def write(**members: bytes) -> None:
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    def whole(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    write(a=whole(values), b=whole(np.asfortranarray(values)), c=claims((10**6, 10**6)))
    found = read_arrays(path, {"a": (2, 3), "b": (2, 3)})
    for array in found.values():
        np.testing.assert_array_equal(array, values)
        assert array.dtype == np.float16
    for name, message in (("c", r"c has shape \(1000000"), ("d", "d.npy")):
        with pytest.raises(ValueError, match=message):
            read_arrays(path, {name: (2, 3)})
    write(a=claims((2, 3)) + bytes(200 << 20) if method == zipfile.ZIP_DEFLATED else b"")
    tracemalloc.start()
    with contextlib.suppress(ValueError):
        read_arrays(path, {"a": (2, 3)})
    assert tracemalloc.get_traced_memory()[1] < 5 << 20  # the rest is not inflated
    tracemalloc.stop()


def change(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name", ["full.onnx", WEIGHTS, "tokenizer.json"])
def test_files_that_are_no_longer_what_was_opened(own_bundle, name):
    bundle = Bundle.open(own_bundle)
    bundle.require_unchanged(list(GraphName))
    path = own_bundle / name
    os.link(path, own_bundle / "link")  # changes its status, not what it is
    os.utime(path)
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


def test_pickled_sample_is_refused(own_bundle):
    path = own_bundle / "samples/0.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    edit(own_bundle, "files", "samples/0.npy", "bytes", value=path.stat().st_size)
    bundle = Bundle.open(own_bundle, verify=False)
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.sample_logits(bundle.manifest.samples[0])
