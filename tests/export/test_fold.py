"""Exact rewrites: each against the plain form it replaces."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cris_export.graph import fold
from cris_export.graph.doubling import NARROW, Doublings, UpsampledConv, UpsampledRows
from cris_export.graph.mask_decoder import FilterHead, FoldedAttention
from cris_export.graph.stages import build_stages
from cris_train.model import Cris, CrisConfig
from cris_train.model.backbone import ImageEncoder
from cris_train.model.blocks import conv_bn_relu, linear_bn_relu
from cris_train.model.neck import CoordConv
from tests.helpers.models import randomised

# float32 rounding of sums of some hundred products of order one; a rewrite that is not exact
# (a forgotten bias, a wrong tap) is off by orders more.
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_batch_norm_into_convolution() -> None:
    block = randomised(conv_bn_relu(5, 7, 3))
    x = torch.randn(2, 5, 6, 4)
    torch.testing.assert_close(F.relu(fold.fold_block(block)(x)), block(x), **CLOSE)


def test_batch_norm_into_convolution_with_bias_and_stride() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    norm = randomised(nn.BatchNorm2d(6))
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(fold.fold_conv(conv, norm)(x), norm(conv(x)), **CLOSE)


def test_batch_norm_into_linear() -> None:
    block = randomised(linear_bn_relu(5, 7))
    x = torch.randn(3, 5)
    folded = fold.fold_linear(block[0], block[1])
    torch.testing.assert_close(F.relu(folded(x)), block(x), **CLOSE)


def test_image_encoder_without_batch_norms() -> None:
    encoder = randomised(ImageEncoder(CrisConfig.tiny()))
    folded = fold.fold_image_encoder(encoder, 2)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    image = torch.randn(2, 3, 64, 64)
    for mine, plain in zip(folded(image), encoder(image), strict=True):
        torch.testing.assert_close(mine, plain, **CLOSE)


def test_concatenation_is_split_into_a_sum() -> None:
    conv = nn.Conv2d(9, 5, 1)
    parts = [torch.randn(2, width, 4, 4) for width in (2, 3, 4)]
    split = fold.split_conv1x1(conv, [2, 3, 4])
    total = sum(part_conv(part) for part_conv, part in zip(split, parts, strict=True))
    torch.testing.assert_close(total, conv(torch.cat(parts, dim=1)), **CLOSE)
    assert [part.bias is not None for part in split] == [True, False, False]


def test_coordinates_become_a_constant_map() -> None:
    block = randomised(CoordConv(6))
    conv, constant = fold.split_coordinates(fold.fold_block(block.conv1), 4, 5)
    x = torch.randn(2, 6, 4, 5)
    assert conv.in_channels == 6
    assert constant.shape == (1, 6, 4, 5)
    torch.testing.assert_close(F.relu(conv(x) + constant), block(x), **CLOSE)


@pytest.mark.parametrize("width_of_words", [16, 12])
def test_position_codes_move_into_biases(width_of_words: int) -> None:
    widths = None if width_of_words == 16 else width_of_words
    attention = nn.MultiheadAttention(16, 4, kdim=widths, vdim=widths, batch_first=True).eval()
    nn.init.normal_(attention.in_proj_bias)
    pixels, words = torch.randn(2, 9, 16), torch.randn(2, 5, width_of_words)
    pixels_code, words_code = torch.randn(9, 16), torch.randn(5, width_of_words)
    padding = torch.tensor([[False] * 5, [False, False, True, True, True]])
    expected, _ = attention(
        pixels + pixels_code, words + words_code, words, key_padding_mask=padding
    )
    folded = FoldedAttention(attention, pixels_code, words_code)
    ignore = torch.where(padding, -30000.0, 0.0)[:, None, None, :]
    torch.testing.assert_close(folded(pixels, words, ignore), expected, **CLOSE)


@pytest.mark.parametrize("size", [(2, 2), (2, 5), (3, 4), (13, 13)])
def test_doubling_and_convolution_change_places(size: tuple[int, int]) -> None:
    conv = nn.Conv2d(5, 6, 3, padding=1)
    x = torch.randn(2, 5, *size)
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(UpsampledConv(conv)(x), conv(doubled), **CLOSE)


@pytest.mark.parametrize("grid", [1, 2, 3, 13])
def test_doubling_and_convolution_are_products_of_matrices(grid: int) -> None:
    conv = nn.Conv2d(5, 6, 3, padding=1)
    x = torch.randn(2, 5, grid, grid)
    doubled = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    found = UpsampledRows(conv, grid)(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found, conv(doubled).flatten(2).transpose(1, 2), **CLOSE)


@pytest.mark.parametrize(("width", "grid"), [(NARROW, 3), (NARROW + 2, 3), (18, 3), (16, 3)])
def test_both_doublings_where_their_form_changes(width: int, grid: int) -> None:
    first, second = (
        nn.Conv2d(width, width, 3, padding=1),
        nn.Conv2d(width, width // 2, 3, padding=1),
    )
    x = torch.randn(2, width, grid, grid)
    plain = x
    for conv in (first, second):
        plain = F.interpolate(plain, scale_factor=2, mode="bilinear", align_corners=False)
        plain = F.relu(conv(plain))
    found = Doublings(first, second, grid)(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(found, plain.flatten(2), **CLOSE)


def test_last_convolution_moves_into_the_filter() -> None:
    model = randomised(Cris(CrisConfig.tiny()))
    pixels, sentence = torch.randn(3, 16, 16, 16), torch.randn(3, 32)
    filters = model.proj.txt(sentence)
    features = model.proj.last(pixels)
    grouped = F.conv2d(
        features.reshape(1, 48, 16, 16),
        filters[:, :-1].reshape(3, 16, 3, 3),
        filters[:, -1],
        padding=1,
        groups=3,
    )
    torch.testing.assert_close(
        FilterHead(model)(pixels.flatten(2), sentence), grouped.reshape(3, 1, 16, 16), **CLOSE
    )


def tokens(count: int, length: int) -> Tensor:
    batch = torch.zeros(count, length, dtype=torch.int64)
    for row in range(count):
        batch[row, : row + 3] = torch.tensor([49406, *range(300, 301 + row), 49407])
    return batch


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CrisConfig.tiny(**changes), id=name)
        for name, changes in {
            "plain": {},
            "g-ref": {"word_len": 22, "decoder_layers": 3},
            "no-decoder": {"decoder_layers": 0},
            "no-head": {"contrastive": False},
            "neither": {"contrastive": False, "decoder_layers": 0},
            "widths": {"text_width": 48, "text_heads": 3, "embed_dim": 24},
            "size": {"input_size": 96, "pool_grid": 7},
            "wide": {"neck_width": NARROW + 4},
            "wide-neither": {"neck_width": NARROW + 4, "contrastive": False, "decoder_layers": 0},
        }.items()
    ],
)
def test_three_stages_are_the_model(config: CrisConfig) -> None:
    model = randomised(Cris(config))
    stages = build_stages(model)
    images = torch.randn(3, 3, config.input_size, config.input_size)
    text = tokens(3, config.word_len)
    with torch.no_grad():
        features = stages.image_encoder(images)
        each = stages.mask_decoder(*stages.text_encoder(text), *features)
        torch.testing.assert_close(each, model(images, text), **CLOSE)
        # One image, three expressions: its features are broadcast.
        first = [feature[:1] for feature in features]
        shared = stages.mask_decoder(*stages.text_encoder(text), *first)
        repeated = images[:1].expand(3, -1, -1, -1)
        torch.testing.assert_close(shared, model(repeated, text), **CLOSE)


def test_the_model_itself_is_left_alone() -> None:
    model = randomised(Cris(CrisConfig.tiny()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    build_stages(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
