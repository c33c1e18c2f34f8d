"""Batch norm over processes on a CPU: alone it is PyTorch's; two of them are in test_parallel."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel

from cris_train.model import Cris, CrisConfig
from cris_train.run.recompute import recompute_activations
from cris_train.run.sync_norm import CpuSyncBatchNorm, synchronised
from tests.helpers.models import randomised

CPU = torch.device("cpu")
DATA = Path(__file__).parents[2] / "data"


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path: Path = tmp_path_factory.mktemp("group") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5, 7)])
def test_is_batch_norm(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain = randomised(kind(4)).requires_grad_(True).train()
    synced = nn.Sequential(randomised(kind(4)).requires_grad_(True).train())
    synchronised(synced, CPU)
    assert isinstance(synced[0], CpuSyncBatchNorm)
    # Far from zero, where a variance of E[x^2] - E[x]^2 would be off by 1e-3 and more.
    x = torch.randn(shape) + 100.0
    weight = torch.randn(shape)
    results: list[list[Tensor]] = []
    for module, state in ((plain, plain), (synced, synced[0])):
        given = x.clone().requires_grad_(True)
        out = module(given)
        (out * weight).sum().backward()
        results.append(
            [
                out,
                given.grad,
                state.weight.grad,
                state.bias.grad,
                *dict(state.named_buffers()).values(),
            ]
        )
    for theirs, ours in zip(*results, strict=True):
        # Both are float32 sums of numbers near 100 in orders of their own: 1e-7 * 100, relative to
        # a deviation of 1.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(synced.eval()(x), plain.eval()(x), rtol=1e-6, atol=1e-6)


def test_bfloat16_is_normalised_in_float32() -> None:
    norm = CpuSyncBatchNorm(3)
    x = (torch.randn(4, 3, 2, 2) + 50).bfloat16()
    out = norm(x)
    assert out.dtype == torch.bfloat16
    expected = nn.BatchNorm2d(3)(x.float())
    torch.testing.assert_close(out.float(), expected, rtol=0.01, atol=0.01)  # bfloat16 has 8 bits


def test_full_size_layout_is_the_references_in_every_dress() -> None:
    """Synchronised, recomputing, averaged: what is saved has the reference's names and shapes."""
    wanted = json.loads((DATA / "state_dict_rn50.json").read_text())
    with torch.device("meta"):
        model = Cris(CrisConfig.rn50())
        average = AveragedModel(model, use_buffers=True)
        synchronised(model, CPU)
        recompute_activations(model)
    for dressed in (model, average.module):
        found = {k: list(v.shape) for k, v in dressed.state_dict().items()}
        assert found == {name: list(shape) for name, shape in wanted.items()}


def test_replaces_every_norm_and_no_name() -> None:
    model = Cris(CrisConfig.tiny())
    before = model.state_dict()
    parameters = {id(p) for p in model.parameters()}
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert norms
    synchronised(model, CPU)
    assert not [m for m in model.modules() if type(m) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    assert len([m for m in model.modules() if isinstance(m, CpuSyncBatchNorm)]) == len(norms)
    assert list(model.state_dict()) == list(before)
    assert {id(p) for p in model.parameters()} == parameters
