"""Sidecars of plans are read strictly, and a plan only if it is the one its sidecar means."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import PlanRecord
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.errors import BackendError, BundleError
from tests.helpers import tiny_bundle as tiny
from tests.helpers.tiny_plans import PLAN, add_plan, add_trt

DATA = Path(__file__).parents[2] / "data/format1"


def test_reads_back_what_was_written(bundle: Bundle) -> None:
    first = add_plan(bundle, graph=GraphName.TEXT_ENCODER)
    second = add_trt(bundle, graph=GraphName.MASK_DECODER, version_compatible=True)
    assert plans.read_plans(bundle) == (second, first)  # by name
    assert first.file == "text_encoder.tensorrt-rtx.sm86-sm120.plan"
    Bundle.open(bundle.path)  # plans are no part of what the manifest lists


def test_a_sidecar_of_the_first_format() -> None:
    """As the code of commit 683b0bd wrote it: without kernels."""
    text = (DATA / "plan.json").read_text(encoding="utf-8")
    record = PlanRecord.from_json(text, "s")
    assert record.file == "full.tensorrt-rtx.sm86-sm120.plan"
    assert record.kernels == {}
    assert json.loads(record.to_json()) == {**json.loads(text), "kernels": {}}


def test_a_plan_without_sidecar_is_none(bundle: Bundle) -> None:
    record = add_plan(bundle)
    (plans.folder(bundle) / (record.file + plans.SIDECAR)).unlink()
    (plans.folder(bundle) / ".full.plan.json.1234.partial").write_text("{")
    assert plans.read_plans(bundle) == ()


def test_profiles_are_chosen_by_shape(bundle: Bundle) -> None:
    record = add_plan(bundle)
    shapes = [(1, 3, 64, 64), (8, 3, 64, 64), (9, 3, 64, 64), (17, 3, 64, 64), (3, 64, 64)]
    assert [record.profile_for({"image": shape}) for shape in shapes] == [0, 0, 1, None, None]
    assert record.profile_for({"pixels": (1, 3, 64, 64)}) is None  # of another graph


def change(*keys: str | int, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        if to is ...:
            del document[keys[-1]]
        else:
            document[keys[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("graph", to="half"), 'graph is "half", expected full or image_encoder'),
        (change("runtime", to="tensorrt-llm"), "expected tensorrt or tensorrt-rtx"),
        (change("version", to=10), "version is 10, expected a string"),
        (change("version", to=...), "version is missing"),
        (change("targets", to=[]), "at least one compute capability"),
        (change("targets", to=["8.6"]), r"targets\[0\] is \"8.6\", expected a compute capability"),
        (change("gpu", to=3), "gpu is 3, expected a string"),
        (change("plan_sha256", to="ab"), 'plan_sha256 is "ab", expected 64'),
        (change("plan_bytes", to=0), "plan_bytes is 0, expected an integer >= 1"),
        (change("profiles", to=[]), "at least one profile"),
        (
            change("profiles", 0, "inputs", "image", "max", to=[8, 3, 64]),
            r"profiles\[0\].inputs\['image'\]: min .* are not of one length",
        ),
        (
            change("profiles", 1, "inputs", "image", "opt", to=[99, 3, 64, 64]),
            "in that order of size",
        ),
        (change("profiles", 0, "inputs", "image", "min", to=[0, 3, 64, 64]), r"min\[0\] is 0"),
        (change("layers", to=...), "layers is missing"),
        (change("kernels", to={"float32": -1}), r"kernels\['float32'\] is -1"),
        (change("format", to=...), "format is missing"),
        (change("version_compatible", to=1), "version_compatible is 1, expected true or false"),
        (change("file", to="../full.plan"), 'file is "../full.plan"'),
        (change("file", to="other.plan"), "file is 'other.plan', expected 'full.tensorrt-rtx"),
        (change("format", to=2), "has format 2, .* upgrade cris-deploy"),
    ],
)
def test_a_wrong_sidecar_names_the_field_and_the_remedy(
    bundle: Bundle, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    record = add_plan(bundle)
    sidecar = plans.folder(bundle) / (record.file + plans.SIDECAR)
    document = json.loads(sidecar.read_text())
    edit(document)
    sidecar.write_text(json.dumps(document))
    with pytest.raises(BackendError, match=message) as error:
        plans.read_plans(bundle)
    assert "cris-export build" in str(error.value)


def test_a_sidecar_that_is_no_json_or_has_no_plan(bundle: Bundle) -> None:
    record = add_plan(bundle)
    sidecar = plans.folder(bundle) / (record.file + plans.SIDECAR)
    text = sidecar.read_text()
    sidecar.write_text(text[:-20])
    with pytest.raises(BackendError, match="is not valid JSON"):
        plans.read_plans(bundle)
    sidecar.write_text(text)
    (plans.folder(bundle) / record.file).unlink()
    with pytest.raises(BackendError, match=f"has no {record.file} beside it"):
        plans.read_plans(bundle)


def test_a_changed_plan_is_refused(bundle: Bundle) -> None:
    record = add_plan(bundle)
    path = plans.folder(bundle) / record.file
    assert plans.read_plan(bundle, record) == PLAN
    path.write_bytes(PLAN[:-1] + b"?")
    with pytest.raises(
        BackendError, match=r"\.plan is damaged: its SHA-256 .* --target sm86,sm120"
    ):
        plans.read_plan(bundle, record)
    path.write_bytes(PLAN[:-1])
    with pytest.raises(BackendError, match="is damaged: 37 bytes instead of 38"):
        plans.read_plan(bundle, record)
    path.unlink()
    with pytest.raises(BackendError, match="cannot be read"):
        plans.read_plan(bundle, record)
    command = f"cris-export build {bundle.path} --engine tensorrt-rtx --target sm86,sm120"
    assert command in plans.rebuild_command(bundle, record)


def test_sidecars_that_cannot_be_read(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    add_plan(bundle)
    (plans.folder(bundle) / f"other.plan{plans.SIDECAR}").mkdir()
    with pytest.raises(BackendError, match=r"other\.plan\.json cannot be read .*: build it again"):
        plans.read_plans(bundle)

    def refused(path: Path, pattern: str) -> list[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "glob", refused)
    with pytest.raises(BackendError, match=r"cannot be read \(.*denied\): build it again"):
        plans.read_plans(bundle)


def test_a_sidecar_without_end_is_not_read(bundle: Bundle) -> None:
    record = add_plan(bundle)
    os.truncate(plans.folder(bundle) / (record.file + plans.SIDECAR), 100 << 30)  # sparse
    remedy = "build it again with cris-export build BUNDLE --engine ENGINE$"
    with pytest.raises(BackendError, match=f"is longer than 1,048,576 bytes: {remedy}"):
        plans.read_plans(bundle)


def test_a_sidecar_of_the_greatest_length(bundle: Bundle) -> None:
    record = add_plan(bundle)
    path = plans.write_sidecar(plans.folder(bundle), record)
    assert path == plans.folder(bundle) / (record.file + plans.SIDECAR)
    text = record.to_json().encode()
    path.write_bytes(text.ljust(2**20))
    assert plans.read_plans(bundle) == (record,)
    path.write_bytes(text.ljust(2**20 + 1))
    with pytest.raises(BackendError, match="is longer than 1,048,576 bytes"):
        plans.read_plans(bundle)


def test_a_plan_of_another_length_is_not_read(bundle: Bundle) -> None:
    record = add_plan(bundle)
    os.truncate(plans.folder(bundle) / record.file, 100 << 30)  # sparse
    with pytest.raises(BackendError, match="is damaged: 107,374,182,400 bytes instead of 38"):
        plans.read_plan(bundle, record)


def test_a_plan_of_a_bundle_that_was_replaced(bundle: Bundle) -> None:
    record = add_plan(bundle)
    tiny.change_weights(bundle.path, "project", lambda value: -value)
    (plans.folder(bundle) / record.file).unlink()
    with pytest.raises(BundleError, match=r"changed or replaced meanwhile: make a new Engine"):
        plans.read_plan(bundle, record)
