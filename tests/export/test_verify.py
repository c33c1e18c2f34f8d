"""The gate: which backends have to pass, and what is said of the others."""

import dataclasses
import importlib.util
import os

import numpy as np
import pytest

from cris_deploy.bundle.manifest import Precision
from cris_deploy.bundle.reading import Manifest
from cris_deploy.errors import BackendError, InputError
from cris_deploy.execution.backends import (
    CACHE_VARIABLE,
    BackendName,
    BackendStatus,
    Choice,
    Compute,
    Device,
)
from cris_deploy.proof.check import CheckReport, check
from cris_deploy.proof.gate import logit_budgets
from cris_export.proof import verify
from cris_export.tables import describe_parity
from tests.helpers import tiny_bundle as tiny

ORT, OPENVINO = BackendName.ONNXRUNTIME, BackendName.OPENVINO


@pytest.fixture(scope="module")
def sound(tiny_bundle) -> CheckReport:
    return check(tiny_bundle, backend="onnxruntime", device="cpu")


def fits(asked: str, name: str) -> bool:
    return asked in ("auto", name)


@dataclasses.dataclass
class Machine:
    """Backends as if they were installed; `auto` takes the first."""

    reports: dict[tuple[BackendName, Device], CheckReport | Exception]
    runs: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def check(self, bundle, *, backend, device, precision, min_iou, max_logit_error, verify, step):
        self.runs.append((backend, device))
        assert os.environ[CACHE_VARIABLE] == ""  # nothing is left of an export that fails
        place = next((b, d) for b, d in self.reports if fits(backend, b) and fits(device, d))
        report = self.reports[place]
        if isinstance(report, Exception):
            raise report
        compute = Compute.FP32 if precision == "auto" else Compute(precision)
        choice = Choice(place[0], "1.0", place[1], compute, "")
        return dataclasses.replace(report, choice=choice, min_iou=min_iou)

    def status(self, name):
        devices = tuple(device for backend, device in self.reports if backend is name)
        return BackendStatus(name, "1.0", devices, "pip install it", None)


@pytest.fixture
def gate(monkeypatch, tiny_bundle):
    def run(reports, *asked):
        machine = Machine(reports)
        monkeypatch.setattr(verify, "check", machine.check)
        monkeypatch.setattr(verify, "status", machine.status)
        return verify.prove(tiny_bundle, 0.99, asked=verify.Asked(*asked)), machine

    return run


@pytest.fixture(scope="module")
def failed(sound) -> CheckReport:
    return dataclasses.replace(sound, problem="the masks differ")


def test_where_auto_takes_the_reference_it_runs_once(gate, sound):
    parity, machine = gate({(ORT, Device.CPU): sound})
    assert parity.passed
    assert machine.runs == [("auto", "auto")]
    assert [proof.required for proof in parity.record().proofs] == [True]


def test_what_auto_takes_has_to_pass(gate, sound, failed):
    parity, _ = gate({(OPENVINO, Device.CPU): failed, (ORT, Device.CPU): sound})
    assert not parity.passed
    assert [report.choice.backend for report in parity.failures] == [OPENVINO]


def test_the_reference_runtime_has_to_pass(gate, sound, failed):
    parity, _ = gate({(OPENVINO, Device.CPU): sound, (ORT, Device.CPU): failed})
    assert not parity.passed
    assert [report.choice.backend for report in parity.failures] == [ORT]


def test_what_is_merely_installed_is_a_warning_and_is_recorded(gate, sound, failed):
    parity, machine = gate({(ORT, Device.CPU): sound, (OPENVINO, Device.CPU): failed})
    assert parity.passed
    assert machine.runs == [("auto", "auto"), (OPENVINO, Device.CPU)]
    proofs = {proof.backend: proof for proof in parity.record().proofs}
    assert proofs["onnxruntime"].required
    assert not proofs["openvino"].required
    assert proofs["openvino"].problem == "the masks differ"
    assert "warning: the masks differ" in describe_parity(parity)


