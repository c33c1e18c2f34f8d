"""Sidecars of plans: read strictly, chosen by version, GPU and graph, refused with the reason."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cris_deploy import files
from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import Host, PlanRecord, Profile, RuntimeName, ShapeRange
from cris_deploy.bundle.reading import MANIFEST, Bundle, GraphName, Precision
from cris_deploy.errors import BackendError, BundleError
from tests.helpers import tiny_bundle as tiny

RTX, TRT = RuntimeName.TENSORRT_RTX, RuntimeName.TENSORRT
PLAN = b"not a real plan, but bytes with a hash"
HOST = Host(RTX, "1.7.1.116", "sm86", "NVIDIA GeForce RTX 3090")


@pytest.fixture
def bundle(own_bundle: Path) -> Bundle:
    return Bundle.open(own_bundle)


def add_plan(bundle: Bundle, listed: bool = True, **changes: Any) -> PlanRecord:
    """Write a plan of the full graph with its sidecar, and list it in the manifest."""
    graph = changes.get("graph", GraphName.FULL)
    graph_sha256, weights_sha256 = plans.graph_hashes(bundle, graph)
    record = PlanRecord(
        file=plans.plan_name(
            graph, changes.get("runtime", RTX), changes.get("targets", ("sm86", "sm120"))
        ),
        graph=graph,
        runtime=RTX,
        version="1.7.1.116",
        targets=("sm86", "sm120"),
        gpu=None,
        graph_sha256=graph_sha256,
        weights_sha256=weights_sha256,
        precision=Precision.FP32,
        profiles=(
            Profile({"image": ShapeRange((1, 3, 64, 64), (1, 3, 64, 64), (8, 3, 64, 64))}),
            Profile({"image": ShapeRange((1, 3, 64, 64), (9, 3, 64, 64), (16, 3, 64, 64))}),
        ),
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plan_bytes=len(PLAN),
        built="2026-11-22T00:00:00+00:00",
        build_seconds=1.25,
        layers={"float32": 3},
        products={"float32": 1},
    )
    record = dataclasses.replace(record, **changes)
    folder = plans.folder(bundle)
    folder.mkdir(exist_ok=True)
    (folder / record.file).write_bytes(PLAN)
    plans.write_sidecar(folder, record)
    if listed:
        plans.list_plans(Bundle.open(bundle.path), [record])
    return record


def add_trt(bundle: Bundle, **changes: Any) -> PlanRecord:
    settings = {
        "runtime": TRT,
        "version": "10.13.2.6",
        "targets": ("sm90",),
        "gpu": "NVIDIA H100 80GB HBM3",
    }
    return add_plan(bundle, **{**settings, **changes})


def test_reads_back_what_was_written(bundle: Bundle) -> None:
    first = add_plan(bundle, graph=GraphName.TEXT_ENCODER)
    second = add_trt(bundle, graph=GraphName.MASK_DECODER, version_compatible=True)
    assert plans.read_plans(bundle) == (second, first)  # by name
    assert first.file == "text_encoder.tensorrt-rtx.sm86-sm120.plan"
    Bundle.open(bundle.path)  # plans are no part of what the manifest lists


def test_a_bundle_without_plans_has_none_and_says_how_to_build(bundle: Bundle) -> None:
    assert plans.read_plans(bundle) == ()
    command = f"cris-export build {bundle.path} --engine tensorrt-rtx --target sm86"
    with pytest.raises(BackendError, match="has no tensorrt-rtx plan of full") as error:
        plans.choose_plan(bundle, GraphName.FULL, HOST)
    assert command in str(error.value)


def test_a_plan_without_sidecar_is_none(bundle: Bundle) -> None:
    record = add_plan(bundle)
    (plans.folder(bundle) / (record.file + plans.SIDECAR)).unlink()
    (plans.folder(bundle) / ".full.plan.json.1234.partial").write_text("{")
    assert plans.read_plans(bundle) == ()


def test_profiles_are_chosen_by_shape(bundle: Bundle) -> None:
    record = add_plan(bundle)
    shapes = [(1, 3, 64, 64), (8, 3, 64, 64), (9, 3, 64, 64), (17, 3, 64, 64), (3, 64, 64)]
    assert [record.profile_for({"image": shape}) for shape in shapes] == [0, 0, 1, None, None]


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
        (change("plan_bytes", to=0), "plan_bytes is 0, expected an integer of at least 1"),
        (change("profiles", to=[]), "at least one profile"),
        (
            change("profiles", 0, "inputs", "image", "max", to=[8, 3, 64]),
            r"profiles\[0\].inputs.image is .*, expected min, opt and max",
        ),
        (change("profiles", 1, "inputs", "image", "opt", to=[99, 3, 64, 64]), "min, opt and max"),
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
    with pytest.raises(BackendError, match=r"is damaged: its SHA-256 .* --target sm86,sm120"):
        plans.read_plan(bundle, record)
    path.write_bytes(PLAN[:-1])
    with pytest.raises(BackendError, match="is damaged: 37 bytes instead of 38"):
        plans.read_plan(bundle, record)
    path.unlink()
    with pytest.raises(BackendError, match="cannot be read"):
        plans.read_plan(bundle, record)


def listed(bundle: Bundle) -> Bundle:
    """Open it again: what was listed since is in its manifest."""
    return Bundle.open(bundle.path)


def test_a_plan_that_the_manifest_does_not_list_is_code_of_a_stranger(bundle: Bundle) -> None:
    record = add_plan(bundle, listed=False)
    bundle = listed(bundle)
    with pytest.raises(
        BackendError,
        match=rf"no plan of full fits .*: {record.file} is not listed in manifest\.json, and a "
        r"plan is code: build it with cris-export build .* --target sm86, or, if you trust "
        r"who made it, take it with Engine\(trust_plans=True\) or --trust-plans",
    ):
        plans.choose_plan(bundle, GraphName.FULL, HOST)
    assert plans.choose_plan(bundle, GraphName.FULL, HOST, trust_plans=True) == record
    # A listed plan that fits less well goes before one that is not listed.
    other = add_plan(bundle, targets=("sm86", "sm89", "sm120"))
    assert plans.choose_plan(listed(bundle), GraphName.FULL, HOST) == other


@pytest.mark.parametrize(
    "changes", [{"plan_sha256": "0" * 64}, {"plan_bytes": 5}, {"version_compatible": True}]
)
def test_a_sidecar_or_plan_that_was_exchanged_is_not_the_listed_one(
    bundle: Bundle, changes: dict[str, Any]
) -> None:
    record = add_plan(bundle)
    bundle = listed(bundle)
    assert plans.choose_plan(bundle, GraphName.FULL, HOST) == record
    plans.write_sidecar(plans.folder(bundle), dataclasses.replace(record, **changes))
    with pytest.raises(BackendError, match=r"is not the one that manifest\.json lists"):
        plans.choose_plan(bundle, GraphName.FULL, HOST)


def test_trusted_plans_still_have_to_be_whole(bundle: Bundle) -> None:
    record = add_plan(bundle, listed=False)
    (plans.folder(bundle) / record.file).write_bytes(PLAN[::-1])
    with pytest.raises(BackendError, match="its SHA-256 is not its sidecar's"):
        plans.read_plan(bundle, plans.choose_plan(bundle, GraphName.FULL, HOST, trust_plans=True))


def test_listing_keeps_what_else_the_manifest_says(bundle: Bundle) -> None:
    path = bundle.path / MANIFEST
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "of a later version": 1}))
    first = add_plan(bundle)
    second = add_plan(bundle, targets=("sm89",))
    found = json.loads(path.read_text())
    assert sorted(found.pop("plans")) == [first.file, second.file]
    document.pop("plans")
    assert found == {**document, "of a later version": 1}
    (plans.folder(bundle) / first.file).unlink()
    (plans.folder(bundle) / (first.file + plans.SIDECAR)).unlink()
    assert listed(bundle).manifest.plans.keys() == {first.file, second.file}  # valid without it
    add_plan(bundle, graph=GraphName.TEXT_ENCODER)
    assert first.file not in listed(bundle).manifest.plans  # gone with the next


def test_a_bundle_that_was_replaced_meanwhile_gets_no_listing(bundle: Bundle) -> None:
    record = add_plan(bundle, listed=False)
    path = bundle.path / MANIFEST
    path.write_text(path.read_text().replace("2026-11-22", "2026-11-23"))
    before = path.read_bytes()
    with pytest.raises(BundleError, match="was changed while plans were built for it"):
        plans.list_plans(bundle, [record])
    assert path.read_bytes() == before


def test_a_sidecar_without_end_is_not_read(bundle: Bundle) -> None:
    record = add_plan(bundle)
    os.truncate(plans.folder(bundle) / (record.file + plans.SIDECAR), 100 << 30)  # sparse
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


def test_chooses_the_plan_for_runtime_version_and_gpu(bundle: Bundle) -> None:
    wide = add_plan(bundle)
    narrow = add_plan(bundle, targets=("sm86",))
    add_plan(bundle, targets=("sm89",))
    add_trt(bundle)
    bundle = listed(bundle)
    assert plans.choose_plan(bundle, GraphName.FULL, HOST) == narrow
    on_120 = dataclasses.replace(HOST, compute_capability="sm120", gpu="NVIDIA GeForce RTX 5090")
    assert plans.choose_plan(bundle, GraphName.FULL, on_120) == wide


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        (
            dataclasses.replace(HOST, version="1.8.0.1"),
            "full.tensorrt-rtx.sm86-sm120.plan wants tensorrt-rtx 1.7.1.116, here is 1.8.0.1",
        ),
        (
            dataclasses.replace(HOST, compute_capability="sm89", gpu="RTX 4090"),
            "wants sm86 or sm120, here is RTX 4090 (sm89)",
        ),
        (
            Host(TRT, "10.13.2.6", "sm90", "NVIDIA H200"),
            "wants NVIDIA H100 80GB HBM3, here is NVIDIA H200 (sm90)",
        ),
        (Host(TRT, "10.13.2.6", "sm100", "NVIDIA B200"), "wants sm90, here is NVIDIA B200"),
        (
            Host(TRT, "11.0.0.1", "sm90", "NVIDIA H100 80GB HBM3"),
            "wants tensorrt 10.13.2.6, here is 11.0.0.1",
        ),
    ],
)
def test_a_plan_that_does_not_fit_says_what_it_wants(
    bundle: Bundle, host: Host, wanted: str
) -> None:
    add_plan(bundle)
    add_trt(bundle)
    with pytest.raises(BackendError) as error:
        plans.choose_plan(bundle, GraphName.FULL, host)
    message = str(error.value)
    assert wanted in message
    assert f"{host.runtime} {host.version} on {host.gpu}" in message
    target = f" --target {host.compute_capability}" if host.runtime is RTX else ""
    command = f"cris-export build {bundle.path} --engine {host.runtime}{target}"
    assert message.endswith(command)


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("10.13.2.6", "10.13.2.6", True),
        ("10.13.2.6", "10.16.1.1", True),
        ("10.13.2.6", "11.4.1.2", True),
        ("10.16.1.1", "10.13.2.6", False),
        ("11.0.0.1", "10.16.1.1", False),
        ("10.13.2.6", "12.0.0.1", False),
    ],
)
def test_version_compatible_plans_run_with_later_versions(
    bundle: Bundle, built: str, here: str, fits: bool
) -> None:
    record = add_trt(bundle, version=built, version_compatible=True)
    reason = plans.why_not(record, bundle, Host(TRT, here, "sm90", "NVIDIA H100 80GB HBM3"))
    assert (reason is None) is fits
    if reason is not None:
        assert f"wants tensorrt {built} or a later {built[:2]}" in reason


def test_hardware_compatible_plans_run_from_ampere_on(bundle: Bundle) -> None:
    record = add_trt(bundle, hardware_compatible=True)
    host = Host(TRT, "10.13.2.6", "sm86", "NVIDIA GeForce RTX 3090")
    assert plans.why_not(record, bundle, host) is None
    turing = dataclasses.replace(host, compute_capability="sm75", gpu="Tesla T4")
    reason = plans.why_not(record, bundle, turing)
    assert reason == "wants sm80 or newer, here is Tesla T4 (sm75)"


def test_a_plan_of_another_export_is_refused(bundle: Bundle) -> None:
    add_plan(bundle, graph_sha256="0" * 64)
    with pytest.raises(BackendError, match="was built from another export of this bundle"):
        plans.choose_plan(bundle, GraphName.FULL, HOST)
    add_plan(bundle, weights_sha256="0" * 64)
    with pytest.raises(BackendError, match="was built from another export of this bundle"):
        plans.choose_plan(bundle, GraphName.FULL, HOST)


def test_an_atomic_write_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    files.write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
