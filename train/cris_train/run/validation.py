"""Measuring between steps: on the validation pictures, which the processes share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cris_deploy.errors import CrisError, DataError, ExpressionError, ImageError
from cris_train.data.dataset import read_picture
from cris_train.data.refer import ReferImage
from cris_train.evaluation.evaluate import Outcome, evaluate
from cris_train.evaluation.metrics import MaskMetrics
from cris_train.evaluation.segmenters import TorchSegmenter
from cris_train.evaluation.sheet import Tile
from cris_train.run.distributed import Process
from cris_train.run.learner import Learner
from cris_train.run.recipe import TrainConfig

UNUSABLE = (ImageError, DataError, ExpressionError)
"""What a picture, a mask or an expression raises that cannot be measured on."""


class Validation:
    """A validation split and what was seen of it.

    Attributes:
        left_out: Pictures that could not be used, and why (`skip_broken`); of all processes.
    """

    def __init__(self, config: TrainConfig, process: Process, split: Sequence[ReferImage]) -> None:
        self._config, self._process, self._split = config, process, split
        self._sheet = _Sheet(config.sheet_tiles if process.writes else 0)
        self.left_out: dict[Path, str] = {}

    def measure(self, learner: Learner) -> MaskMetrics:
        """Metrics on all pictures; every process must ask.

        Raises:
            ImageError, DataError, ExpressionError: something cannot be used, in every process the
                first of them; with `skip_broken` only where nothing at all can be.
        """
        segmenter = TorchSegmenter(
            learner.judged,
            threshold=self._config.threshold,
            device=self._process.device,
            autocast=learner.autocast,
        )
        mine, failed, left_out = MaskMetrics(), None, dict[Path, str]()

        def skip(image: ReferImage, error: CrisError) -> None:
            left_out[image.path] = str(error)

        try:
            mine = evaluate(
                segmenter,
                self._process.share(self._split),
                observe=self._sheet.see,
                skip=skip if self._config.skip_broken else None,
            )
        except UNUSABLE as error:
            failed = error
        every = self._process.all_of((mine, failed, left_out))
        for _, wrong, paths in every:
            if wrong is not None:
                raise wrong
            self.left_out |= paths
        first, *others = (metrics for metrics, _, _ in every)
        together = first.merge(others)
        if not together.ious:
            path, reason = next(iter(self.left_out.items()))
            raise DataError(f"no validation picture can be used, such as {path}: {reason}")
        return together

    def tiles(self) -> list[Tile]:
        """Of the first pictures, since they were last asked for."""
        return self._sheet.taken()


class _Sheet:
    """Takes the first expression of each of the first pictures."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._tiles: dict[Path, Tile] = {}

    def see(self, outcome: Outcome) -> None:
        path = outcome.image.path
        if len(self._tiles) < self._most and path not in self._tiles:
            self._tiles[path] = Tile(
                read_picture(outcome.image),
                outcome.expression,
                outcome.truth,
                outcome.mask,
                outcome.iou,
            )

    def taken(self) -> list[Tile]:
        tiles, self._tiles = list(self._tiles.values()), {}
        return tiles
