"""Is a data set whole? Counts beside the published ones, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cris_deploy.errors import DataError, ImageError, InputError
from cris_train.data.dataset import read_picture
from cris_train.data.pictures import missing_pictures, remedy, usual_folders
from cris_train.data.refer import ReferImage, listed
from cris_train.data.splits import is_refer, open_splits

ALL = "all"


@dataclass(frozen=True)
class Counts:
    """How much there is of a split, or of all; None is not known."""

    images: int | None
    objects: int | None
    expressions: int | None


# As the paper counts them in its section on data sets.
PUBLISHED: Mapping[str, Mapping[str, Counts]] = {
    "refcoco": {
        "train": Counts(None, None, 120_624),
        "val": Counts(None, None, 10_834),
        "testA": Counts(None, None, 5_657),
        "testB": Counts(None, None, 5_095),
        ALL: Counts(19_994, 50_000, 142_210),
    },
    "refcoco+": {ALL: Counts(19_992, 49_856, 141_564)},
}
# Of RefCOCOg REFER's files hold less than the paper counts. By who split it. From memory, not from
# the files, for want of them; what supports them: the splits of either add up to the same objects
# and the same expressions, and public copies of UMD's state its objects.
PUBLISHED_REFCOCOG: Mapping[str, Mapping[str, Counts]] = {
    "umd": {
        "train": Counts(21_899, 42_226, 80_512),
        "val": Counts(1_300, 2_573, 4_896),
        "test": Counts(2_600, 5_023, 9_602),
        ALL: Counts(25_799, 49_822, 95_010),
    },
    "google": {
        "train": Counts(None, 44_822, 85_474),
        "val": Counts(None, 5_000, 9_536),
        ALL: Counts(25_799, 49_822, 95_010),
    },
}
NAMES = (*PUBLISHED, "refcocog")
NOTE_REFCOCOG = (
    "the paper counts 26,711 images, 54,822 objects and 104,560 expressions, with Google's "
    "unpublished test split; what REFER's files hold is stated here from memory"
)


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        root: The folder.
        name: Name of the published data set that it is compared with, "" for none.
        counts: Split, and "all" -> counts.
        published: The same, as the paper gives them; empty for other data.
        missing: Picture files that are not there.
        faults: Sentences, each with a remedy; one of them is about `missing`.
        notes: Sentences that are no fault.
    """

    root: Path
    name: str
    counts: Mapping[str, Counts]
    published: Mapping[str, Counts]
    missing: tuple[Path, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether it can be trained on as it is."""
        return not self.faults


def check(
    root: Path,
    *,
    name: str | None = None,
    split_by: str = "unc",
    images: Path | None = None,
    open_pictures: bool = False,
    tick: Callable[[int, int], object] = lambda done, count: None,
) -> Report:
    """Look a data set over.

    Args:
        root: Its folder.
        name: refcoco, refcoco+ or refcocog; if not given, the folder's name says so or nothing.
        split_by: Who made the splits: unc, umd or google.
        images: Folder of the pictures.
        open_pictures: Read every picture and mask, too (minutes).
        tick: Called after each picture that was opened, with their number so far and in all.

    Raises:
        DataError: there is no data set, or none that can be read.
        InputError: `name` is not known.
    """
    if name is not None and name not in NAMES:
        raise InputError(f"--name {name}: known are {', '.join(NAMES)}")
    splits = open_splits(root, split_by=split_by, images=images)
    known = name if name is not None else root.resolve().name.lower()
    published: Mapping[str, Counts] = {}
    if is_refer(root, split_by):
        of_google_or_umd = PUBLISHED_REFCOCOG.get(split_by, {}) if known == "refcocog" else {}
        published = PUBLISHED.get(known, of_google_or_umd)
    counts = {split: _count(pictures) for split, pictures in splits.items()}
    counts[ALL] = _count([image for pictures in splits.values() for image in pictures])
    paths = {image.path for pictures in splits.values() for image in pictures}
    missing = missing_pictures(sorted(paths))
    faults = _differences(counts, published)
    if missing:
        places = ", ".join(str(folder) for folder in usual_folders(root, images))
        faults += (
            f"{len(missing):,} of {len(paths):,} pictures are missing in {missing[0].parent}: "
            f"{listed([path.name for path in missing])}; {remedy(missing[0])} (looked for in "
            f"{places})",
        )
    if open_pictures:
        present = [image for p in splits.values() for image in p if image.path not in set(missing)]
        faults += _unusable(present, tick)
    notes = [NOTE_REFCOCOG] if published and known == "refcocog" else []
    notes += _shared(splits)
    return Report(
        root, known if published else "", counts, published, missing, faults, tuple(notes)
    )


def _count(pictures: list[ReferImage] | tuple[ReferImage, ...]) -> Counts:
    items = [item for image in pictures for item in image.objects]
    return Counts(
        len({image.path for image in pictures}),
        len(items),
        sum(len(item.expressions) for item in items),
    )


def _differences(counts: Mapping[str, Counts], published: Mapping[str, Counts]) -> tuple[str, ...]:
    """One sentence for every count that is not the published one."""
    found = []
    for split, wanted in published.items():
        have = counts.get(split, Counts(0, 0, 0))
        for what in ("images", "objects", "expressions"):
            number, expected = getattr(have, what), getattr(wanted, what)
            if expected is not None and number != expected:
                found.append(
                    f"{split}: {number:,} {what}, published are {expected:,}; fetch refs and "
                    "instances.json again"
                )
    return tuple(found)


def _unusable(pictures: list[ReferImage], tick: Callable[[int, int], object]) -> tuple[str, ...]:
    """One sentence for pictures and one for masks that cannot be used, with the first few."""
    broken: dict[str, str] = {}
    masks: list[str] = []
    for number, image in enumerate(pictures, start=1):
        if str(image.path) not in broken:
            try:
                read_picture(image)
            except (ImageError, DataError) as error:
                broken[str(image.path)] = str(error)
        for item in image.objects:
            try:
                image.mask(item)
            except DataError as error:
                masks.append(str(error))
        tick(number, len(pictures))
    return tuple(
        f"{len(wrong):,} {what} cannot be used: {'; '.join(wrong[:3])}"
        for what, wrong in (("pictures", list(broken.values())), ("masks", masks))
        if wrong
    )


def _shared(splits: Mapping[str, tuple[ReferImage, ...]]) -> list[str]:
    """Pictures of the training split that are measured on, too."""
    training = {image.path for image in splits.get("train", ())}
    found = []
    for split, pictures in splits.items():
        both = training & {image.path for image in pictures}
        if split != "train" and both:
            found.append(f"{len(both):,} pictures are in train and in {split}")
    return found
