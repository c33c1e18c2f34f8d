"""The gate: which backends have to pass, and what is said of the others."""

import dataclasses
import importlib.util
import os

import numpy as np
import pytest

from cris_deploy.backends import CACHE_VARIABLE, BackendName, BackendStatus, Choice, Compute, Device
from cris_deploy.bundle import Manifest
from cris_deploy.check import CheckReport, check
from cris_deploy.errors import BackendError
from cris_export import verify
from cris_export.tables import describe_parity
from tests import tiny_bundle as tiny

ORT, OPENVINO = BackendName.ONNXRUNTIME, BackendName.OPENVINO


@pytest.fixture(scope="module")
def sound(tiny_bundle) -> CheckReport:
    return check(tiny_bundle, backend="onnxruntime", device="cpu")


@dataclasses.dataclass
class Machine:
    """Backends as if they were installed; `auto` takes the first."""

    reports: dict[tuple[BackendName, Device], CheckReport | BackendError]
    runs: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def check(self, bundle, *, backend, device, min_iou, verify, step):
        self.runs.append((backend, device))
        assert os.environ[CACHE_VARIABLE] == ""  # nothing is left of an export that fails
        place = next(iter(self.reports)) if backend == "auto" else (backend, device)
        report = self.reports[place]
        if isinstance(report, BackendError):
            raise report
        choice = Choice(*place[:1], "1.0", place[1], Compute.FP32, "")
        return dataclasses.replace(report, choice=choice, min_iou=min_iou)

    def status(self, name):
        devices = tuple(device for backend, device in self.reports if backend is name)
        return BackendStatus(name, "1.0", devices, "pip install it", None)


@pytest.fixture
def gate(monkeypatch, tiny_bundle):
    def run(reports):
        machine = Machine(reports)
        monkeypatch.setattr(verify, "check", machine.check)
        monkeypatch.setattr(verify, "status", machine.status)
        return verify.prove(tiny_bundle, 0.99), machine

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


def test_the_reference_runtime_has_to_run(gate, sound):
    with pytest.raises(BackendError, match="broken"):
        gate({(OPENVINO, Device.CPU): sound, (ORT, Device.CPU): BackendError("broken")})
    assert os.environ.get(CACHE_VARIABLE) != ""


def test_summary_is_the_worst_of_what_is_required(gate, sound):
    (first, *others) = sound.samples
    worse = dataclasses.replace(
        sound,
        samples=(dataclasses.replace(first, iou=0.5, logit_error=2.0), *others),
        routes=tuple(dataclasses.replace(route, mean_iou=0.992) for route in sound.routes),
    )
    parity, _ = gate({(OPENVINO, Device.CPU): worse, (ORT, Device.CPU): sound})
    record = parity.record()
    assert (record.mean_iou, record.worst_iou, record.max_logit_error) == (0.992, 0.5, 2.0)
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
    verify.require_reference()
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(BackendError, match=r"onnxruntime.*pip install 'cris-deploy\[cpu\]'"):
        verify.require_reference()


def test_the_backends_that_are_here(own_bundle):
    parity = verify.prove(own_bundle, 0.99)
    assert parity.passed
    assert ORT in [report.choice.backend for report in parity.required]
    tiny.change_weights(own_bundle, "mix4", np.negative)
    assert not verify.prove(own_bundle, 0.99).passed
