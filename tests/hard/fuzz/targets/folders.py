"""A user's own data: lines of JSON, and masks as pictures or run lengths."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from cris_train.data.folder import read_folder
from tests.hard.fuzz.draw import Draw, damaged, edited, json_text

READER: Final = ("cris_train.data.folder",)
LINES: Final[list[dict[str, Any]]] = [
    {"image": "a.jpg", "mask": "mask.png", "expression": "the cup"},
    {"image": "a.jpg", "mask": "mask.png", "expressions": ["a pen", "left"], "split": "val"},
    {"image": "b.jpg", "mask": {"size": [8, 10], "counts": [10, 20, 50]}, "expression": "x"},
    {"image": "b.jpg", "mask": {"size": [8, 10], "counts": ":d0d1"}, "expression": "y"},
]


def make(folder: Path) -> Callable[[bytes], None]:
    stream = io.BytesIO()
    values = np.zeros((8, 10), np.uint8)
    values[2:5, 3:7] = 1
    Image.fromarray(values).save(stream, "PNG")
    mask = stream.getvalue()
    valid = b"\n".join(map(json_text, LINES))

    def case(data: bytes) -> None:
        draw = Draw(data)
        kind = draw.whole(0, 7)
        text, picture = valid, mask
        if kind == 0:
            text = draw.rest()
        elif kind == 1:
            text = damaged(valid, draw)
        elif kind == 2:
            picture = damaged(mask, draw)
        elif kind == 3:
            picture = _other(draw)
        else:
            lines = edited(LINES, draw)
            text = b"\n".join(map(json_text, lines if isinstance(lines, list) else [lines]))
        (folder / "mask.png").write_bytes(picture)
        (folder / "train.jsonl").write_bytes(text)
        for pictures in read_folder(folder).values():
            for found in pictures:
                for item in found.objects:
                    read = found.mask(item)
                    assert read.dtype == np.bool_
                    assert read.shape == (found.height, found.width)
                    assert read.any()

    return case


def _other(draw: Draw) -> bytes:
    """A mask of another mode or size, or of another kind of file."""
    mode = draw.choose(("1", "L", "LA", "P", "PA", "RGB", "RGBA", "I", "I;16", "F", "CMYK"))
    image = Image.new(mode, draw.choose(((10, 8), (8, 10), (1, 1), (300, 200))))
    if draw.flag():
        image.paste(1, (0, 0, 1, 1)) if mode in ("L", "P", "I") else None
    stream = io.BytesIO()
    try:
        image.save(stream, draw.choose(("PNG", "TIFF", "GIF", "BMP", "WEBP", "PPM")))
    except (OSError, ValueError):  # not every format has every mode
        return draw.rest()
    return stream.getvalue()
