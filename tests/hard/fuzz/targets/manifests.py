"""The text of a manifest.json: bytes as they are, or a valid one with a few values changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

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
        kind = draw.whole(0, 3)
        if kind == 0:
            Manifest.from_json(draw.rest(), "manifest.json")
        elif kind == 1:
            Manifest.from_json(damaged(text, draw), "manifest.json")
        else:
            read = Manifest.from_json(json_text(edited(document, draw)), "manifest.json")
            # What was accepted is written and read back as the same.
            again = Manifest.from_json(read.to_json(), "manifest.json")
            assert again == read or read.to_json() == again.to_json()

    return case
