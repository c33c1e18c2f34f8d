"""Stand-ins for the fetched pictures: codes get shapes and colours, photographs are noise."""

import zlib
from pathlib import Path

import cv2
import numpy as np

from cris_train.synthetic.named.names import things
from cris_train.synthetic.named.sources import CUTOUTS_FOLDER, PHOTOGRAPHS, PHOTOGRAPHS_FOLDER

SIDE = 48
# BGR; some that no colour word is for.
COLOURS = (
    *((40, 30, 230), (30, 140, 250), (40, 220, 250), (60, 180, 50), (230, 110, 30)),
    *((190, 60, 140), (200, 150, 250), (20, 60, 110), (20, 20, 20), (130, 130, 130)),
    *((245, 245, 245), (140, 170, 200), (180, 190, 60)),
)


def write_pictures(cache: Path) -> Path:
    """Fill a cache folder as `sources.fetch` does, without a network; returns it."""
    (cache / CUTOUTS_FOLDER).mkdir(parents=True)
    (cache / PHOTOGRAPHS_FOLDER).mkdir()
    for thing in things():
        for code in thing.codes:
            number = zlib.crc32(code.encode())
            picture = np.zeros((SIDE, SIDE, 4), np.uint8)
            colour = (*COLOURS[number % len(COLOURS)], 255)
            axes = (10 + number // 16 % 13, 10 + number // 256 % 13)
            centre = (SIDE // 2, SIDE // 2)
            cv2.ellipse(picture, centre, axes, number % 90, 0, 360, colour, cv2.FILLED)
            cv2.imwrite(str(cache / CUTOUTS_FOLDER / f"{code}.webp"), picture)
    rng = np.random.default_rng(0)
    for photograph in PHOTOGRAPHS:
        noise = rng.integers(0, 256, (12, 16, 3), np.uint8)
        big = cv2.resize(noise, (320, 240), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(cache / PHOTOGRAPHS_FOLDER / photograph.file), big)
    return cache
