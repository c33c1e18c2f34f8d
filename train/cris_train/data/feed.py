"""How a split becomes batches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cris_deploy.errors import InputError


class Draw(Enum):
    """What an epoch visits once.

    OBJECT: every object, with one of its expressions at random, as the paper trains; one picture
    per object. IMAGE: every picture, with `expressions_per_image` draws: every object of it once,
    then again, each time with one of its expressions; the picture is encoded once for all.
    """

    OBJECT = "object"
    IMAGE = "image"


@dataclass(frozen=True)
class FeedPlan:
    """How a split becomes batches.

    Attributes:
        draw: What an epoch visits once.
        images_per_batch: Pictures in a step of all processes and accumulation parts together.
        expressions_per_image: 1 with Draw.OBJECT.
        seed: Of order and draws.
        workers: Processes that read pictures; 0 reads in this one.
        skip_broken: Replace a picture that cannot be used by another one, and count it, instead of
            stopping.
    """

    draw: Draw
    images_per_batch: int
    expressions_per_image: int
    seed: int
    workers: int
    skip_broken: bool

    def __post_init__(self) -> None:
        for name in ("images_per_batch", "expressions_per_image"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seed", "workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.draw is Draw.OBJECT and self.expressions_per_image != 1:
            raise InputError(
                f"expressions_per_image is {self.expressions_per_image}: with draw 'object' a "
                "picture comes with one expression; set it to 1, or draw to 'image'"
            )
