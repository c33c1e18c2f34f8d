"""RefCOCO's files: a pickle of references and instances.json, and the masks they describe."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from cris_train.data.refer import INSTANCES_FILE, find_faults, read_splits, refs_name
from tests.hard.fuzz.draw import Draw, damaged, edited, json_text

READER: Final = ("cris_train.data.refer", "cris_train.data.segmentation")
OTHERS: Final = {
    "cris_train.data.refer:read_mask": "the target folders reads those",
    "cris_train.data.refer:pick": "it reads nothing",
    "cris_train.data.refer:read_split": "it picks one of what was read",
}
SQUARE: Final = [[1.0, 1.0, 6.0, 1.0, 6.0, 5.0, 1.0, 5.0]]
REFERENCES: Final[list[dict[str, Any]]] = [
    {
        "ref_id": number,
        "ann_id": 10 + number,
        "image_id": 7,
        "split": split,
        "sentences": [{"sent_id": number, "sent": f"object {number}", "raw": "x", "tokens": ["x"]}],
    }
    for number, split in ((0, "train"), (1, "val"), (2, "train"))
]
INSTANCES: Final[dict[str, Any]] = {
    "images": [{"id": 7, "file_name": "a.jpg", "height": 8, "width": 10}],
    "annotations": [
        {"id": 10, "segmentation": SQUARE},
        {"id": 11, "segmentation": {"size": [8, 10], "counts": [10, 20, 50]}},
        {"id": 12, "segmentation": {"size": [8, 10], "counts": ":d0d1"}},
    ],
}
CODES: Final = (
    b"cos\nsystem\n(S'exit 1'\ntR.",
    b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    b"ccopy_reg\n_reconstructor\n.",
    b"\x80\x02}q\x00(K\x01h\x00u.",
    b"(lp0\ng0\na.",
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"]" + b"(l" * 3000 + b".",
    b"q\xff.",
    b"r\xff\xff\xff\x7f.",
    b"\x82\x01.",
    b"P7\n.",
    b"I" + b"9" * 5000 + b"\n.",
    b"F1e999\n.",
)


def make(folder: Path) -> Callable[[bytes], None]:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images/a.jpg").write_bytes(b"")
    refs, instances = folder / refs_name("unc"), folder / INSTANCES_FILE
    valid = pickle.dumps(REFERENCES, 2), json.dumps(INSTANCES).encode()
    written: list[bytes] = [b"", b""]

    def write(number: int, path: Path, content: bytes) -> None:
        if written[number] != content:
            path.write_bytes(content)
            written[number] = content

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 8)
        references, described = valid
        if kind == 0:
            references = draw.rest()
        elif kind == 1:
            protocol = draw.whole(0, 5)
            references = damaged(pickle.dumps(REFERENCES, protocol), draw)
        elif kind == 2:
            references = draw.choose(CODES) + draw.rest()
        elif kind == 3:
            described = damaged(described, draw)
        elif kind == 8:
            described = json_text(_segmented(draw))
        elif kind in (4, 5):
            described = json_text(edited(INSTANCES, draw))
        else:
            references = pickle.dumps(_linked(edited(REFERENCES, draw), draw), draw.whole(0, 5))
        write(0, refs, references)
        write(1, instances, described)
        for pictures in read_splits(folder).values():
            for picture in pictures:
                for item in picture.objects:
                    mask = picture.mask(item)
                    assert mask.dtype == np.bool_
                    assert mask.shape == (picture.height, picture.width)
        assert not find_faults(REFERENCES, INSTANCES)

    return case


def _segmented(draw: Draw) -> dict[str, Any]:
    """Pictures and masks of usual and of strange sizes, corners and runs."""
    height, width = draw.choose((*[(8, 10)] * 12, (1, 2**16), (0, 10), (2**31, 2**31)))
    side = max(height, width)
    kind = draw.whole(0, 3)
    segmentation: Any = {"size": draw.choose(([height, width], [10, 8], [8.0, 10], [8]))}
    if kind == 0:
        corners = (0, 1, side, -side, 2 * side, 2 * side + 1, 0.5, True, "1")
        count = draw.choose((6, 8, 60, 7, 4))
        segmentation = [[draw.choose(corners) for _ in range(count)]]
    elif kind == 1:
        segmentation["counts"] = [draw.whole(-1, 90) for _ in range(draw.whole(0, 4))]
    elif kind == 2:
        segmentation["counts"] = draw.take(draw.whole(0, 12)).decode("latin-1")
    else:
        runs = ("0`2", "`2", ":d0d1", ":d0d", "oooooooo", "\x00", "\u0660", "5:5", 3, [80], [0, 80])
        segmentation["counts"] = draw.choose(runs)
    described = copy.deepcopy(INSTANCES)
    described["images"][0].update(height=height, width=width)
    described["annotations"][draw.whole(0, 2)]["segmentation"] = segmentation
    return described


def _linked(references: Any, draw: Draw) -> Any:
    """Now and then a value that holds itself, or one that is small and endless to write out."""
    kind = draw.whole(0, 9)
    if kind > 1 or not isinstance(references, list) or not references:
        return references
    references = copy.copy(references)
    loop: list[Any] = []
    if kind == 0:
        loop.append(loop)
    else:
        for _ in range(60):
            loop = [loop, loop]
    place = draw.choose(("ref_id", "split", "image_id", "sentences", "ann_id", "sent"))
    entry = references[0]
    if isinstance(entry, dict):
        said = {"sent_id": 0, "sent": loop}
        more = {"sentences": [said]} if place == "sent" else {place: loop}
        references[0] = {**entry, **more}
    return references
