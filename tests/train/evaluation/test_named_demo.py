"""The committed model of named things: small, and right about the scenes that it is shown with."""

from pathlib import Path

import torch

from cris_train import checkpoint
from cris_train.data.splits import open_split
from cris_train.data.target import THRESHOLD
from cris_train.evaluation.evaluate import evaluate
from cris_train.evaluation.segmenters import TorchSegmenter

DEMO = Path(__file__).parents[3] / "train" / "demo"


def test_the_demo_finds_what_it_is_shown_with() -> None:
    path = DEMO / "named.pth"
    assert path.stat().st_size <= 20e6
    loaded = checkpoint.load(path)
    weights = [value for value in loaded.state_dict.values() if value.is_floating_point()]
    assert {value.dtype for value in weights} == {torch.float16}
    images = open_split(DEMO / "named", "samples")
    assert len(images) == 12
    found = evaluate(TorchSegmenter(checkpoint.build(loaded), threshold=THRESHOLD), images)
    assert len(found.ious) == 36
    # The bar that the hand-written phrasings have: eight of ten are right.
    assert found.precision["Pr@50"] >= 0.8
