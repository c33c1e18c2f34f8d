"""Any data set by its folder: RefCOCO's published files, or a user's own pictures and JSONL."""

from __future__ import annotations

from pathlib import Path

from cris_deploy.errors import DataError
from cris_train.data import folder, refer
from cris_train.data.refer import ReferImage

REFER_URL = "https://github.com/lichengunc/refer"


def open_split(
    root: str | Path, split: str, *, split_by: str = "unc", images: Path | None = None
) -> tuple[ReferImage, ...]:
    """Read one split of a data set.

    Args:
        root: Folder with `refs(<split_by>).p` and `instances.json`, or with one or more `*.jsonl`
            (`folder.py` says what is in them).
        split: "train", "val", "testA", ...
        split_by: Who made the splits of RefCOCO's files: "unc", "umd" or "google".
        images: Folder of the pictures; if not given, they are looked for in the usual places.

    Raises:
        DataError: what is missing or unusable, and the remedy.
    """
    splits = open_splits(root, split_by=split_by, images=images)
    return refer.pick(splits, split, Path(root))


def open_splits(
    root: str | Path, *, split_by: str = "unc", images: Path | None = None
) -> dict[str, tuple[ReferImage, ...]]:
    """Read all splits of a data set; as `open_split`."""
    root = Path(root)
    if is_refer(root, split_by):
        return refer.read_splits(root, split_by=split_by, images=images)
    return folder.read_folder(root, images=images)


def is_refer(root: Path, split_by: str) -> bool:
    """Whether a folder holds RefCOCO's files (True) or a user's own (False).

    Raises:
        DataError: neither, or without the splits that are asked for.
    """
    if not root.is_dir():
        raise DataError(
            f"{root} cannot be read: it is not a folder; RefCOCO's files come from {REFER_URL}, "
            "generated scenes from cris-scenes"
        )
    if (root / refer.refs_name(split_by)).is_file():
        return True
    others = sorted(path.name for path in root.glob("refs(*).p"))
    if others:
        choices = ", ".join(name[len("refs(") : -len(").p")] for name in others)
        raise DataError(
            f"{root} has no {refer.refs_name(split_by)}, but {', '.join(others)}: "
            f"choose split_by from {choices}"
        )
    if any(root.glob("*.jsonl")):
        return False
    raise DataError(
        f"{root} has neither {refer.refs_name(split_by)} nor a *.jsonl: RefCOCO's files "
        f"(refs and instances.json) come from {REFER_URL}; for data of your own, write lines of "
        "image, mask, expression and split to a JSONL there"
    )
