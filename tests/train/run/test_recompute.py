"""Activation checkpointing gives the same numbers, and keeps less."""

import pytest
import torch
from torch import Tensor

from cris_train.model import Cris, CrisConfig
from cris_train.run.recompute import recompute_activations

# Dropout on: the second pass must draw what the first one drew.
SHAPE = CrisConfig.tiny(dropout=0.5)


def one_step(recomputing: bool) -> tuple[Cris, Tensor, int]:
    """Model with gradients, logits, and the bytes that were kept for the gradient."""
    torch.manual_seed(0)
    model = Cris(SHAPE).train()
    if recomputing:
        recompute_activations(model)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    image, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 99, (4, 17))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(image, tokens)
    logits.square().mean().backward()
    return model, logits, sum(kept.values())


def test_same_step_with_less_memory() -> None:
    (plain, logits, all_kept), (lean, again, kept) = one_step(False), one_step(True)
    assert torch.equal(logits, again)
    others = dict(lean.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.grad is None:
            assert others[name].grad is None
        else:
            assert torch.equal(parameter.grad, others[name].grad), name
    # Running statistics, too: a batch that is seen twice counts once.
    buffers = dict(lean.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    weights = sum(p.untyped_storage().nbytes() for p in plain.parameters())
    assert kept < all_kept
    assert kept - weights < (all_kept - weights) / 2


def test_names_stay_and_evaluation_is_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, lean = Cris(SHAPE).eval(), Cris(SHAPE).eval()
    recompute_activations(lean)
    lean.load_state_dict(plain.state_dict(), strict=True)
    monkeypatch.setattr("cris_train.run.recompute.checkpoint", None)
    image, tokens = torch.randn(1, 3, 64, 64), torch.randint(1, 99, (1, 17))
    with torch.inference_mode():
        assert torch.equal(plain(image, tokens), lean(image, tokens))
