"""cris-bench on a GPU that is a stand-in, whose clock goes on with each kernel and copy."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cris_bench import cli
from cris_bench.contestants.cuda import PASSES
from cris_bench.contestants.ours import Ours, Way, find_ways
from cris_bench.contestants.starters import choose_place
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.record import machine as machine_facts
from cris_bench.record.file import read_record
from cris_bench.record.rows import Scope
from cris_bench.scopes.entries import Field, Shape
from cris_bench.scopes.inputs import random_image, random_tokens
from cris_bench.scopes.races import Results, race
from cris_deploy.bundle.manifest import STAGES
from cris_deploy.bundle.reading import MANIFEST
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import BackendName, Compute, Device
from tests.helpers.tiny_bundle import SIZE, VOCABULARY, WORD_LEN
from tests.stand_ins.fake_machine import Machine, machine

__all__ = ["machine"]

pytestmark = pytest.mark.filterwarnings("ignore::cris_deploy.words.tokenizer.TruncationWarning")

GPU = Place(Device.CUDA)
BACKENDS = (BackendName.ONNXRUNTIME, BackendName.TENSORRT, BackendName.TENSORRT_RTX)
MULTIPLY_ADDS = 7
KERNEL = 1e-3  # seconds, of the stand-in's clock


def ways(machine: Machine) -> list[Way]:
    bundles = {"fp32": machine.bundle}
    found, absent = find_ways(bundles, GPU, BACKENDS, {"fp32": (Compute.FP32,)}, strict=True)
    assert absent == []
    return found


def run(machine: Machine, shape: Shape) -> tuple[Results, Field]:
    """A race of all engines in scope NETWORK."""
    options = BenchOptions(scopes=(Scope.NETWORK,), warmup=1, iterations=3)
    engines = [Ours(way, None) for way in ways(machine)]
    field, results = Field(None, [], engines, SIZE, WORD_LEN, VOCABULARY), Results()
    try:
        race(field, shape, options, results, lambda: None)
    finally:
        for engine in engines:
            engine.close()
    return results, field


def test_every_backend_takes_part_with_cuda_graphs_and_without(machine: Machine) -> None:
    assert [way.name for way in ways(machine)] == [
        f"{backend} fp32{graphs}" for backend in BACKENDS for graphs in ("", ", no graphs")
    ]
    assert {str(way.identity.place) for way in ways(machine)} == {"cuda"}


@pytest.mark.parametrize("shape", [Shape(1, 1), Shape(4, 1), Shape(1, 8)], ids=str)
def test_a_stage_is_timed_on_the_devices_clock(machine: Machine, shape: Shape) -> None:
    results, field = run(machine, shape)
    assert field.absent == []
    assert len(results.rows) == 2 * len(BACKENDS)
    medians = {
        (name, stage): seconds
        for (name, raced), stages in results.stages.items()
        for stage, seconds in stages.items()
        if raced == shape
    }
    assert set(medians) == {(row.name, stage) for row in results.rows for stage in STAGES}
    for row in results.rows:
        assert (row.batch, row.expressions) == (shape.batch, shape.expressions)
        image, text, decoder = (medians[row.name, stage] for stage in STAGES)
        assert image == pytest.approx(KERNEL)
        assert text == pytest.approx(KERNEL)
        assert decoder > KERNEL  # what it is given is copied into its buffers
        # A pass is its three stages; it is timed as the mean of many.
        assert row.seconds == pytest.approx([image + text + decoder] * 3)
    machine.check()


def test_passes_are_queued_one_behind_the_other(machine: Machine) -> None:
    engine = Ours(ways(machine)[1], None)
    assert engine.identity.name == "onnxruntime fp32, no graphs"
    bound = engine.bind(random_image(1, SIZE), random_tokens(1, WORD_LEN, VOCABULARY))
    bound.logits()
    runs = [session.runs for session in machine.onnxruntime.sessions]
    before = len(machine.cuda.calls)
    bound.run()
    waits = {"cuEventSynchronize", "cuStreamSynchronize", "cuEventQuery", "cuCtxSynchronize"}
    assert [name in waits for name in machine.cuda.calls[before:]].count(True) == 1
    more = [s.runs - r for s, r in zip(machine.onnxruntime.sessions, runs, strict=True)]
    assert more == [PASSES + 1] * len(STAGES)  # and the one that is taken apart
    engine.close()


def test_the_logits_are_those_of_the_cpu(machine: Machine) -> None:
    image = random_image(2, SIZE)
    tokens = random_tokens(2, WORD_LEN, VOCABULARY)
    place = Place(Device.CPU)
    cpu = Ours(Way("fp32", machine.bundle, BackendName.ONNXRUNTIME, place, Compute.FP32), 1)
    expected = cpu.bind(image, tokens).logits()
    cpu.close()
    for way in ways(machine):
        engine = Ours(way, None)
        np.testing.assert_allclose(engine.bind(image, tokens).logits(), expected, atol=1e-4)
        engine.close()


def test_a_shape_that_no_plan_takes_is_said_and_the_others_go_on(machine: Machine) -> None:
    results, field = run(machine, Shape(16, 1))
    assert [row.name for row in results.rows] == [
        "onnxruntime fp32",
        "onnxruntime fp32, no graphs",
    ]
    absent = {entry.name: entry.install for entry in field.absent}
    assert len(absent) == 4
    assert "no profile for image (16," in absent["tensorrt fp32, 16 images x 1 expressions"]


def test_from_the_command_to_the_record(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(uuid="b"))
    manifest = json.loads((machine.bundle / MANIFEST).read_text())
    for share in manifest["types"].values():
        share["multiply_adds"] = {"float32": MULTIPLY_ADDS}
    (machine.bundle / MANIFEST).write_text(json.dumps(manifest))
    scopes = "network,end_to_end,further_expression"
    flags = ["--bundle", str(machine.bundle), "--device", "cuda", "--scopes", scopes, "--quick"]
    flags += ["--iterations", "2", "--batch", "1,4", "--expressions", "1,8", "--clients", "2"]
    path = tmp_path / "gpu.json"
    assert cli.main([*flags, "--image-size", "90x60", "-o", str(path)]) == 0
    record = read_record(path)
    names = {way.name for way in ways(machine)}
    assert {(row.scope, row.batch, row.expressions) for row in record.rows} == {
        *((Scope.NETWORK, batch, count) for batch, count in ((1, 1), (4, 1), (1, 8))),
        *((Scope.END_TO_END, 1, 1), (Scope.END_TO_END, 1, 8), (Scope.EXPRESSION, 1, 1)),
    }
    assert {row.name for row in record.rows} == {entry.name for entry in record.clients} == names
    assert {row.device for row in record.rows} == {"cuda"}
    profiles = {(e.name, e.stage, e.batch, e.expressions): e.operations for e in record.work}
    rows = {(1, 1): (1, 1, 1), (4, 1): (4, 4, 4), (1, 8): (1, 8, 8)}  # of the stages
    assert profiles == {
        (name, stage, batch, count): 2 * MULTIPLY_ADDS * number
        for name in names
        for (batch, count), numbers in rows.items()
        for stage, number in zip(STAGES, numbers, strict=True)
    }
    machine.check()


@pytest.mark.parametrize(
    ("text", "place"),
    [("auto", None), ("cpu", Place(Device.CPU)), ("cuda", GPU), ("cuda:1", Place(Device.CUDA, 1))],
)
def test_devices(text: str, place: Place | None) -> None:
    assert Place.parse(BenchOptions(device=text).device) == place
    if place is not None:
        assert str(place) == text


def test_a_gpu_that_is_not_there(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert choose_place(BenchOptions(device="cuda:0")) == GPU
    with pytest.raises(BackendError, match="cuda:7: one GPU is here"):
        choose_place(BenchOptions(device="cuda:7"))
    with pytest.raises(InputError, match="--device is 'cuda:-1'"):
        BenchOptions(device="cuda:-1")


def test_the_record_names_the_gpu_that_was_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\n"
        '[ "$2" = GPU-b ] && echo "Second, 580.1, 1980 MHz, 2619 MHz, 700.00 W" && exit\n'
        'echo "First, 580.1, 1410 MHz, 1215 MHz, 300.00 W"\n'
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert machine_facts.describe().gpu == (
        "First, driver 580.1, up to 1410 MHz, memory 1215 MHz, at most 300.00 W"
    )
    found = machine_facts.describe("GPU-b").gpu
    assert found is not None
    assert found.startswith("Second, driver 580.1")
