"""The cross-modal neck: three image scales and the sentence become one map (CRIS, section 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_train.model.backbone import ImageFeatures
from cris_train.model.blocks import conv_bn_relu, linear_bn_relu, upsample2
from cris_train.model.config import CrisConfig
from cris_train.model.positions import coordinates


class CoordConv(nn.Module):
    """A 3x3 ConvBNReLU that also sees where it is: two coordinate channels are appended."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(width + 2, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, h, w) -> (B, W, h, w)."""
        where = coordinates(x.shape[2], x.shape[3], x.device).to(x)
        where = where.expand(x.shape[0], -1, -1, -1)
        out: Tensor = self.conv1(torch.cat([x, where], dim=1))
        return out


class Neck(nn.Module):
    """Fuses C5 with the sentence, then C4 and C3 with the result, at stride 16.

    Names of the parts are those of the reference's checkpoints: `f5` is fused from C5 (f1_v_proj),
    `f4` from C4 (f2_*), `f3` from C3 (f3_*); `f4_proj*` bring them to one width.
    """

    def __init__(self, config: CrisConfig) -> None:
        super().__init__()
        width = config.neck_width
        half, double = width // 2, width * 2
        c3, c4, c5 = config.image_width * 8, config.image_width * 16, config.embed_dim
        self.txt_proj = linear_bn_relu(config.embed_dim, double)
        self.f1_v_proj = conv_bn_relu(c5, double, 1)
        self.norm_layer = nn.Sequential(nn.BatchNorm2d(double), nn.ReLU(inplace=True))
        self.f2_v_proj = conv_bn_relu(c4, width, 3)
        self.f2_cat = conv_bn_relu(width + double, width, 1)
        self.f3_v_proj = conv_bn_relu(c3, half, 3)
        self.f3_cat = conv_bn_relu(half + width, width, 1)
        self.f4_proj5 = conv_bn_relu(double, width, 3)
        self.f4_proj4 = conv_bn_relu(width, width, 3)
        self.f4_proj3 = conv_bn_relu(width, width, 3)
        self.aggr = conv_bn_relu(3 * width, width, 1)
        self.coordconv = nn.Sequential(CoordConv(width), conv_bn_relu(width, width, 3))
        self.up2 = upsample2()

    def forward(self, image: ImageFeatures, sentence: Tensor) -> Tensor:
        """Image features and sentence (B, embed_dim) -> fused map (B, W, S/16, S/16)."""
        gate = self.txt_proj(sentence)[:, :, None, None]  # (B, 2W, 1, 1)
        f5 = self.norm_layer(self.f1_v_proj(image.c5) * gate)
        f4 = self.f2_cat(torch.cat([self.f2_v_proj(image.c4), self.up2(f5)], dim=1))
        f3 = F.avg_pool2d(self.f3_v_proj(image.c3), 2)
        f3 = self.f3_cat(torch.cat([f3, f4], dim=1))
        scales = [self.f4_proj3(f3), self.f4_proj4(f4), self.up2(self.f4_proj5(f5))]
        fused: Tensor = self.coordconv(self.aggr(torch.cat(scales, dim=1)))
        return fused
