"""Plans are built whole and listed, or not at all.

The real TensorRT-RTX parses and builds, which takes no GPU. What goes wrong, and what `tensorrt`
alone has, is a stand-in's.
"""

import dataclasses
import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cris_deploy import Engine
from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import Host, PlanRecord, RuntimeName
from cris_deploy.bundle.reading import ENGINES, MANIFEST, Bundle, GraphName
from cris_deploy.errors import BackendError, BundleError
from cris_deploy.machine.gpu import Gpu
from cris_export.errors import ExportError
from cris_export.plans.build import build_plans
from cris_export.plans.options import PlanKind, PlanOptions
from tests.stand_ins.fake_machine import machine
from tests.stand_ins.fake_tensorrt import GPU, VERSION, WHOLE, FakeBuilding, Severity

__all__ = ["machine"]

nvidia = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

H100 = Gpu("NVIDIA H100 80GB HBM3", "sm90", 80 << 30)
TENSORRT = PlanOptions(PlanKind.TENSORRT)
RTX = PlanOptions(PlanKind.TENSORRT_RTX, targets=("sm120", "sm86"))


def by_name(records: tuple[PlanRecord, ...]) -> tuple[PlanRecord, ...]:
    return tuple(sorted(records, key=lambda record: record.file))


def test_none_builds_nothing_and_asks_nothing(here, own_bundle: Path) -> None:
    assert build_plans(own_bundle, PlanOptions(PlanKind.NONE), pytest.fail) == ()
    assert not (own_bundle / ENGINES).exists()


def test_plans_of_all_graphs_are_built_listed_and_found(own_bundle: Path) -> None:
    """By the real builder, whose plans no GPU is needed for."""
    said: list[str] = []
    records = build_plans(own_bundle, RTX, said.append)
    assert [record.graph for record in records] == list(GraphName)
    bundle = Bundle.open(own_bundle)
    assert plans.read_plans(bundle) == by_name(records)
    assert bundle.manifest.plans.keys() == {record.file for record in records}
    for record in records:
        assert (record.runtime, record.version) == (RuntimeName.TENSORRT_RTX, nvidia.__version__)
        assert (record.targets, record.gpu) == (("sm86", "sm120"), None)
        plan = plans.read_plan(bundle, record)
        assert record.plan_sha256 == hashlib.sha256(plan).hexdigest()
        assert set(record.products) == set(record.kernels) == {"float32"}
        host = Host(RuntimeName.TENSORRT_RTX, nvidia.__version__, "sm86", "any")
        assert plans.choose_plan(bundle, record.graph, host) == record
        log = (plans.folder(bundle) / (record.file + ".log")).read_text()
        assert "Engine generation completed" in log
    assert [line for line in said if line.startswith("building ")][1:] == [
        f"building {record.file}" for record in records
    ]


def test_tensorrt_is_given_typed_networks_and_nothing_that_changes_them(
    here, own_bundle: Path
) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    said: list[str] = []
    records = build_plans(own_bundle, TENSORRT, said.append)
    assert [build.typed for build in trt.builds] == [True] * 4
    for build in trt.builds:
        # It is on by default
        assert not build.config.get_flag(trt.BuilderFlag.TF32)
        assert not build.config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        assert build.config.hardware_compatibility_level is None
    assert trt.host_code_allowed == [False] * 4
    bundle = Bundle.open(own_bundle)
    for record in records:
        assert (record.targets, record.gpu, record.version) == (("sm90",), H100.name, VERSION)
        log = (plans.folder(bundle) / (record.file + ".log")).read_text()
        assert '[LAYERS] {"Layers": ["fused"]}' in log  # it was loaded
    assert any("on NVIDIA H100" in line for line in said)


def test_what_is_built_is_what_an_engine_runs(here, machine) -> None:
    for plan in (machine.bundle / ENGINES).iterdir():
        plan.unlink()
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    expressions = ["a", "man", "zebra"]
    with Engine(machine.bundle, backend="onnxruntime", device="cpu") as engine:
        expected = engine.segment(image, expressions)
    here(Gpu(GPU, "sm86", 24 << 30), FakeBuilding())
    build_plans(machine.bundle, TENSORRT)
    with machine.engine("tensorrt") as engine:
        for mine, theirs in zip(engine.segment(image, expressions), expected, strict=True):
            np.testing.assert_array_equal(mine.logits, theirs.logits)


