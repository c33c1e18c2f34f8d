"""From a seed to a named scene: layout, picture, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from cris_deploy.arguments import whole
from cris_train.synthetic.made import MadeScene
from cris_train.synthetic.named.describe import Compositions, describe
from cris_train.synthetic.named.facts import Facts, hidden, look
from cris_train.synthetic.named.names import photographed, things
from cris_train.synthetic.named.pictures import KEPT_SIDE, Pictures, background
from cris_train.synthetic.named.render import Drawing, render
from cris_train.synthetic.named.scenes import (
    LONG_SIDE,
    Layout,
    draw_few,
    draw_layout,
    pick,
)
from cris_train.synthetic.named.sources import PHOTOGRAPHS, TUXPAINT_FOLDER
from cris_train.synthetic.scenes import scene_rng

# The split whose pairs of names and what is said of them, and parts of photographs, no other has.
UNSEEN_SPLIT: Final = "test"


class NamedMaker:
    """Makes named scenes from the pictures in a cache folder.

    Attributes:
        categories: The usual names, in the order of `names.txt`.
        supercategory: For instances.json.
        first_lesson: Two or three large things of different names, and no more than what they are
            called: what a model learns from first.
        scale: Longer side of the pictures in `LONG_SIDE`s.
        things: With Tux Paint's pictures where `tuxpaint` asks for them.
    """

    supercategory = "thing"

    def __init__(
        self,
        cache: Path,
        *,
        first_lesson: bool = False,
        long_side: int = LONG_SIDE,
        tuxpaint: bool = False,
    ) -> None:
        self.scale = whole("long_side", long_side, 128, 1024) / LONG_SIDE
        self.pictures = Pictures(cache, round(KEPT_SIDE * self.scale))
        self.first_lesson = first_lesson
        self.things = photographed(TUXPAINT_FOLDER) if tuxpaint else things()
        self.categories = tuple(thing.name for thing in things())

    def make(self, seed: int, split: str, index: int) -> MadeScene:
        """Scene `index` of a split, the same for the same seed."""
        facts, drawing, layout, scene_random = self.draw(seed, split, index)
        wanted = Compositions.UNSEEN if split == UNSEEN_SPLIT else Compositions.SEEN
        return MadeScene(
            image=drawing.image,
            masks=drawing.masks,
            categories=tuple(placed.thing for placed in layout.placed),
            descriptions=tuple(
                describe(facts, target, scene_random, wanted, names_only=self.first_lesson)
                for target in range(len(facts.items))
            ),
        )

    def draw(
        self, seed: int, split: str, index: int
    ) -> tuple[Facts, Drawing, Layout, np.random.Generator]:
        """What is to be seen, the picture, the layout, and the generator that draws sentences."""
        rng = scene_rng(seed, f"{'names' if self.first_lesson else 'named'} {split}", index)
        unseen = split == UNSEEN_SPLIT
        known = self.things
        while True:
            photograph = pick(rng, PHOTOGRAPHS)
            usable = [i for i, t in enumerate(known) if t.codes and not t.words & photograph.shows]
            if not usable:
                continue
            draw = draw_few if self.first_lesson else draw_layout
            layout = draw(rng, known, usable).scaled(self.scale)
            behind = background(
                rng, self.pictures, photograph, layout.height, layout.width, unseen=unseen
            )
            paint_seed = int(rng.integers(2**31))
            while len(layout.placed) > 1:
                # The same light again, without what was hidden.
                drawing = render(np.random.default_rng(paint_seed), layout, behind, self.pictures)
                gone = hidden(drawing, self.scale)
                if not gone:
                    return look(layout, drawing, known, photograph.shows), drawing, layout, rng
                kept = (p for i, p in enumerate(layout.placed) if i != gone[0])
                layout = replace(layout, placed=tuple(kept))
