"""Manifests: what is read, of which versions, and the field that is named in one that is wrong."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from cris_deploy.bundle.manifest import Quantisation
from cris_deploy.bundle.reading import (
    FORMAT,
    MANIFEST,
    WEIGHTS,
    Bundle,
    Manifest,
    Precision,
)
from cris_deploy.errors import BundleError
from tests.helpers import tiny_bundle as tiny

DATA = Path(__file__).parents[2] / "data/format1"


@pytest.fixture
def first_format() -> str:
    """A manifest as the code of commit 683b0bd wrote it: no quantisation, weights or plans."""
    return (DATA / "manifest.json").read_text(encoding="utf-8")


def test_parity_may_be_absent(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    without = dataclasses.replace(manifest, parity=None)
    assert Manifest.from_json(without.to_json(), "m") == without


def test_what_earlier_versions_did_not_write(own_bundle):
    tiny.edit(own_bundle, "parity", "proofs", value=KeyError)
    for key in ("scene", "text"):
        tiny.edit(own_bundle, "samples", 0, key, value=KeyError)
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
    for correlation in (0.995, -1.0, 1.0):
        made = dataclasses.replace(today, quantisation=Quantisation(64, correlation, 0.99))
        assert Manifest.from_json(made.to_json(), "m") == made
    for field, value in (
        *(("weight_levels", 0), ("correlation", 1.5), ("correlation", -1.5)),
        ("min_correlation", None),
    ):
        document = json.loads(today.to_json())
        document["quantisation"][field] = value
        with pytest.raises(BundleError, match=f"quantisation.{field}"):
            Manifest.from_json(json.dumps(document), "m")


def test_newer_format(own_bundle):
    tiny.edit(own_bundle, "format", value=FORMAT + 1)
    tiny.edit(own_bundle, "graphs", value="something new")  # the format is looked at first
    with pytest.raises(BundleError, match="upgrade cris-deploy"):
        Bundle.open(own_bundle)


def test_unknown_keys_are_ignored(own_bundle):
    tiny.edit(own_bundle, "comment", value={"by": "someone"})
    tiny.edit(own_bundle, "model", "colour", value=3)
    Bundle.open(own_bundle)


def test_graphs_of_a_later_version_are_ignored(own_bundle):
    before = Bundle.open(own_bundle).manifest
    for part in ("graphs", "types"):
        tiny.edit(own_bundle, part, "prompt_encoder", value={"of another": "kind"})
    assert Bundle.open(own_bundle).manifest == before


def test_a_manifest_of_the_first_format(first_format):
    manifest = Manifest.from_json(first_format, "m")
    assert manifest.model.architecture == "tiny"
    document, again = json.loads(first_format), json.loads(manifest.to_json())
    assert {key: again[key] for key in ("quantisation", "weights", "plans")} == {
        "quantisation": None,
        "weights": {},
        "plans": {},
    }
    assert _kept(document, again) == document


def test_the_layout_that_is_written_stays(first_format):
    """What is new in a manifest apart, a line of it is a line as it always was."""
    lines = Manifest.from_json(first_format, "m").to_json().splitlines()
    rest = iter(line.rstrip(",") for line in lines)
    assert all(line.rstrip(",") in rest for line in first_format.splitlines())


def _kept(before, now):
    """What `now` has of the fields in `before`."""
    if isinstance(before, dict):
        return {key: _kept(value, now[key]) for key, value in before.items()}
    if isinstance(before, list):
        return [_kept(*pair) for pair in zip(before, now, strict=True)]
    return now


@pytest.mark.parametrize(
    ("keys", "value", "field"),
    [
        (("format",), True, "format"),
        (("format",), 0, "format"),
        (("format",), "1", "format"),
        (("model",), [], "model"),
        (("model", "input_size"), 416.5, "model.input_size"),
        (("model", "input_size"), 416.0, "model.input_size"),
        (("model", "input_size"), 10**9, "model.input_size is 1000000000, .* <= 4096"),
        (("model", "mask_size"), 4097, "model.mask_size is 4097, .* <= 4096"),
        (("model", "word_len"), 78, "model.word_len is 78, .* <= 77"),
        (
            ("graphs", "full", "inputs", 0, "shape"),
            ["n", 3, 10**6, 10**6],
            r"graphs\['full'\].inputs\[0\]: shape is \[n, 3, 1000000, 1000000\], expected at most "
            "268,435,456 elements",
        ),
        (("graphs", "full", "inputs", 0, "shape"), [10**12], r"shape\[0\] is 10+, .* <= 268435456"),
        (("graphs", "full", "inputs", 0, "shape"), [1] * 9, r"inputs\[0\].shape is .* <= 8"),
        (("graphs", "full", "outputs"), [{}] * 65, "outputs is .* length <= 64"),
        (("samples",), [{}] * 20_001, "samples is .* length <= 20000"),
        (("samples", 0, "height"), 10**9, r"samples\[0\].height is 10+, .* <= 100000000"),
        (("samples", 0, "width"), 10**8, r"samples\[0\]: height is 45, .* pixels with the width"),
        (("files", WEIGHTS), KeyError, "files does not list weights.bin: export again"),
        (("files", "tokenizer.json", "bytes"), 10**11, "tokenizer.json has 100,000,000,000 bytes"),
        (("files", "full.onnx", "bytes"), 2**30, "full.onnx has 1,073,741,824 bytes, over the"),
        (("plans",), [], "plans is .*, expected an object"),
        (("plans",), {"../x": {}}, 'plans has "../x", expected a relative path inside the bundle'),
        (("plans",), {"x.plan": {"sha256": "a"}}, r"plans\['x.plan'\].sha256"),
        (("model", "word_len"), KeyError, "model.word_len is missing"),
        (("model", "threshold"), 1.5, "model.threshold"),
        (("model", "threshold"), float("nan"), "is not valid JSON"),
        (("model", "contrastive"), 1, "model.contrastive"),
        (("model", "checkpoint_sha256"), "abc", "model.checkpoint_sha256"),
        (("precision",), "fp8", "precision"),
        (("precision",), ["fp32"], "precision"),
        (("format",), KeyError, "format is missing"),
        (("graphs",), KeyError, "graphs is missing"),
        (("graphs",), [], "graphs is .*, expected an object"),
        (("graphs", "full"), KeyError, r"graphs\['full'\] is missing"),
        (("graphs", "full", "file"), "other.onnx", r"graphs\['full'\].file is \"other.onnx\""),
        (("graphs", "full", "inputs", 0, "dtype"), "int8", r"graphs\['full'\].inputs\[0\].dtype"),
        (("graphs", "full", "inputs", 0, "shape"), ["n", 0], r"shape\[1\]"),
        (("graphs", "full", "inputs"), {}, r"graphs\['full'\].inputs"),
        (("types",), KeyError, "types is missing"),
        (("types", "full"), KeyError, r"types\['full'\] is missing"),
        (("types", "full", "nodes"), {"float64": 1}, r"types\['full'\].nodes has \"float64\""),
        (("types", "full", "weight_bytes", "float32"), 0.5, r"weight_bytes\['float32'\] is 0.5"),
        (("types", "full", "multiply_adds"), KeyError, r"types\['full'\].multiply_adds is missing"),
        (("types", "full", "conversions"), -1, r"types\['full'\].conversions"),
        (("types", "full", "islands", "node"), 3, r"types\['full'\].islands\['node'\]"),
        (("versions", "onnx"), 1, r"versions\['onnx'\]"),
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
        (("files", "full.onnx"), None, r"files\['full.onnx'\]"),
        (("files", WEIGHTS, "bytes"), -1, r"files\['weights.bin'\].bytes"),
        (("files", "tokenizer.json"), KeyError, "tokenizer.json"),
    ],
)
def test_wrong_field_is_named(own_bundle, keys, value, field):
    tiny.edit(own_bundle, *keys, value=value)
    with pytest.raises(BundleError, match=field):
        Bundle.open(own_bundle)


@pytest.mark.parametrize("key", ["input_size", "threshold"])
@pytest.mark.parametrize("digits", [30, 400, 4000])
def test_numbers_beyond_any_type(own_bundle, key, digits):
    tiny.edit(own_bundle, "model", key, value=10**digits)
    with pytest.raises(BundleError, match=f"model.{key}"):
        Bundle.open(own_bundle)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../../x", "", ".", "a//b", "./a", "a\\b", "C:x", "a\0b", ".."],
)
def test_names_that_leave_the_bundle(own_bundle, name):
    tiny.edit(own_bundle, "files", name, value={"sha256": "0" * 64, "bytes": 0})
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
    with pytest.raises(
        BundleError, match=r"longer than 16,777,216 bytes.*: export the bundle again"
    ):
        Bundle.open(own_bundle)
