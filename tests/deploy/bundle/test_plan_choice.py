"""Plans are chosen by runtime, version, GPU and graph, and refused with the reason."""

import dataclasses

import pytest

from cris_deploy.bundle import plans
from cris_deploy.bundle.plans import Host
from cris_deploy.bundle.reading import Bundle, GraphName
from cris_deploy.errors import BackendError
from tests.helpers.tiny_plans import HOST, RTX, TRT, add_plan, add_trt, listed


def test_a_bundle_without_plans_has_none_and_says_how_to_build(bundle: Bundle) -> None:
    assert plans.read_plans(bundle) == ()
    command = f"cris-export build {bundle.path} --engine tensorrt-rtx --target sm86"
    add_plan(bundle, graph=GraphName.TEXT_ENCODER)
    with pytest.raises(BackendError, match="has no tensorrt-rtx plan of full") as error:
        plans.choose_plan(bundle, GraphName.FULL, HOST)
    assert command in str(error.value)


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
    for capability, fits in (("sm79", False), ("sm80", True)):
        there = dataclasses.replace(host, compute_capability=capability)
        assert (plans.why_not(record, bundle, there) is None) is fits
    turing = dataclasses.replace(host, compute_capability="sm75", gpu="Tesla T4")
    reason = plans.why_not(record, bundle, turing)
    assert reason == "wants sm80 or newer, here is Tesla T4 (sm75)"


def test_a_plan_of_another_export_is_refused(bundle: Bundle) -> None:
    add_plan(bundle, graph_sha256="0" * 64)
    with pytest.raises(BackendError, match="was built from another export of this bundle"):
        plans.choose_plan(bundle, GraphName.FULL, HOST)
    record = add_plan(bundle, weights_sha256="0" * 64)
    assert plans.why_not(record, bundle, HOST) == "was built from another export of this bundle"
    with pytest.raises(BackendError, match="was built from another export of this bundle"):
        plans.choose_plan(bundle, GraphName.FULL, HOST)
