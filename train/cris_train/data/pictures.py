"""Where the pictures of a data set are, and which of them are missing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cris_deploy.errors import DataError

COCO_URL = "http://images.cocodataset.org/zips/train2014.zip"
COCO_PREFIX = "COCO_train2014_"
SHOWN = 3  # names in a message


def usual_folders(root: Path, images: Path | None) -> tuple[Path, ...]:
    """Where pictures of the data set `root` are looked for, in this order.

    `root/../images/mscoco/images/train2014` is where REFER's own instructions put them.
    """
    if images is not None:
        return (images, images / "train2014")
    return (
        root / "images",
        root / "train2014",
        root / "images" / "train2014",
        root.parent / "images" / "mscoco" / "images" / "train2014",
    )


def find_folder(root: Path, name: str, images: Path | None) -> Path:
    """The first usual folder that has the picture `name`; else the first that exists."""
    folders = usual_folders(root, images)
    for folder in folders:
        if name and (folder / name).is_file():
            return folder
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def missing_pictures(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Which files are not there. Lists folders, which is fast on network disks, too."""
    present: dict[Path, set[str]] = {}
    missing = []
    for path in dict.fromkeys(paths):
        folder = path.parent
        if folder not in present:
            try:
                with os.scandir(folder) as entries:
                    present[folder] = {entry.name for entry in entries}
            except OSError:
                present[folder] = set()
        if path.name not in present[folder]:
            missing.append(path)
    return tuple(missing)


def require_pictures(paths: Iterable[Path]) -> None:
    """See that every picture is there, before hours of work meet the first that is not.

    Raises:
        DataError: some are missing; says how many, which, and what to do.
    """
    wanted = tuple(dict.fromkeys(paths))
    missing = missing_pictures(wanted)
    if missing:
        names = ", ".join(path.name for path in missing[:SHOWN])
        raise DataError(
            f"{len(missing):,} of {len(wanted):,} pictures are missing in {missing[0].parent}: "
            f"{names}{', ...' if len(missing) > SHOWN else ''}; {remedy(missing[0])}"
        )


def remedy(missing: Path) -> str:
    """What to do about a missing picture."""
    if missing.name.startswith(COCO_PREFIX):
        return f"unpack {COCO_URL} and name its folder train2014 as the folder of images"
    return "put them there, or name their folder"
