"""Teaching the two encoders which words go with which object, before anything is segmented.

CRIS starts from CLIP, whose encoders know names. Where there is no CLIP of a model's shape, a
lesson with `crops` gives it some of that: CLIP's own objective (Radford et al. 2021, section 2.3),
on objects cut out of training pictures and their expressions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from cris_train.data.batch import Batch
from cris_train.model.backbone import Backbone

# CLIP's first one; it learns it, which needs more steps than a lesson has.
TEMPERATURE = 0.07
# Side of a crop over that of its object: drawn anew for each.
MARGIN = (1.05, 2.0)


def crop_loss(backbone: Backbone, batch: Batch, side: int) -> Tensor:
    """Contrast of N objects and N expressions, both ways; those of equal words belong together.

    An object's feature is the mean of what the image encoder gives at its own positions (C5), so
    that it is learnt where CRIS looks for it later.

    Args:
        backbone: Changed by its gradient alone.
        batch: N = B * k rows. Objects that are nowhere in their target are left out.
        side: Of a crop, pixels; a multiple of 32.

    Returns:
        () float32.
    """
    chosen = (batch.target.flatten(1).amax(1) > 0).nonzero()[:, 0]
    target, tokens = batch.target[chosen], batch.tokens[chosen]
    squares = _squares(target[:, 0])
    pictures = chosen // (len(batch.tokens) // len(batch.image))
    scale = batch.image.shape[-1] / target.shape[-1]
    crops = roi_align(
        batch.image, torch.cat((pictures[:, None], squares * scale), 1), side, aligned=True
    )
    crops = crops.contiguous(memory_format=torch.channels_last)
    features = backbone.encode_image(crops).c5
    own = torch.arange(len(target), device=target.device)[:, None]
    # A thin object may miss all positions: then every position counts a little.
    share = roi_align(target, torch.cat((own, squares), 1), features.shape[-1], aligned=True) + 1e-3
    objects = (features * share).sum((2, 3)) / share.sum((2, 3))
    sentences = backbone.encode_text(tokens).sentence
    with torch.autocast(objects.device.type, enabled=False):
        likeness = F.normalize(objects.float()) @ F.normalize(sentences.float()).T / TEMPERATURE
        same = (tokens[:, None] == tokens[None]).all(2).float()
        same = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(likeness, same) + F.cross_entropy(likeness.T, same)) / 2


def _squares(masks: Tensor) -> Tensor:
    """(N, h, w) masks, none empty -> squares around them, (N, 4): left, top, right, bottom."""
    columns, rows = masks.amax(1) > 0, masks.amax(2) > 0
    left, top = (line.float().argmax(1) for line in (columns, rows))
    right, bottom = (line.shape[1] - line.flip(1).float().argmax(1) for line in (columns, rows))
    sides = torch.maximum(right - left, bottom - top)[:, None]
    low, high = MARGIN
    drawn = torch.rand((len(masks), 3), device=masks.device)
    half = sides * (low + (high - low) * drawn[:, :1]) / 2
    # The object stays inside: its square moves by less than the margin.
    shift = (2 * drawn[:, 1:] - 1) * (half - sides / 2)
    middle = torch.stack((left + right, top + bottom), 1) / 2 + shift
    return torch.cat((middle - half, middle + half), 1)