def test_what_cannot_run_here_is_said(gate, sound):
    missing = BackendError("no driver")
    parity, _ = gate({(ORT, Device.CPU): sound, (ORT, Device.CUDA): missing})
    assert parity.passed
    assert parity.unproved == ("onnxruntime on cuda: no driver",)
    assert "not proved: onnxruntime on cuda: no driver" in describe_parity(parity)


@pytest.mark.parametrize("fault", [BackendError("broken"), RuntimeError("broken")])
def test_the_reference_runtime_has_to_run(gate, sound, fault):
    with pytest.raises(BackendError, match="broken"):
        gate({(OPENVINO, Device.CPU): sound, (ORT, Device.CPU): fault})
    with pytest.raises(BackendError, match="broken"):
        gate({(OPENVINO, Device.CPU): sound, (ORT, Device.CPU): fault}, "openvino", "cpu")
    assert os.environ.get(CACHE_VARIABLE) != ""


@pytest.mark.parametrize(
    "fault",
    [BackendError("the GPU is lost"), RuntimeError("the\nGPU is lost"), OSError("the GPU is lost")],
)
def test_a_fault_of_what_nobody_asked_for_stops_nothing(gate, sound, fault):
    """Not even where auto takes it: it is said, and the others prove the bundle."""
    reports = {(ORT, Device.CUDA): fault, (OPENVINO, Device.CPU): sound, (ORT, Device.CPU): sound}
    parity, machine = gate(reports)
    assert parity.passed
    assert [(r.choice.backend, r.choice.device) for r in parity.reports] == [
        (ORT, Device.CPU),
        (OPENVINO, Device.CPU),
    ]
    assert machine.runs[0] == ("auto", "auto")
    assert parity.unproved == (
        "what auto takes here: the GPU is lost",
        "onnxruntime on cuda: the GPU is lost",
    )
    assert parity.record().unproved == parity.unproved
    assert "not proved: onnxruntime on cuda: the GPU is lost" in describe_parity(parity)


def test_a_backend_that_does_not_even_load_stops_nothing(gate, sound, monkeypatch):
    def status(name):
        if name is OPENVINO:
            raise ImportError("libtbb.so is missing")
        devices = (Device.CPU,) if name is ORT else ()
        problem = "no CUDA here" if name is BackendName.TENSORRT else None
        return BackendStatus(name, "1.0", devices, "pip install it", problem)

    monkeypatch.setattr(Machine, "status", lambda _, name: status(name))
    parity, _ = gate({(ORT, Device.CPU): sound})
    assert parity.passed
    assert parity.unproved == ("tensorrt: no CUDA here", "openvino: libtbb.so is missing")


@pytest.mark.parametrize(
    "fault", [BackendError("the GPU is lost"), RuntimeError("the\nGPU is lost")]
)
@pytest.mark.parametrize("asked", [("onnxruntime", "cuda"), ("auto", "cuda")])
def test_a_fault_of_what_was_asked_for_stops_the_export(gate, sound, fault, asked):
    reports = {(OPENVINO, Device.CPU): sound, (ORT, Device.CPU): sound, (ORT, Device.CUDA): fault}
    with pytest.raises(BackendError, match="the GPU is lost"):
        gate(reports, *asked)


def test_what_is_asked_for_proves_it_beside_the_reference_and_nothing_else_does(
    gate, sound, failed
):
    reports = {
        (ORT, Device.CUDA): RuntimeError("the GPU is lost"),
        (OPENVINO, Device.CPU): sound,
        (ORT, Device.CPU): sound,
    }
    for asked in (("auto", "cpu"), ("openvino",), ("openvino", "cpu", "bf16")):
        parity, machine = gate(reports, *asked)
        assert parity.passed
        assert [report.choice.backend for report in parity.required] == [ORT, OPENVINO]
        assert (parity.others, parity.unproved) == ((), ())
        assert len(machine.runs) == 2
    assert [report.choice.compute for report in parity.required] == [Compute.FP32, Compute.BF16]
    parity, machine = gate(reports, "onnxruntime", "cpu")
    assert machine.runs == [("onnxruntime", "cpu")]  # the reference itself: once
    assert parity.passed
    reports[OPENVINO, Device.CPU] = failed
    assert not gate(reports, "openvino")[0].passed
    assert gate(reports, "onnxruntime", "cpu")[0].passed


