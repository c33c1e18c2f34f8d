"""Outcomes of an evaluation that are worth a look: the best, the worst, chance ones, the first."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cris_deploy.errors import InputError
from cris_train.data.dataset import read_picture
from cris_train.evaluation.evaluate import Outcome
from cris_train.evaluation.sheet import Scene, Tile, picture_sheet, scene_sheet, write_sheet

SAID: Final = 3  # expressions of a picture that are shown together, each of another object


class Gallery:
    """Keeps `size` outcomes of each kind while an evaluation goes on, and their masks only.

    The best and the worst are of different pictures, so that one easy picture does not fill a sheet
    with everything that was said about it. The random ones are a fair draw of all expressions
    (reservoir sampling), the same for the same seed. Of the first pictures, `scenes` has an
    expression for each of up to three objects.
    """

    def __init__(self, size: int = 12, seed: int = 0) -> None:
        if size < 1:
            raise InputError(f"size is {size}: a gallery has at least 1")
        self._size = size
        self._random = random.Random(seed)
        self._best: dict[Path, Outcome] = {}
        self._worst: dict[Path, Outcome] = {}
        self._drawn: list[Outcome] = []
        self._scenes: dict[Path, dict[int, Outcome]] = {}
        self._seen = 0

    def add(self, outcome: Outcome) -> None:
        """Take note of an outcome; give this to `evaluate` as `observe`."""
        self._keep(self._best, outcome, 1.0)
        self._keep(self._worst, outcome, -1.0)
        path = outcome.image.path
        if path in self._scenes or len(self._scenes) < self._size:
            said = self._scenes.setdefault(path, {})
            if len(said) < SAID:
                said.setdefault(outcome.item.ref_id, outcome)
        self._seen += 1
        if len(self._drawn) < self._size:
            self._drawn.append(outcome)
        elif (place := self._random.randrange(self._seen)) < self._size:
            self._drawn[place] = outcome

    @property
    def best(self) -> list[Outcome]:
        """Highest IoU first, one for each picture."""
        return sorted(self._best.values(), key=lambda outcome: -outcome.iou)

    @property
    def worst(self) -> list[Outcome]:
        """Lowest IoU first, one for each picture."""
        return sorted(self._worst.values(), key=lambda outcome: outcome.iou)

    @property
    def drawn(self) -> list[Outcome]:
        """Random ones, in no order."""
        return list(self._drawn)

    @property
    def scenes(self) -> list[tuple[Outcome, ...]]:
        """The first pictures, with an outcome for each of the first objects."""
        return [tuple(said.values()) for said in self._scenes.values()]

    def write(self, folder: Path, title: str) -> tuple[Path, ...]:
        """Write sheet-NAME.png, NAME best, worst and random, and sheet-scenes.jpg.

        Nothing if nothing was seen.

        Raises:
            InputError: the folder cannot be written to.
        """
        if not self._seen:
            return ()
        sheets = {
            f"sheet-{name}.png": picture_sheet(tiles(outcomes), title=f"{label} · {title}")
            for name, label, outcomes in (
                ("best", "highest IoU", self.best),
                ("worst", "lowest IoU", self.worst),
                ("random", "drawn at random", self.drawn),
            )
        }
        scenes = [
            Scene(read_picture(said[0].image), tuple((o.expression, o.mask, o.iou) for o in said))
            for said in self.scenes
        ]
        sheets["sheet-scenes.jpg"] = scene_sheet(scenes, title=f"the first, with IoU · {title}")
        return tuple(write_sheet(folder / name, sheet) for name, sheet in sheets.items())

    def _keep(self, kept: dict[Path, Outcome], outcome: Outcome, sign: float) -> None:
        """Put it in if it is ahead (`sign` 1: higher IoU, -1: lower) of one that is there."""
        key = outcome.image.path
        if key in kept:
            if sign * outcome.iou > sign * kept[key].iou:
                kept[key] = outcome
            return
        if len(kept) < self._size:
            kept[key] = outcome
            return
        least = min(kept, key=lambda path: sign * kept[path].iou)
        if sign * outcome.iou > sign * kept[least].iou:
            del kept[least]
            kept[key] = outcome


def tiles(outcomes: Sequence[Outcome]) -> list[Tile]:
    """Outcomes as a sheet's tiles; the pictures are read again."""
    return [Tile(read_picture(o.image), o.expression, o.truth, o.mask, o.iou) for o in outcomes]
