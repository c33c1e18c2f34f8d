"""Bounds hold to the unit: the last value that is allowed, and the first that is not."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from cris_deploy.bundle.fingerprints import fingerprint
from cris_deploy.bundle.manifest import GraphName, Manifest
from cris_deploy.bundle.plans import PlanRecord
from cris_deploy.bundle.reading import MANIFEST, TOKENIZER, WEIGHTS, Bundle
from cris_deploy.errors import BackendError, BundleError, InputError

DATA = Path(__file__).parents[2] / "data/format1"
SHAPE = ("graphs", "full", "inputs", 0, "shape")
TENSORS = ("graphs", "full", "inputs")
TENSOR = {"name": "x", "dtype": "float32", "shape": [1]}


def manifest(*keys: str | int, value: Any) -> Manifest:
    document = json.loads((DATA / "manifest.json").read_text())
    _put(document, keys, value)
    return Manifest.from_json(json.dumps(document), "m")


def _put(document: Any, keys: tuple[str | int, ...], value: Any) -> None:
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "allowed", "refused"),
    [
        (("model", "input_size"), [1, 4096], [0, 4097]),
        (("model", "mask_size"), [1, 4096], [0, 4097]),
        (("model", "word_len"), [3, 77], [2, 78]),
        (("model", "context_length"), [3, 1000], [2]),
        (("model", "threshold"), [0.0, 1.0], [-1e-9, 1 + 1e-9]),
        (("model", "decoder_layers"), [0], [-1]),
        (("model", "parameters"), [0], [-1]),
        (("opset",), [1], [0]),
        (("samples", 0, "height"), [1, 10**6], [0, 10**8 + 1]),
        (("samples", 0, "width"), [1, 10**6], [0, 10**8 + 1]),
        ((*SHAPE, 1), [1, 2**16], [0, 2**28 + 1]),
        (SHAPE, [[2**28], [1] * 8, [2**14, 2**14]], [[2**28, 2], [1] * 9, [2**14, 2**14 + 1]]),
        (TENSORS, [[TENSOR] * 64], [[TENSOR] * 65]),
        (("samples",), [[]], ["x"]),
        (("parity", "min_iou"), [0, 1], [-0.001, 1.001]),
        (("parity", "max_logit_error"), [0, None], [-0.001]),
        (("files", "weights.bin", "bytes"), [0], [-1]),
    ],
)
def test_of_a_manifest(keys: tuple[str | int, ...], allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        found: Any = manifest(*keys, value=value)
        for key in keys:
            found = found[key] if isinstance(found, (dict, tuple)) else getattr(found, str(key))
        assert json.loads(json.dumps(found, default=vars_of)) == json.loads(json.dumps(value))
    for value in refused:
        with pytest.raises(BundleError, match=rf"^m: .*{keys[-1] if keys[-1] != 1 else 'shape'}"):
            manifest(*keys, value=value)


def vars_of(value: Any) -> Any:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_of_the_samples_together() -> None:
    document = json.loads((DATA / "manifest.json").read_text())
    sample = {**document["samples"][0], "height": 10**4, "width": 10**4}
    document["samples"] = [sample] * 20_000
    assert len(Manifest.from_json(json.dumps(document), "m").samples) == 20_000
    document["samples"].append(sample)
    with pytest.raises(BundleError, match="m: samples"):
        Manifest.from_json(json.dumps(document), "m")
    document["samples"] = [{**sample, "width": 10**4 + 1}]
    with pytest.raises(BundleError, match="100,000,000 pixels"):
        Manifest.from_json(json.dumps(document), "m")


@pytest.mark.parametrize("missing", [1, 0])
def test_of_its_length(missing: int) -> None:
    text = (DATA / "manifest.json").read_bytes().ljust(16 * 2**20 + 1 - missing)
    if missing:
        Manifest.from_json(text, "m")
    else:
        with pytest.raises(BundleError, match="m is longer than 16,777,216 bytes"):
            Manifest.from_json(text, "m")


@pytest.mark.parametrize(
    ("name", "limit", "message"),
    [(TOKENIZER, 64 * 2**20, "67,108,864"), ("full.onnx", 256 * 2**20, "268,435,456")],
)
def test_of_files_that_are_read_whole(
    own_bundle: Path, name: str, limit: int, message: str
) -> None:
    document = json.loads((own_bundle / MANIFEST).read_text())
    for size, expected in (
        (limit, "bytes instead of"),
        (limit + 1, f"over the limit of {message}"),
    ):
        document["files"][name]["bytes"] = size
        (own_bundle / MANIFEST).write_text(json.dumps(document))
        with pytest.raises(BundleError, match=expected):
            Bundle.open(own_bundle)


def test_of_a_sidecar() -> None:
    document = json.loads((DATA / "plan.json").read_text())
    one = {**document, "profiles": document["profiles"][:1], "targets": ["sm86"], "plan_bytes": 1}
    record = PlanRecord.from_json(json.dumps(one), "p")
    assert (len(record.profiles), record.targets, record.plan_bytes) == (1, ("sm86",), 1)
    for wrong in ({"build_seconds": -1}, {"targets": ["sm8"]}, {"file": "a/b.plan"}, {"format": 0}):
        with pytest.raises(BackendError, match=next(iter(wrong))):
            PlanRecord.from_json(json.dumps({**one, **wrong}), "p")
    with pytest.raises(BackendError, match="again with cris-export build BUNDLE --engine ENGINE"):
        PlanRecord.from_json("{", "p")


def test_each_kind_of_value_is_in_a_fingerprint(tmp_path: Path) -> None:
    """Whatever field a weight lies in: another value is another fingerprint."""
    values: dict[str, list[Any]] = {
        "float_data": [0.5],
        "int32_data": [5],
        "string_data": [b"5"],
        "int64_data": [5],
        "raw_data": [b"5"],
        "double_data": [0.5],
        "uint64_data": [5],
    }
    found = set()
    for name, content in values.items():
        for value in (None, content[0], content[0] * 3):
            tensor = onnx.TensorProto(name="w", data_type=1, dims=[1])
            if value is not None and name == "raw_data":
                tensor.raw_data = value
            elif value is not None:
                getattr(tensor, name).append(value)
            model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
            onnx.save(model, tmp_path / "full.onnx")
            digest = fingerprint(tmp_path, {GraphName.FULL: "full.onnx"})[GraphName.FULL]["w"]
            found.add((name if value is not None else "", digest))
    assert len(found) == 2 * len(values) + 1


def test_weights_that_are_mapped_may_be_replaced_but_not_written(own_bundle: Path) -> None:
    weights = own_bundle / WEIGHTS
    data = weights.read_bytes()
    bundle = Bundle.open(own_bundle)
    bundle.require_unwritten()
    other = own_bundle / "other"
    other.write_bytes(data[::-1])
    other.replace(weights)  # another file of the same name: a map keeps the old one
    bundle.require_unwritten()
    with pytest.raises(BundleError, match=r"weights\.bin is not what was opened"):
        bundle.require_unchanged([GraphName.FULL])
    weights.unlink()
    bundle.require_unwritten()
    weights.write_bytes(data)
    again = Bundle.open(own_bundle)
    with weights.open("r+b") as stream:
        stream.write(bytes(16))
    with pytest.raises(BundleError, match=r"weights\.bin is not what was opened"):
        again.require_unwritten()
    with weights.open("r+b") as stream:  # as it was: other times alone change nothing
        stream.write(data[:16])
    again.require_unwritten()
    again.require_unchanged(GraphName)


def test_what_an_argument_is_called() -> None:
    with pytest.raises(InputError, match=r"^bundle is 3: give the directory cris-export wrote"):
        Bundle.open(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^verify is 1"):
        Bundle.open("x", verify=1)  # type: ignore[arg-type]