def test_what_cannot_be_asked_for_is_refused_before_the_work(monkeypatch):
    for names, said in (
        (("abacus",), "backend is 'abacus'"),
        (("auto", "npu"), "device is 'npu'"),
        (("auto", "auto", "fp8"), "precision is 'fp8'"),
    ):
        with pytest.raises(InputError, match=said):
            verify.Asked(*names)

    def status(name):
        devices = (Device.CPU,) if name is ORT else ()
        return BackendStatus(name, "1.0", devices, f"pip install {name}", None)

    monkeypatch.setattr(verify, "status", status)
    for names in ((), ("onnxruntime",), ("auto", "cpu"), ("auto", "auto", "bf16")):
        verify.require(verify.Asked(*names))
    with pytest.raises(BackendError, match=r"--backend openvino.* pip install openvino"):
        verify.require(verify.Asked("openvino"))
    with pytest.raises(BackendError, match=r"--device cuda.* onnxruntime computes on cpu"):
        verify.require(verify.Asked("auto", "cuda"))


def test_summary_is_the_worst_of_what_is_required(gate, sound):
    (first, *others) = sound.samples
    errors = {"max_logit_error": 2.0, "worst_relative_error": 0.5, "mean_relative_error": 0.25}
    worse = dataclasses.replace(
        sound,
        samples=(dataclasses.replace(first, iou=0.5, logit_error=2.0), *others),
        routes=tuple(
            dataclasses.replace(route, mean_iou=0.992, **errors) for route in sound.routes
        ),
    )
    parity, _ = gate({(OPENVINO, Device.CPU): worse, (ORT, Device.CPU): sound})
    record = parity.record()
    assert (record.mean_iou, record.worst_iou, record.max_logit_error) == (0.992, 0.5, 2.0)
    assert (record.worst_relative_error, record.mean_relative_error) == (0.5, 0.25)
    assert record.visible_share == sound.visible_share
    assert record.logit_budgets == logit_budgets(Precision.FP32)
    parity, _ = gate({(ORT, Device.CPU): sound, (OPENVINO, Device.CPU): worse})
    assert parity.record().mean_iou == 1.0


def test_record_can_be_read_again(gate, sound, tiny_bundle):
    nan = dataclasses.replace(
        sound,
        problem="NaN",
        routes=tuple(dataclasses.replace(route, max_logit_error=None) for route in sound.routes),
        stages=tuple(dataclasses.replace(stage, relative_error=None) for stage in sound.stages),
    )
    parity, _ = gate({(ORT, Device.CPU): sound, (OPENVINO, Device.CPU): nan})
    manifest = dataclasses.replace(tiny.manifest({}), parity=parity.record())
    document = Manifest.from_json((tiny_bundle / "manifest.json").read_text(), "m")
    document = dataclasses.replace(document, parity=manifest.parity)
    assert Manifest.from_json(document.to_json(), "m") == document


def test_a_missing_reference_runtime_is_said_at_once(monkeypatch):
    verify.require(verify.NOTHING_ASKED)
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(BackendError, match=r"onnxruntime.*pip install 'cris-deploy\[cpu\]'"):
        verify.require(verify.NOTHING_ASKED)


def test_the_backends_that_are_here(own_bundle):
    parity = verify.prove(own_bundle, 0.99)
    assert parity.passed
    assert ORT in [report.choice.backend for report in parity.required]
    tiny.change_weights(own_bundle, "mix4", np.negative)
    assert not verify.prove(own_bundle, 0.99).passed