def test_profiles_span_images_and_expressions(own_bundle: Path) -> None:
    options = dataclasses.replace(RTX, max_batch=4, max_expressions=16)
    records = {record.graph: record for record in build_plans(own_bundle, options)}
    first = {
        graph: [
            {name: (r.min[0], r.opt[0], r.max[0]) for name, r in profile.inputs.items()}
            for profile in record.profiles
        ]
        for graph, record in records.items()
    }
    text, scene = ("words", "sentence", "padding"), ("f3", "f4", "f5")
    assert first == {
        GraphName.FULL: [{"image": (1, 1, 4), "tokens": (1, 1, 4)}],
        GraphName.IMAGE_ENCODER: [{"image": (1, 1, 4)}],
        GraphName.TEXT_ENCODER: [{"tokens": (1, 1, 16)}],
        GraphName.MASK_DECODER: [
            {**dict.fromkeys(text, (1, 1, 16)), **dict.fromkeys(scene, (1, 1, 1))},
            dict.fromkeys((*text, *scene), (1, 4, 4)),
        ],
    }
    image = records[GraphName.FULL].profiles[0].inputs["image"]  # what follows is fixed
    assert (image.min, image.opt, image.max) == ((1, 3, 64, 64), (1, 3, 64, 64), (4, 3, 64, 64))
    decoder = records[GraphName.MASK_DECODER]
    expected = [(1, 16, 0), (1, 1, 0), (4, 4, 1), (4, 5, None)]
    spec = Bundle.open(own_bundle).manifest.graphs[GraphName.MASK_DECODER]
    for images, expressions, profile in expected:
        inputs = {
            value.name: (images if value.name in scene else expressions, *value.shape[1:])
            for value in spec.inputs
        }
        assert decoder.profile_for(inputs) == profile


def test_with_one_image_at_most_the_decoder_needs_one_profile(own_bundle: Path) -> None:
    records = build_plans(own_bundle, dataclasses.replace(RTX, max_batch=1))
    assert [len(record.profiles) for record in records] == [1, 1, 1, 1]


def test_compatible_modes_and_workspace_reach_the_builder(here, own_bundle: Path) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    options = dataclasses.replace(
        TENSORRT, version_compatible=True, hardware_compatible=True, workspace_mib=512
    )
    records = build_plans(own_bundle, options)
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    for build, record in zip(trt.builds, records, strict=True):
        assert build.config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        assert build.config.hardware_compatibility_level == level
        workspace = build.config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
        assert workspace == 512 << 20
        assert record.version_compatible
        assert record.hardware_compatible
    assert trt.host_code_allowed == [True] * 4  # a version-compatible plan brings its runtime


def test_a_builder_that_does_not_start_says_why(here, own_bundle: Path) -> None:
    trt = FakeBuilding()

    def refuse(logger) -> None:
        logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("factory function returned nullptr")

    trt.Builder = refuse
    here(H100, trt)
    with pytest.raises(BackendError, match=r"cannot start its builder: CUDA init.* error: 35"):
        build_plans(own_bundle, TENSORRT)
    assert not (own_bundle / ENGINES).exists()


OUT_OF_MEMORY = "Requested amount of GPU memory (17179869184 bytes) could not be allocated."


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ([], "cannot build full: it gave no reason"),
        ([(Severity.ERROR, "no\nimplementation")], "cannot build full: no implementation"),
        (
            [(Severity.WARNING, OUT_OF_MEMORY), (Severity.ERROR, "Error Code 10: no tactic")],
            r"ran out of memory while it built full \(Error Code 10: no tactic\): .* --max-batch",
        ),
        (
            [(Severity.ERROR, f"{n}: Error Code 2: OutOfMemory") for n in range(9)],
            r"ran out of memory .*\(0: Error .*; 7: Error .*; 8: Error .*\): free the GPU",
        ),
    ],
)
def test_a_failed_build_says_why_and_keeps_the_log(
    here, own_bundle: Path, says: list[tuple[Severity, str]], message: str
) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    before = build_plans(own_bundle, TENSORRT)
    trt.gives, trt.says = None, [*says, (Severity.VERBOSE, "tactic 7")]
    with pytest.raises(ExportError, match=message) as error:
        build_plans(own_bundle, TENSORRT)
    log = own_bundle / ENGINES / "full.tensorrt.sm90.plan.failed.log"
    assert str(log) in str(error.value)
    assert "[VERBOSE] tactic 7\n" in log.read_text()
    bundle = Bundle.open(own_bundle)
    assert plans.read_plans(bundle) == by_name(before)
    trt.gives, trt.says, trt.mark = WHOLE, [], "newer"
    records = build_plans(own_bundle, TENSORRT)
    assert not log.exists()
    assert b"newer" in plans.read_plan(bundle, records[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gives": b""}, "cannot build full"),
        ({"refuse": "no such kernel"}, "cannot build full: no such kernel"),
        ({"types": {"logits": np.dtype("f2")}}, "logits is float16, expected float32"),
    ],
)
def test_what_came_out_is_looked_at(here, own_bundle: Path, change, message: str) -> None:
    trt = FakeBuilding()
    vars(trt).update(change)
    here(H100, trt)
    with pytest.raises(ExportError, match=message):
        build_plans(own_bundle, TENSORRT)
    assert plans.read_plans(Bundle.open(own_bundle)) == ()


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        ("fp16", "full of an fp16 bundle has no float16 product"),
        ("int8", "full of an int8 bundle has no int8 layer"),
    ],
)
def test_a_network_of_another_type_than_the_bundle_is_refused(
    own_bundle: Path, precision: str, message: str
) -> None:
    manifest = own_bundle / MANIFEST
    manifest.write_text(
        manifest.read_text().replace('"precision": "fp32"', f'"precision": "{precision}"')
    )
    with pytest.raises(ExportError, match=message):
        build_plans(own_bundle, RTX)
    assert plans.read_plans(Bundle.open(own_bundle)) == ()


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("earlier", [False, True])
def test_a_build_that_is_stopped_leaves_the_bundle_as_it_was(
    here, own_bundle: Path, earlier: bool
) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    if earlier:
        build_plans(own_bundle, TENSORRT)
    before = files(own_bundle)

    def stop_at_the_third(line: str) -> None:
        if line.startswith("building text_encoder"):
            raise KeyboardInterrupt

    trt.mark = "another"
    with pytest.raises(KeyboardInterrupt):
        build_plans(own_bundle, TENSORRT, stop_at_the_third)
    assert files(own_bundle) == before
    assert (own_bundle / ENGINES).exists() is earlier


