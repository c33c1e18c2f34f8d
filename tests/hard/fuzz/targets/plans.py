"""Sidecars of plans beside a bundle, and whether a plan fits: the text of one is anything."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cris_deploy.bundle import plans
from cris_deploy.bundle.contents import TOKENIZER, WEIGHTS, file_state
from cris_deploy.bundle.manifest import GraphName, Manifest
from cris_deploy.bundle.plans import Host, RuntimeName
from cris_deploy.bundle.reading import Bundle
from tests.hard.fuzz.draw import Draw, damaged, edited, json_text

READER: Final = (
    "cris_deploy.bundle.plans.record",
    "cris_deploy.bundle.plans.sidecars",
    "cris_deploy.bundle.plans.choice",
)
OTHERS: Final = {
    "cris_deploy.bundle.plans.sidecars:write_sidecar": "it writes",
    "cris_deploy.bundle.plans.record:PlanRecord.to_json": "it writes",
    "cris_deploy.bundle.plans.record:plan_name": "it writes",
}
DATA: Final = Path(__file__).parents[3] / "data/format1"
PLAN: Final = b"not a real plan"
HOSTS: Final = (
    Host(RuntimeName.TENSORRT_RTX, "1.7.1.116", "sm86", "NVIDIA GeForce RTX 3090"),
    Host(RuntimeName.TENSORRT_RTX, "1.8.0.1", "sm75", "NVIDIA T4"),
    Host(RuntimeName.TENSORRT, "10.13.2.6", "sm90", "NVIDIA H100 80GB HBM3"),
    Host(RuntimeName.TENSORRT, "11.0.0", "sm100", "NVIDIA B200"),
)


def make(folder: Path) -> Callable[[bytes], None]:
    manifest = Manifest.from_json((DATA / "manifest.json").read_bytes(), "manifest.json")
    names = (TOKENIZER, WEIGHTS, manifest.graphs[GraphName.FULL].file)
    for name in names:
        (folder / name).write_bytes(b"as it was opened")
    states = {name: file_state((folder / name).stat()) for name in names}
    bundle = Bundle(folder, manifest, "0" * 64, signed=False, _states=states)
    place = plans.folder(bundle)
    place.mkdir(exist_ok=True)
    document = json.loads((DATA / "plan.json").read_text())
    document["plan_sha256"] = hashlib.sha256(PLAN).hexdigest()
    document["plan_bytes"] = len(PLAN)
    hashes = plans.graph_hashes(bundle, GraphName.FULL)
    document["graph_sha256"], document["weights_sha256"] = hashes
    name = document["file"]
    text = json.dumps(document).encode()

    def case(data: bytes) -> None:
        draw = Draw(data)
        host, trusted = draw.choose(HOSTS), draw.flag()
        kind = draw.whole(0, 7)
        if kind == 0:
            written = draw.rest()
        elif kind == 1:
            written = damaged(text, draw)
        elif kind == 2:  # what differs from host to host, all of it valid
            written = json_text({**document, **_other(draw)})
        else:
            written = json_text(edited(document, draw))
        _write(place / (name + plans.SIDECAR), written, draw)
        (place / name).write_bytes(PLAN)
        for record in plans.read_plans(bundle):
            assert record.file == name
            _change(place / name, draw)
            assert plans.read_plan(bundle, record) == PLAN
            record.profile_for({"image": (draw.whole(0, 20), 3, 64, 64)})
        plans.choose_plan(bundle, GraphName.FULL, host, trust_plans=trusted)

    return case


def _other(draw: Draw) -> dict[str, Any]:
    return {
        "runtime": draw.choose(tuple(RuntimeName)),
        "version": draw.choose(("1.7.1.116", "1.6", "10.13.2.6", "10.1", "11.0.0", "", "x")),
        "targets": draw.choose((["sm86"], ["sm90"], ["sm75", "sm100"])),
        draw.choose(("graph_sha256", "weights_sha256", "gpu", "gpu")): draw.choose(
            ("0" * 64, None)
        ),
        "gpu": draw.choose((None, "NVIDIA H100 80GB HBM3", "another")),
        "version_compatible": draw.flag(),
        "hardware_compatible": draw.flag(),
    }


def _change(plan: Path, draw: Draw) -> None:
    """Now and then the plan is gone or another since its sidecar was read."""
    kind = draw.whole(0, 15)
    if kind == 1:
        plan.unlink()
    elif kind == 2:
        plan.write_bytes(draw.choose((PLAN[::-1], b"", PLAN + b"x")))


def _write(path: Path, content: bytes, draw: Draw) -> None:
    """Now and then no file, a folder, or one that is too long."""
    kind = draw.whole(0, 60)
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        path.write_bytes(content.ljust(2**20 + 1))
    elif kind != 3:
        path.write_bytes(content)
