"""Names of what is not in a scene of named things, to ask for in vain."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Final

from cris_deploy.errors import DataError
from cris_train.data.refer import INSTANCES_FILE, load_json
from cris_train.synthetic.named.maker import NamedMaker
from cris_train.synthetic.named.names import things
from cris_train.synthetic.named.sources import PHOTOGRAPHS

# What some photograph shows is not asked for: the files do not say which is behind a scene.
_SHOWN: Final = frozenset[str]().union(*(photograph.shows for photograph in PHOTOGRAPHS))


class AbsentNames:
    """What each picture of a data set does not show; of none, if they are not named scenes.

    Raises:
        DataError: `instances.json` is there and cannot be read.
    """

    def __init__(self, data: Path) -> None:
        self._words: dict[str, set[str]] = {}
        path = data / INSTANCES_FILE
        if not path.exists():
            return
        found = load_json(path)
        words = {thing.name: thing.words for thing in things()}
        try:
            if {kind["supercategory"] for kind in found["categories"]} != {
                NamedMaker.supercategory
            }:
                return
            names = {kind["id"]: kind["name"] for kind in found["categories"]}
            shown = defaultdict[int, set[str]](set)
            for each in found["annotations"]:
                shown[each["image_id"]] |= words[names[each["category_id"]]]
            self._words = {image["file_name"]: shown[image["id"]] for image in found["images"]}
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: {error!r}: generate the scenes again") from error

    def of(self, name: str, count: int) -> list[str]:
        """`count` expressions of which nothing in the picture `name` is meant; the same each time.

        None of their words is true of a thing in it, nor of what a background may show.
        """
        if name not in self._words:
            return []
        there = self._words[name] | _SHOWN
        others = [thing.name for thing in things() if not thing.words & there]
        return [f"the {other}" for other in random.Random(name).sample(others, count)]
