"""The text of a manifest.json: bytes as they are, or a valid one with a few values changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cris_deploy import documents
from cris_deploy.bundle.manifest import Manifest
from tests.hard.fuzz.draw import Draw, damaged, edited, json_text

READER: Final = ("cris_deploy.bundle.manifest", "cris_deploy.documents")
OTHERS: Final = {
    "cris_deploy.documents:to_json": "it writes",
    "cris_deploy.documents:plain": "it writes",
    "cris_deploy.documents:_native": "it writes",
    "cris_deploy.bundle.manifest:Manifest.to_json": "it writes",
    "cris_deploy.bundle.manifest:Manifest.weight_levels": "it is asked of what was read",
}
VALID: Final = Path(__file__).parents[3] / "data/format1/manifest.json"


def make(folder: Path) -> Callable[[bytes], None]:
    text = VALID.read_bytes()
    document = json.loads(text)

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 7)
        if kind < 2:
            written = draw.rest()
        elif kind == 2:
            written = damaged(text, draw)
        elif kind == 3:
            written = json_text(_large(document, draw))
        else:
            written = json_text(edited(document, draw))
        if draw.whole(0, 2000) == 1:
            written = written.ljust(2**24 + draw.whole(0, 1))
        if draw.flag():  # as documents are read of which every field has to be known
            documents.read(Manifest, written, "manifest.json", known_only=True)
        read = Manifest.from_json(written, "manifest.json")
        # What was accepted is written and read back as the same.
        assert Manifest.from_json(read.to_json(), "manifest.json") == read

    return case


def _large(document: Any, draw: Draw) -> Any:
    """Sizes that are allowed one by one, and too much together."""
    changed = json.loads(json.dumps(document))
    sides = (1, 10**4, 10**8, 2**28)
    changed["samples"][0] |= {"height": draw.choose(sides), "width": draw.choose(sides)}
    shape = [draw.choose(sides) for _ in range(draw.whole(0, 9))]
    changed["graphs"]["full"]["inputs"][0]["shape"] = shape
    return changed
