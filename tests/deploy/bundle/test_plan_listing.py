"""Plans are code: only those are taken that the manifest lists, unless the caller trusts them."""

import dataclasses
import json
from typing import Any

import pytest

from cris_deploy.bundle import plans
from cris_deploy.bundle.reading import MANIFEST, Bundle, GraphName
from cris_deploy.errors import BackendError, BundleError
from tests.helpers.tiny_plans import HOST, PLAN, add_plan, listed


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
