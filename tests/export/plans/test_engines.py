"""Which engine is built, and what `tensorrt` is given: with a fake of it, since it needs a GPU."""

import dataclasses
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import Host, PlanRecord, RuntimeName, listing
from cris_deploy.bundle.reading import ENGINES, MANIFEST, Bundle, GraphName
from cris_deploy.errors import BackendError, BundleError, InputError
from cris_deploy.machine.gpu import Gpu, Survey
from cris_export.errors import ExportError
from cris_export.plans.build import build_plans
from cris_export.plans.choose import choose_builder
from cris_export.plans.options import PlanKind, PlanOptions
from cris_export.plans.watch import interruptible
from tests.stand_ins.fake_tensorrt_builder import BuilderFlag, DataType, FakeTensorRT, Severity

H100 = Gpu("NVIDIA H100 80GB HBM3", "sm90", 80 << 30)
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", "sm86", 24 << 30)
TENSORRT = PlanOptions(PlanKind.TENSORRT)


class FakeRtx(FakeTensorRT):
    """Only what is asked before a build."""

    def __init__(self) -> None:
        super().__init__("1.7.1.116")
        names = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
        self.ComputeCapability = type(
            "ComputeCapability", (), {"__members__": dict.fromkeys(names)}
        )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say which GPU and which modules this machine has."""

    def set_up(
        gpu: Gpu | None, tensorrt: FakeTensorRT | None = None, rtx: FakeTensorRT | None = None
    ) -> None:
        survey = Survey((gpu,), None) if gpu else Survey((), "there is no NVIDIA driver")
        monkeypatch.setattr("cris_export.plans.choose.survey_gpus", lambda: survey)
        # None in sys.modules makes an import fail as if the package were not installed.
        monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)

    return set_up


def by_name(records: tuple[PlanRecord, ...]) -> tuple[PlanRecord, ...]:
    return tuple(sorted(records, key=lambda record: record.file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("8.6",)}, "--target '8.6': give compute capabilities such as sm86"),
        ({"targets": ("sm86", "sm86")}, "--target names sm86 twice"),
        ({"max_batch": 0}, "--max-batch must be at least 1, not 0"),
        ({"max_expressions": -1}, "--max-expressions must be at least 1"),
        ({"workspace_mib": 0}, "--workspace must be at least 1"),
        (
            {"kind": PlanKind.NONE, "targets": ("sm86",), "version_compatible": True},
            "--target, --version-compatible: --engine none builds nothing",
        ),
    ],
)
def test_options_that_cannot_be_used_name_the_flag(options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PlanOptions(**options)


@pytest.mark.parametrize(
    ("gpu", "installed", "targets", "chosen"),
    [
        (H100, "both", (), ("tensorrt", ("sm90",))),
        (H100, "both", ("sm90",), ("tensorrt", ("sm90",))),
        (H100, "both", ("sm120", "sm86"), ("tensorrt-rtx", ("sm86", "sm120"))),
        (RTX_3090, "both", (), ("tensorrt", ("sm86",))),
        (RTX_3090, "rtx", (), ("tensorrt-rtx", ("sm86",))),
        (RTX_3090, "rtx", ("sm86",), ("tensorrt-rtx", ("sm86",))),
        (None, "both", ("sm89",), ("tensorrt-rtx", ("sm89",))),
    ],
)
def test_auto_takes_the_engine_for_the_gpu_or_for_the_targets(
    here, gpu: Gpu | None, installed: str, targets: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    here(gpu, FakeTensorRT() if installed == "both" else None, FakeRtx())
    choice = choose_builder(PlanOptions(targets=targets), pytest.fail)
    assert choice is not None
    assert (choice.runtime, choice.targets) == chosen
    assert choice.gpu == (gpu if choice.runtime is RuntimeName.TENSORRT else None)
    assert choice.runs_here == (gpu is not None and gpu.compute_capability in choice.targets)


@pytest.mark.parametrize(
    ("gpu", "reason"),
    [
        (None, ["there is no NVIDIA driver", "no --target names GPUs"]),
        (H100, ["NVIDIA H100", "cris-deploy[tensorrt]", "builds for sm75, sm80"]),
    ],
)
def test_auto_that_builds_nothing_says_why(here, gpu: Gpu | None, reason: list[str]) -> None:
    here(gpu, None, FakeRtx())
    said: list[str] = []
    assert choose_builder(PlanOptions(), said.append) is None
    assert len(said) == 1
    assert said[0].startswith("no plan is built")
    assert all(part in said[0] for part in reason)


def test_none_builds_nothing_and_asks_nothing(here, own_bundle: Path) -> None:
    assert build_plans(own_bundle, PlanOptions(PlanKind.NONE), pytest.fail) == ()
    assert not (own_bundle / ENGINES).exists()


@pytest.mark.parametrize(
    ("gpu", "tensorrt", "options", "error", "message"),
    [
        (H100, None, {}, BackendError, r"--engine tensorrt: .* run pip install 'cris-deploy\["),
        (H100, "10.3.0", {}, BackendError, "version 10.3.0 is installed, at least 10.13"),
        (None, "11.0.0", {}, BackendError, "needs the GPU it builds for, and there is no NVIDIA"),
        (H100, "11.0.0", {"targets": ("sm86",)}, InputError, r"builds for the GPU at hand, .*sm90"),
        (
            Gpu("Tesla T4", "sm75", 1),
            "11.0.0",
            {"hardware_compatible": True},
            InputError,
            r"--hardware-compatible starts with Ampere .* Tesla T4 \(sm75\)",
        ),
    ],
)
def test_tensorrt_by_name_that_cannot_be_had(here, gpu, tensorrt, options, error, message) -> None:
    here(gpu, tensorrt and FakeTensorRT(tensorrt), FakeRtx())
    with pytest.raises(error, match=message):
        choose_builder(dataclasses.replace(TENSORRT, **options), pytest.fail)


@pytest.mark.parametrize(
    ("gpu", "rtx", "options", "error", "message"),
    [
        (None, False, {"targets": ("sm86",)}, BackendError, r"cris-deploy\[tensorrt-rtx\]"),
        (None, True, {}, InputError, "--target, some of sm75, sm80, sm86, sm89, sm120, sm121"),
        (None, True, {"targets": ("sm86", "sm90")}, InputError, "--target sm90: .* for sm75, sm80"),
        (H100, True, {}, BackendError, r"here is NVIDIA H100 .*: take --engine tensorrt"),
        (None, True, {"timing_cache": Path("x")}, InputError, "--timing-cache: only --engine tens"),
        (
            None,
            True,
            {"version_compatible": True, "hardware_compatible": True},
            InputError,
            "--version-compatible, --hardware-compatible: only --engine tensorrt has that",
        ),
    ],
)
def test_rtx_by_name_that_cannot_be_had(here, gpu, rtx, options, error, message) -> None:
    here(gpu, None, FakeRtx() if rtx else None)
    with pytest.raises(error, match=message):
        choose_builder(PlanOptions(PlanKind.TENSORRT_RTX, **options), pytest.fail)


def test_auto_with_flags_of_tensorrt_does_not_take_another_engine(here) -> None:
    options = PlanOptions(version_compatible=True)
    here(RTX_3090, None, FakeRtx())
    with pytest.raises(BackendError, match="--engine tensorrt: it cannot be imported"):
        choose_builder(options, pytest.fail)
    here(None, FakeTensorRT(), FakeRtx())
    with pytest.raises(BackendError, match=r"--version-compatible: .* there is no NVIDIA driver"):
        choose_builder(options, pytest.fail)


def test_tensorrt_is_given_typed_networks_and_nothing_that_changes_them(
    here, own_bundle: Path
) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    said: list[str] = []
    records = build_plans(own_bundle, TENSORRT, said.append)
    assert [record.graph for record in records] == list(GraphName)
    assert [build.network.flags for build in trt.builds] == [1 << 1] * 4
    assert all(build.config.flags == set() for build in trt.builds)  # TF32 is on by default
    assert all(build.config.pools == {} for build in trt.builds)
    assert trt.host_code_allowed == [False] * 4
    bundle = Bundle.open(own_bundle)
    assert plans.read_plans(bundle) == by_name(records)
    assert bundle.manifest.plans.keys() == {record.file for record in records}
    for record in records:
        assert record.targets == ("sm90",)
        assert (record.gpu, record.version) == (H100.name, "10.13.2.6")
        assert plans.read_plan(bundle, record) == b"a plan"
        assert record.plan_sha256 == hashlib.sha256(b"a plan").hexdigest()
        assert (record.layers, record.products) == ({"float32": 2}, {"float32": 1})
        host = Host(RuntimeName.TENSORRT, "10.13.2.6", "sm90", H100.name)
        assert plans.choose_plan(bundle, record.graph, host) == record
        log = (plans.folder(bundle) / (record.file + ".log")).read_text()
        assert '[LAYERS] {"Layers": ["fused"]}' in log
    assert any("on NVIDIA H100" in line for line in said)
    Bundle.open(own_bundle)


def test_profiles_span_images_and_expressions(here, own_bundle: Path) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    options = dataclasses.replace(TENSORRT, max_batch=4, max_expressions=16)
    records = {record.graph: record for record in build_plans(own_bundle, options)}
    first = {
        graph: [
            {name: tuple(shape[0] for shape in shapes) for name, shapes in profile.shapes.items()}
            for profile in build.config.profiles
        ]
        for graph, build in zip(records, trt.builds, strict=True)
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
    # What follows the first dimension is fixed, and the sidecar says the same.
    shapes = trt.builds[0].config.profiles[0].shapes["image"]
    assert shapes == ((1, 3, 64, 64), (1, 3, 64, 64), (4, 3, 64, 64))
    recorded = records[GraphName.FULL].profiles[0].inputs["image"]
    assert (recorded.min, recorded.opt, recorded.max) == shapes
    decoder = records[GraphName.MASK_DECODER]
    expected = [(1, 16, 0), (1, 1, 0), (4, 4, 1), (4, 5, None)]
    spec = Bundle.open(own_bundle).manifest.graphs[GraphName.MASK_DECODER]
    for images, expressions, profile in expected:
        inputs = {
            value.name: (images if value.name in scene else expressions, *value.shape[1:])
            for value in spec.inputs
        }
        assert decoder.profile_for(inputs) == profile


def test_with_one_image_at_most_the_decoder_needs_one_profile(here, own_bundle: Path) -> None:
    here(H100, FakeTensorRT())
    records = build_plans(own_bundle, dataclasses.replace(TENSORRT, max_batch=1))
    assert [len(record.profiles) for record in records] == [1, 1, 1, 1]


def test_compatible_modes_and_workspace_reach_the_builder(here, own_bundle: Path) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    options = dataclasses.replace(
        TENSORRT, version_compatible=True, hardware_compatible=True, workspace_mib=512
    )
    records = build_plans(own_bundle, options)
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    for build, record in zip(trt.builds, records, strict=True):
        assert build.config.flags == {BuilderFlag.VERSION_COMPATIBLE}
        assert build.config.hardware_compatibility_level == level
        assert build.config.pools == {trt.MemoryPoolType.WORKSPACE: 512 << 20}
        assert record.version_compatible
        assert record.hardware_compatible
    assert trt.host_code_allowed == [True] * 4  # a version-compatible plan brings its runtime


def test_timings_go_from_graph_to_graph_and_into_the_file(
    here, own_bundle: Path, tmp_path: Path
) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    path = tmp_path / "timings"
    options = dataclasses.replace(TENSORRT, timing_cache=path)
    build_plans(own_bundle, options, lambda _: None)
    assert [build.cache for build in trt.builds] == [b"cache:" + b"+" * n for n in range(4)]
    assert path.read_bytes() == b"cache:++++"
    said: list[str] = []
    build_plans(own_bundle, options, said.append)
    assert trt.builds[4].cache == b"cache:++++"
    assert path.read_bytes() == b"cache:" + b"+" * 8
    assert not any("timing cache" in line for line in said)


@pytest.mark.parametrize("content", [b"rubbish", b"cache: of an other GPU"])
def test_an_unusable_timing_cache_is_said_and_replaced(
    here, own_bundle: Path, tmp_path: Path, content: bytes
) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    path = tmp_path / "timings"
    path.write_bytes(content)
    said: list[str] = []
    build_plans(own_bundle, dataclasses.replace(TENSORRT, timing_cache=path), said.append)
    assert sum(f"timing cache {path} is damaged, or of another" in line for line in said) == 1
    assert trt.builds[0].cache == b"cache:"
    assert path.read_bytes() == b"cache:++++"


def test_a_timing_cache_that_cannot_be_written_is_refused_first(
    here, own_bundle: Path, tmp_path: Path
) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "timings", tmp_path):
        with pytest.raises(InputError, match=r"--timing-cache .* cannot be used"):
            build_plans(own_bundle, dataclasses.replace(TENSORRT, timing_cache=path))
    assert trt.builds == []


def test_a_builder_that_does_not_start_says_why(here, own_bundle: Path) -> None:
    trt = FakeTensorRT()

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
    trt = FakeTensorRT()
    here(H100, trt)
    before = build_plans(own_bundle, TENSORRT)
    trt.plan, trt.says = None, [*says, (Severity.VERBOSE, "tactic 7")]
    with pytest.raises(ExportError, match=message) as error:
        build_plans(own_bundle, TENSORRT)
    log = own_bundle / ENGINES / "full.tensorrt.sm90.plan.failed.log"
    assert str(log) in str(error.value)
    assert "[VERBOSE] tactic 7\n" in log.read_text()
    bundle = Bundle.open(own_bundle)
    assert plans.read_plans(bundle) == by_name(before)
    trt.plan, trt.says = np.frombuffer(b"newer", np.uint8), []
    records = build_plans(own_bundle, TENSORRT)
    assert not log.exists()
    assert plans.read_plan(bundle, records[0]) == b"newer"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parses": False}, "tensorrt cannot parse full.onnx: In node 7: unsupported operator"),
        ({"plan": np.zeros(0, np.uint8)}, "cannot build full"),
        ({"loads": False}, "cannot build full"),
        ({"outputs": {"logits": DataType.HALF}}, "logits is float16, expected float32"),
    ],
)
def test_what_came_out_is_looked_at(here, own_bundle: Path, change, message: str) -> None:
    trt = FakeTensorRT()
    vars(trt).update(change)
    here(H100, trt)
    with pytest.raises(ExportError, match=message):
        build_plans(own_bundle, TENSORRT)
    assert plans.read_plans(Bundle.open(own_bundle)) == ()


@pytest.mark.parametrize(
    ("precision", "products", "message"),
    [
        ("fp16", DataType.FLOAT, "full of an fp16 bundle has no float16 product"),
        ("fp16", DataType.HALF, None),
        ("int8", DataType.HALF, "full of an int8 bundle has no int8 layer"),
        ("int8", DataType.INT8, None),
    ],
)
def test_a_network_of_another_type_than_the_bundle_is_refused(
    here, own_bundle: Path, precision: str, products: DataType, message: str | None
) -> None:
    manifest = own_bundle / MANIFEST
    manifest.write_text(
        manifest.read_text().replace('"precision": "fp32"', f'"precision": "{precision}"')
    )
    trt = FakeTensorRT()
    trt.products = products
    here(H100, trt)
    if message is None:
        assert len(build_plans(own_bundle, TENSORRT)) == 4
        return
    with pytest.raises(ExportError, match=message):
        build_plans(own_bundle, TENSORRT)
    assert trt.builds == []


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("earlier", [False, True])
def test_a_build_that_is_stopped_leaves_the_bundle_as_it_was(
    here, own_bundle: Path, earlier: bool
) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    if earlier:
        build_plans(own_bundle, TENSORRT)
    before = files(own_bundle)

    def stop_at_the_third(line: str) -> None:
        if line.startswith("building text_encoder"):
            raise KeyboardInterrupt

    trt.plan = np.frombuffer(b"another plan", np.uint8)
    with pytest.raises(KeyboardInterrupt):
        build_plans(own_bundle, TENSORRT, stop_at_the_third)
    assert files(own_bundle) == before
    assert (own_bundle / ENGINES).exists() is earlier


def test_a_bundle_that_is_replaced_during_a_build_gets_no_plan_into_its_manifest(
    here, own_bundle: Path
) -> None:
    here(H100, FakeTensorRT())
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
    here(H100, FakeTensorRT())
    write = listing.write_atomically

    def no_room(path: Path, content: bytes) -> None:
        if path.name == MANIFEST:
            raise OSError("no space left on device")
        write(path, content)

    monkeypatch.setattr(listing, "write_atomically", no_room)
    before = (own_bundle / MANIFEST).read_bytes()
    with pytest.raises(ExportError, match="cannot be written: no space left"):
        build_plans(own_bundle, TENSORRT)
    assert (own_bundle / MANIFEST).read_bytes() == before
    monkeypatch.undo()


def test_what_a_killed_build_left_is_cleared(here, own_bundle: Path) -> None:
    here(H100, FakeTensorRT())
    leftover = own_bundle / ENGINES / ".0badcafe.partial"
    leftover.mkdir(parents=True)
    (leftover / "full.tensorrt.sm90.plan").write_bytes(b"half a pl")
    assert plans.read_plans(Bundle.open(own_bundle)) == ()
    build_plans(own_bundle, TENSORRT)
    assert not leftover.exists()


def test_two_builds_in_one_bundle_are_kept_apart(here, own_bundle: Path) -> None:
    here(H100, FakeTensorRT())

    def build_inside(line: str) -> None:
        if line.startswith("building full"):
            build_plans(own_bundle, TENSORRT)

    with pytest.raises(ExportError, match="another cris-export builds plans in"):
        build_plans(own_bundle, TENSORRT, build_inside)


def test_an_interrupt_stops_the_builder_at_its_next_step() -> None:
    stop = threading.Event()

    def build() -> bool:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: it wakes the thread that waits
        return stop.wait(30)

    # A job in the background of a shell is started with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interruptible(build, stop)
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.is_set()


def test_a_step_that_raises_during_a_build_is_raised_after_it(
    here, own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cris_export.plans.watch._PROGRESS_SECONDS", 0.0)
    trt = FakeTensorRT()
    here(H100, trt)
    said: list[str] = []

    def closed(line: str) -> None:
        said.append(line)
        if "Building 1/2" in line:
            raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError, match="nobody reads"):
        build_plans(own_bundle, TENSORRT, closed)
    assert said[-1] == "full: Building 1/2"


def test_a_folder_that_cannot_be_written_is_named(here, own_bundle: Path) -> None:
    here(H100, FakeTensorRT())
    (own_bundle / ENGINES).write_text("a file in the way")
    with pytest.raises(ExportError, match=r"engines cannot be written: .*File exists"):
        build_plans(own_bundle, TENSORRT)


def test_a_damaged_bundle_is_refused_before_anything_is_built(here, own_bundle: Path) -> None:
    trt = FakeTensorRT()
    here(H100, trt)
    (own_bundle / "full.onnx").unlink()
    with pytest.raises(BundleError, match=r"full\.onnx is missing"):
        build_plans(own_bundle, TENSORRT)
    assert trt.builds == []
