"""The plans that a bundle's manifest lists: those that were built for it, by their hashes."""

import hashlib
import json
from collections.abc import Iterable

from cris_deploy import documents
from cris_deploy.bundle.manifest import PlanFile
from cris_deploy.bundle.plans.record import PlanRecord
from cris_deploy.bundle.plans.sidecars import folder
from cris_deploy.bundle.reading import MANIFEST, Bundle
from cris_deploy.errors import BundleError
from cris_deploy.files import write_atomically


def list_plans(bundle: Bundle, records: Iterable[PlanRecord]) -> None:
    """Write plans that were built into the manifest's listing, whole or not at all.

    Listed is what was built, not what lies there. Raises BundleError if the bundle's manifest is
    not the one that was opened, OSError if it cannot be written.
    """
    path = bundle.path / MANIFEST
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() != bundle.manifest_sha256:
        raise BundleError(
            f"bundle {bundle.path} was changed while plans were built for it: build them again"
        )
    document = json.loads(text)
    listed = {
        name: plan
        for name, plan in (document.get("plans") or {}).items()
        if (folder(bundle) / name).exists()
    }
    for record in records:
        sidecar = hashlib.sha256(record.to_json().encode()).hexdigest()
        listed[record.file] = PlanFile(record.plan_sha256, record.plan_bytes, sidecar)
    document["plans"] = listed
    write_atomically(path, documents.to_json(document).encode())


def why_not_listed(record: PlanRecord, sidecar: str, bundle: Bundle) -> str | None:
    """Say why a plan is not one that the manifest lists, as the end of a sentence about it.

    sidecar: SHA-256 of its sidecar.
    """
    listed = bundle.manifest.plans.get(record.file)
    if listed is None:
        return f"is not listed in {MANIFEST}, and a plan is code"
    if listed != PlanFile(record.plan_sha256, record.plan_bytes, sidecar):
        return f"is not the one that {MANIFEST} lists, and a plan is code"
    return None
