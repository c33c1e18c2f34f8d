"""Which pictures a run learns from and which it is measured on, where the data does not say it all.

Held out are whole pictures, never expressions: another sentence about a known picture proves
nothing. Which ones is a function of the seed and the order in the data set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cris_deploy.errors import DataError
from cris_train.data.refer import ReferImage, pick

Split: TypeAlias = tuple[ReferImage, ...]
# A stream of the seed besides those of order and draws, which start with an epoch (`rows.py`).
_HELD_OUT = 2**32


@dataclass(frozen=True)
class Chosen:
    """Pictures to learn from, pictures to measure on, and what was decided for it, to be told."""

    train: Split
    val: Split
    told: tuple[str, ...] = ()


def choose(
    splits: Mapping[str, Split], root: Path, *, train: str, val: str, hold_out: float, seed: int
) -> Chosen:
    """Take the two splits of a data set, or hold pictures out for the one that it lacks.

    Args:
        splits: Of the data set.
        root: Its folder, for messages.
        train: Name of the split to learn from; where there is none and one single split, with
            `hold_out` that one.
        val: Name of the split to measure on.
        hold_out: Share of the training pictures to hold out where there is no `val`; 0 for none.
        seed: Which ones.

    Raises:
        DataError: a split is missing, or has too few pictures to hold one out.
    """
    told: list[str] = []
    if hold_out and train not in splits and len(splits) == 1:
        (only,) = splits
        told.append(f"{root} has no split {train!r}: learning from its only one, {only!r}")
        train = only
        val = "" if val == only else val
    split = pick(splits, train, root)
    if val in splits:
        return Chosen(split, splits[val], tuple(told))
    if not hold_out:
        known = ", ".join(splits)
        raise DataError(
            f"{root} has no references in split {val!r}: it has {known}; name one as val_split, or "
            f"set hold_out=0.1 to measure on a tenth of the training pictures"
        )
    if len(split) < 2:
        raise DataError(
            f"{root} has one picture in split {train!r}, and none to spare to measure on: add "
            f"pictures, or lines with the split val"
        )
    count = min(len(split) - 1, max(1, round(hold_out * len(split))))
    order = np.random.default_rng([seed, _HELD_OUT]).permutation(len(split))
    out = set(order[:count].tolist())
    told.append(
        f"{root} has no split {val!r}: {count:,} of {len(split):,} pictures are held out to "
        f"measure on (hold_out={hold_out:g}, seed={seed})"
    )
    return Chosen(
        tuple(image for number, image in enumerate(split) if number not in out),
        tuple(image for number, image in enumerate(split) if number in out),
        tuple(told),
    )
