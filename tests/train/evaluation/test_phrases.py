"""The hand-written phrasings: whole, ten for each of twenty scenes, and never generated ones."""

from pathlib import Path

from cris_train.data.splits import open_split

FOLDER = Path(__file__).parents[3] / "train" / "demo" / "phrases"


def test_twenty_scenes_of_ten_phrasings() -> None:
    images = open_split(FOLDER, "phrases")
    assert len(images) == 20
    for image in images:
        assert image.path.is_file()
        assert sum(len(item.expressions) for item in image.objects) == 10
        for item in image.objects:
            assert image.mask(item).sum() > 100
