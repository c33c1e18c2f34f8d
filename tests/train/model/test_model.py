"""The model: parameter counts, names, shapes, and the parts against plain forms of themselves."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from cris_deploy.errors import InputError
from cris_train.errors import CheckpointError
from cris_train.model import TABLE_1, Cris, CrisConfig
from cris_train.model.backbone import DenseAttentionPool
from cris_train.model.positions import coordinates, pixels_code, words_code
from cris_train.model.projector import dynamic_conv3x3

DATA = Path(__file__).parents[2] / "data"


def reference_shapes(architecture: str) -> dict[str, list[int]]:
    return json.loads((DATA / f"state_dict_{architecture}.json").read_text())


def meta_model(config: CrisConfig) -> Cris:
    with torch.device("meta"):
        return Cris(config)


@pytest.mark.parametrize("row", TABLE_1, ids=lambda r: f"{r.contrastive}-{r.decoder_layers}")
def test_parameter_counts_of_table_1(row) -> None:
    count = sum(parameter.numel() for parameter in meta_model(row.config).parameters())
    assert round(count / 1e6, 2) == row.parameters_millions


@pytest.mark.parametrize(
    ("architecture", "config"), [("rn50", CrisConfig.rn50()), ("rn101", CrisConfig.rn101())]
)
def test_names_and_shapes_are_the_references(architecture: str, config: CrisConfig) -> None:
    shapes = reference_shapes(architecture)
    mine = {name: list(value.shape) for name, value in meta_model(config).state_dict().items()}
    assert mine == shapes


@pytest.mark.parametrize(
    ("architecture", "config"), [("rn50", CrisConfig.rn50()), ("rn101", CrisConfig.rn101())]
)
def test_configuration_is_read_off_shapes(architecture: str, config: CrisConfig) -> None:
    assert CrisConfig.from_shapes(reference_shapes(architecture)) == config
    assert config.architecture == architecture.upper()


@pytest.mark.parametrize("row", TABLE_1, ids=lambda r: f"{r.contrastive}-{r.decoder_layers}")
def test_ablations_are_read_off_shapes(row) -> None:
    shapes = {name: value.shape for name, value in meta_model(row.config).state_dict().items()}
    assert CrisConfig.from_shapes(shapes) == row.config


def test_shapes_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not a CRIS checkpoint"):
        CrisConfig.from_shapes({"conv1.weight": [64, 3, 7, 7]})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"input_size": 100}, "input_size"),
        ({"input_size": 416.0}, "input_size"),
        ({"word_len": 2}, "word_len"),
        ({"word_len": 78}, "word_len"),
        ({"decoder_layers": -1}, "decoder_layers"),
        ({"neck_width": 30}, "neck_width"),
        ({"image_layers": (1, 2)}, "image_layers"),
        ({"dropout": 1.0}, "dropout"),
        ({"contrastive": 1}, "contrastive"),
        ({"text_heads": 3}, "text_width"),
    ],
)
def test_configuration_names_the_bad_field(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        CrisConfig.rn50(**changes)


def test_positions() -> None:
    words = words_code(5, 8)
    # Written out: sin and cos of p / 10000^(2i/d).
    assert words[3, 0] == pytest.approx(torch.sin(torch.tensor(3.0)))
    assert words[3, 3] == pytest.approx(torch.cos(torch.tensor(3.0 / 10000 ** (2 / 8))))
    pixels = pixels_code(3, 4, 8).reshape(3, 4, 8)
    assert torch.equal(pixels[0, :, :4], pixels[2, :, :4])  # the first half knows x alone
    assert torch.equal(pixels[:, 0, 4:], pixels[:, 3, 4:])  # the second half knows y alone
    assert torch.equal(pixels[1, 3, :4], words_code(4, 4)[3])
    where = coordinates(3, 5)
    assert where[0, 0, 1].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert where[0, 1, :, 2].tolist() == [-1, 0, 1]


def test_dynamic_convolution_is_a_grouped_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 8, 5, 7, generator=generator)
    kernels = torch.randn(3, 72, generator=generator)
    bias = torch.randn(3, generator=generator)
    grouped = F.conv2d(
        features.reshape(1, 24, 5, 7), kernels.reshape(3, 8, 3, 3), bias, padding=1, groups=3
    ).reshape(3, 1, 5, 7)
    # float32 sums of 72 products of order one
    torch.testing.assert_close(dynamic_conv3x3(features, kernels, bias), grouped, atol=2e-5, rtol=0)


def test_dense_attention_pool_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    pool = DenseAttentionPool(grid=3, channels=16, heads=4, channels_out=8).eval()
    x = torch.randn(2, 16, 3, 3)
    tokens = x.flatten(2).permute(2, 0, 1) + pool.positional_embedding[1:, None]
    attended, _ = F.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        16,
        4,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        training=False,
        need_weights=False,
    )
    expected = F.relu(attended.permute(1, 2, 0).reshape(2, 8, 3, 3) + pool.connect(x))
    with torch.no_grad():
        torch.testing.assert_close(pool(x), expected, atol=1e-6, rtol=1e-5)


def test_padding_has_no_say_and_words_do() -> None:
    torch.manual_seed(0)
    model = Cris(CrisConfig.tiny()).eval()
    image = torch.randn(1, 3, 64, 64)
    tokens = torch.zeros(1, 17, dtype=torch.int64)
    tokens[0, :4] = torch.tensor([49406, 320, 2368, 49407])
    other = tokens.clone()
    other[0, 2] = 1929
    with torch.no_grad():
        base = model(image, tokens)
        # A row of nothing but padding more changes nothing: key 16 is masked in both.
        model.backbone.positional_embedding.data[16] += 1.0
        torch.testing.assert_close(model(image, tokens), base, atol=1e-5, rtol=0)
        assert (model(image, other) - base).abs().max() > 1e-4


def test_shapes_for_every_depth_and_head() -> None:
    for layers in range(5):
        for contrastive in (True, False):
            config = CrisConfig.tiny(decoder_layers=layers, contrastive=contrastive)
            logits = Cris(config).eval()(
                torch.zeros(2, 3, 64, 64), torch.ones(2, 17, dtype=torch.int64)
            )
            assert logits.shape == (2, 1, 16, 16)


def test_positions_resized_by_products_are_those_of_interpolate() -> None:
    """The way that repeats to the bit on a GPU, forwards and backwards."""
    pool = Cris(CrisConfig.tiny(pool_grid=5)).backbone.visual.attnpool.double()
    upstream = torch.randn(7 * 13, 256, dtype=torch.float64)
    found = []
    for exact in (False, True):
        torch.use_deterministic_algorithms(exact)
        try:
            resized = pool.position_embedding(7, 13)
            (gradient,) = torch.autograd.grad(resized, pool.positional_embedding, upstream)
        finally:
            torch.use_deterministic_algorithms(False)
        found.append((resized, gradient))
    for usual, exact_one in zip(*found, strict=True):
        torch.testing.assert_close(exact_one, usual, rtol=1e-12, atol=1e-12)
