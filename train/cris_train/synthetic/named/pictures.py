"""The pictures that scenes are put together from: cut-outs of things, photographs behind them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from cris_deploy.errors import DataError
from cris_train.synthetic.named.sources import (
    CUTOUTS_FOLDER,
    PHOTOGRAPHS_FOLDER,
    Photograph,
)

KEPT_SIDE: Final = 160  # pixels of a cut-out's longer side: no thing in a scene is larger
# Where training's part of a photograph ends and that of unseen scenes begins, from the left.
TRAINING_PART: Final = 0.65
# Hue in OpenCV's half degrees.
_HUES: Final = {
    **{"red": 178, "orange": 14, "yellow": 27, "green": 60},
    **{"blue": 108, "purple": 138, "pink": 160},
}


@dataclass
class Pictures:
    """Cut-outs and photographs of a cache folder, read once and kept small.

    Attributes:
        cache: The folder that `sources.fetch` filled.
        kept_side: Pixels of a cut-out's longer side.
    """

    cache: Path
    kept_side: int = KEPT_SIDE

    def __post_init__(self) -> None:
        self._cutouts: dict[str, npt.NDArray[np.uint8]] = {}
        self._photographs: dict[str, npt.NDArray[np.uint8]] = {}

    def cutout(self, code: str) -> npt.NDArray[np.uint8]:
        """A thing's picture, trimmed to what is visible, (h, w, 4) uint8 RGBA.

        Raises:
            DataError: the cache has no such picture.
        """
        if code not in self._cutouts:
            file = code if code.endswith(".png") else f"{CUTOUTS_FOLDER}/{code}.webp"
            path = self.cache / file
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            if picture is None or picture.shape[2:] != (4,):
                raise DataError(f"{path} is no picture with alpha: remove the cache, fetch again")
            y, x = np.nonzero(picture[..., 3] > 24)
            picture = picture[y.min() : y.max() + 1, x.min() : x.max() + 1]
            scale = self.kept_side / max(picture.shape[:2])
            small = cv2.cvtColor(_resized(picture, scale), cv2.COLOR_BGRA2RGBA)
            self._cutouts[code] = np.asarray(small, np.uint8)
        return self._cutouts[code]

    def photograph(self, photograph: Photograph, unseen: bool) -> npt.NDArray[np.uint8]:
        """The part of a photograph for training, or the one for unseen scenes, (h, w, 3) RGB.

        Raises:
            DataError: the cache has no such picture.
        """
        if photograph.file not in self._photographs:
            path = self.cache / PHOTOGRAPHS_FOLDER / photograph.file
            picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if picture is None:
                raise DataError(f"{path} is no picture: remove the cache, fetch again")
            colours = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            self._photographs[photograph.file] = np.asarray(colours, np.uint8)
        known = self._photographs[photograph.file]
        border = round(known.shape[1] * TRAINING_PART)
        return known[:, border:] if unseen else known[:, :border]


def background(
    rng: np.random.Generator,
    pictures: Pictures,
    photograph: Photograph,
    height: int,
    width: int,
    *,
    unseen: bool,
) -> npt.NDArray[np.uint8]:
    """A crop of a photograph, flipped, recoloured, perhaps out of focus: (height, width, 3) RGB."""
    whole = pictures.photograph(photograph, unseen)
    share = float(rng.uniform(0.35, 1.0))
    # The largest window of the picture's shape that fits, and a share of it.
    fit = min(whole.shape[0] / height, whole.shape[1] / width) * share
    h, w = max(8, int(height * fit)), max(8, int(width * fit))
    y = int(rng.integers(whole.shape[0] - h + 1))
    x = int(rng.integers(whole.shape[1] - w + 1))
    crop = cv2.resize(whole[y : y + h, x : x + w], (width, height), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.3:
        crop = crop[::-1]
    crop = np.ascontiguousarray(crop)
    if rng.random() < 0.4:
        crop = cv2.GaussianBlur(crop, (0, 0), float(rng.uniform(0.8, 4.0)))
    values = crop.astype(np.float32)
    tint = rng.uniform(0.8, 1.2, 3).astype(np.float32)
    contrast, level = float(rng.uniform(0.35, 1.0)), float(rng.uniform(60.0, 190.0))
    mean = float(values.mean())
    values = ((values - mean) * contrast + level) * tint
    tinted: npt.NDArray[np.uint8] = np.clip(values, 0, 255).astype(np.uint8)
    return tinted


def repainted(cutout: npt.NDArray[np.uint8], paint: str) -> npt.NDArray[np.uint8]:
    """A cut-out (h, w, 4) in another colour, its light and shade kept."""
    hsv = cv2.cvtColor(cutout[..., :3], cv2.COLOR_RGB2HSV).astype(np.float32)
    solid = cutout[..., 3] > 128
    hue, saturation, value = hsv[..., 0], hsv[..., 1], hsv[..., 2]
    vivid = solid & (saturation > 60)
    if paint in ("black", "white"):
        bright = float(value[solid].mean()) if solid.any() else 128.0
        saturation *= 0.12
        value[:] = value / max(bright, 1.0) * (34.0 if paint == "black" else 232.0)
    elif vivid.sum() > 0.3 * solid.sum():
        # Everything turns by as much as its most frequent hue has to.
        own = int(np.bincount(hue[vivid].astype(np.int64), minlength=180).argmax())
        hue[:] = (hue + (_HUES[paint] - own)) % 180
        saturation[vivid] = np.maximum(saturation[vivid], 150.0)
        if paint in ("yellow", "orange", "pink"):
            value[:] = np.maximum(value, 0.6 * value + 90.0)
    else:  # grey things: colour is laid over
        hue[:] = _HUES[paint]
        saturation[:] = np.maximum(saturation, 170.0)
        value[:] = np.maximum(value, 0.7 * value + 70.0)
    if paint == "pink":
        saturation[:] = np.minimum(saturation, 130.0)
    rgb = cv2.cvtColor(np.clip(hsv, 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.asarray(np.dstack([rgb, cutout[..., 3]]), np.uint8)


def _resized(picture: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
    """Scaled in premultiplied colours, so that what is transparent does not bleed in."""
    height, width = picture.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    alpha = picture[..., 3:].astype(np.float32) / 255.0
    rich = np.dstack([picture[..., :3] * alpha, picture[..., 3:].astype(np.float32)])
    small = cv2.resize(rich, size, interpolation=cv2.INTER_AREA)
    colour = small[..., :3] / np.maximum(small[..., 3:] / 255.0, 1e-3)
    return np.clip(np.dstack([colour, small[..., 3:]]) + 0.5, 0, 255).astype(np.uint8)
