"""CLIP's own weights for the two encoders, where the paper's training starts."""

from __future__ import annotations

from pathlib import Path

import open_clip
from torch import Tensor, nn

from cris_deploy.errors import InputError
from cris_train.model.cris import Cris

# CRIS adds this to CLIP's attention pooling; no CLIP file has it.
OWN = "visual.attnpool.connect."


def load_clip(model: Cris, source: str) -> None:
    """Load CLIP's weights into a model's backbone, strictly.

    Args:
        model: Its `backbone` is changed in place; the rest is left alone.
        source: Path of OpenAI's file (such as `RN50.pt`), or `name:tag` of open_clip's collection
            (such as `RN50-quickgelu:openai`), which open_clip downloads.

    Raises:
        InputError: the source cannot be read, or is a CLIP of another shape (named).
    """
    clip = _read(source).state_dict()
    wanted = model.backbone.state_dict()
    own = {name for name in wanted if name.startswith(OWN)}
    taken: dict[str, Tensor] = {name: clip[name] for name in wanted if name in clip}
    differing = sorted(
        name
        for name in wanted.keys() - own
        if name not in taken or taken[name].shape != wanted[name].shape
    )
    if differing:
        raise InputError(
            f"clip: {source} is a CLIP of another shape than {model.config.architecture}; "
            f"{len(differing)} parameters differ, such as {differing[0]}"
        )
    model.backbone.load_state_dict(taken, strict=False)


def _read(source: str) -> nn.Module:
    name, colon, tag = source.partition(":")
    is_file = Path(source).is_file()
    if not is_file and (not colon or name not in open_clip.list_models()):
        raise InputError(
            f"clip: {source!r} is neither a file nor name:tag of open_clip, such as "
            f"RN50-quickgelu:openai"
        )
    clip: nn.Module
    try:
        if is_file:
            clip = open_clip.load_openai_model(source, precision="fp32", device="cpu")
        else:
            clip = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # archives, downloads and registries each fail in their own way
        raise InputError(f"clip: {source} cannot be loaded as CLIP: {error}") from error
    return clip
