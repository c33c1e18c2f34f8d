"""PyTorch's other ways to run the model, on the CPU: the same logits, as far as their types go."""

import numpy as np
import pytest
import torch

from cris_bench.contestants.pytorch import COMPILED, ON_CPU, ON_CUDA, SHARED, Eager, Variant, peers
from cris_bench.options import BenchOptions
from cris_bench.place import Place
from cris_bench.scopes.entries import Field, Shape
from cris_bench.scopes.inputs import random_image, random_tokens
from cris_bench.scopes.races import Results, race
from cris_deploy.errors import BackendError
from cris_deploy.execution.backends import Compute, Device
from cris_train.model import Cris, CrisConfig
from tests.helpers.models import randomised


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return randomised(Cris(CrisConfig.tiny(decoder_layers=1)))


def inputs(model):
    config = model.config
    return random_image(1, config.input_size), random_tokens(1, config.word_len, 49408)


@pytest.mark.parametrize(
    "variant",
    [
        # On a CPU autocast knows bfloat16 best; what is tested are the switches, not the type.
        Variant("autocast", Compute.BF16, autocast=torch.bfloat16),
        Variant("channels last", Compute.FP32, channels_last=True),
        Variant("half", Compute.FP16, half=True, channels_last=True),
    ],
    ids=lambda variant: variant.name,
)
def test_variants_give_the_models_logits(model, variant):
    given = inputs(model)
    expected = Eager(model, None, Place(Device.CPU)).bind(*given).logits()
    (peer,) = peers(model, [variant], Place(Device.CPU))
    found = peer.bind(*given).logits()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert found.dtype == np.float32
    assert error < {Compute.FP32: 1e-5, Compute.FP16: 0.01, Compute.BF16: 0.05}[variant.compute]
    assert next(model.parameters()).dtype == torch.float32  # the baseline's own is left alone


def test_a_peer_that_fails_is_noted_and_costs_nobody_his_times(model, monkeypatch):
    (peer,) = peers(model, [COMPILED], Place(Device.CPU))

    def broken(*_):
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(peer, "_model", broken)
    with pytest.raises(BackendError, match=r"compile fp32 failed \(no compiler\).*--no-peers"):
        peer.bind(*inputs(model))
    config = model.config
    eager = Eager(model, None, Place(Device.CPU))
    field = Field(eager, [peer], [], config.input_size, config.word_len, 49408)
    results = Results()
    options = BenchOptions(scopes=("network",), warmup=0, iterations=1)
    race(field, Shape(1, 1), options, results, lambda: None)
    assert [row.name for row in results.rows] == [eager.identity.name]
    (absent,) = field.absent
    assert absent.name == "torch.compile fp32, 1 images x 1 expressions"
    assert "no compiler" in absent.install


def test_variants_share_weights_and_have_names_of_their_own(model):
    found = peers(model, [v for v in ON_CPU if v.mode is None], Place(Device.CPU))
    assert len({id(peer._model) for peer in found}) == 2  # as they are, and channels last
    for variants in (ON_CPU, ON_CUDA):
        assert len({variant.name for variant in variants}) == len(variants)


def test_an_image_is_shared_by_its_expressions(model):
    image, _ = inputs(model)
    tokens = random_tokens(3, model.config.word_len, 49408)
    one_by_one = Eager(model, None, Place(Device.CPU))
    expected = [one_by_one.bind(image, tokens[n : n + 1]).logits() for n in range(3)]
    (shared,) = peers(model, [SHARED], Place(Device.CPU))
    np.testing.assert_allclose(
        shared.bind(image, tokens).logits(), np.concatenate(expected), atol=1e-4
    )