def test_a_bundle_that_is_replaced_during_a_build_gets_no_plan_into_its_manifest(
    here, own_bundle: Path
) -> None:
    here(H100, FakeBuilding())
    manifest = own_bundle / MANIFEST

    def replace(line: str) -> None:
        if line.startswith("building text_encoder"):
            manifest.write_text(manifest.read_text().replace("2026-11-22", "2026-11-23"))

    with pytest.raises(BundleError, match="was changed while plans were built for it"):
        build_plans(own_bundle, TENSORRT, replace)
    assert Bundle.open(own_bundle).manifest.plans == {}


def test_a_manifest_that_cannot_be_written_lists_nothing(
    here, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(H100, FakeBuilding())
    make = tempfile.mkstemp

    def no_room(*, prefix: str, **options: Any) -> tuple[int, str]:
        if MANIFEST in prefix:
            raise OSError("no space left on device")
        return make(prefix=prefix, **options)

    monkeypatch.setattr(tempfile, "mkstemp", no_room)
    before = (own_bundle / MANIFEST).read_bytes()
    with pytest.raises(ExportError, match="cannot be written: no space left"):
        build_plans(own_bundle, TENSORRT)
    assert (own_bundle / MANIFEST).read_bytes() == before
    monkeypatch.undo()


def test_what_a_killed_build_left_is_cleared(here, own_bundle: Path) -> None:
    here(H100, FakeBuilding())
    leftover = own_bundle / ENGINES / ".0badcafe.partial"
    leftover.mkdir(parents=True)
    (leftover / "full.tensorrt.sm90.plan").write_bytes(b"half a pl")
    assert plans.read_plans(Bundle.open(own_bundle)) == ()
    build_plans(own_bundle, TENSORRT)
    assert not leftover.exists()


def test_two_builds_in_one_bundle_are_kept_apart(here, own_bundle: Path) -> None:
    here(H100, FakeBuilding())

    def build_inside(line: str) -> None:
        if line.startswith("building full"):
            build_plans(own_bundle, TENSORRT)

    with pytest.raises(ExportError, match="another cris-export builds plans in"):
        build_plans(own_bundle, TENSORRT, build_inside)


def test_a_folder_that_cannot_be_written_is_named(here, own_bundle: Path) -> None:
    here(H100, FakeBuilding())
    (own_bundle / ENGINES).write_text("a file in the way")
    with pytest.raises(ExportError, match=r"engines cannot be written: .*File exists"):
        build_plans(own_bundle, TENSORRT)


def test_a_damaged_bundle_is_refused_before_anything_is_built(here, own_bundle: Path) -> None:
    trt = FakeBuilding()
    here(H100, trt)
    (own_bundle / "full.onnx").unlink()
    with pytest.raises(BundleError, match=r"full\.onnx is missing"):
        build_plans(own_bundle, TENSORRT)
    assert trt.builds == []
