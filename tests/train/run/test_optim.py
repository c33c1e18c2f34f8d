"""Which parameter moves how fast and when."""

import pytest
import torch

from cris_train.model import Cris, CrisConfig
from cris_train.run.optim import UNUSED, optimizer, parameter_groups, rate_factor, scheduler
from cris_train.run.recipe import Schedule, TrainConfig

TINY = CrisConfig.tiny()


def test_clip_moves_slower_except_its_position_embeddings() -> None:
    model = Cris(TINY)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates: dict[str, float] = {}
    for group in parameter_groups(model, TrainConfig(model=TINY)):
        for parameter in group["params"]:
            assert names[id(parameter)] not in rates
            rates[names[id(parameter)]] = group["lr"]
    assert rates.keys() == set(names.values()) - {UNUSED}
    fast = {name for name, rate in rates.items() if rate == 1e-4}
    slow = {name for name, rate in rates.items() if rate == pytest.approx(1e-5)}
    assert fast | slow == rates.keys()
    assert {name for name in fast if name.startswith("backbone.")} == {
        "backbone.positional_embedding",
        "backbone.visual.attnpool.positional_embedding",
    }
    assert not {name for name in slow if not name.startswith("backbone.")}


def test_decay_spares_norms_biases_and_embeddings() -> None:
    model = Cris(TINY)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, TrainConfig(model=TINY, weight_decay=0.1))
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    spared = {names[id(p)] for g in groups if not g["weight_decay"] for p in g["params"]}
    assert "neck.aggr.0.weight" in decayed
    assert {"neck.aggr.1.weight", "proj.txt.bias", "backbone.token_embedding.weight"} <= spared


def test_without_decay_it_is_adam() -> None:
    torch.manual_seed(0)
    model = Cris(TINY)
    mine = optimizer(model, TrainConfig(model=TINY, backbone_factor=1.0))
    # A copy of the parameters under torch's own Adam.
    parameters = [p for group in mine.param_groups for p in group["params"]]
    copies = [p.detach().clone().requires_grad_() for p in parameters]
    theirs = torch.optim.Adam(copies, lr=1e-4, weight_decay=0.0, fused=True)
    for _ in range(3):
        for parameter, copy in zip(parameters, copies, strict=True):
            parameter.grad = torch.randn_like(parameter)
            copy.grad = parameter.grad.clone()
        mine.step()
        theirs.step()
    assert all(map(torch.equal, parameters, copies))


def test_step_schedule_drops_after_whole_epochs() -> None:
    factor = rate_factor(TrainConfig(model=TINY), total_steps=500, steps_per_epoch=10)
    assert [factor(step) for step in (0, 349, 350, 499)] == [1.0, 1.0, 0.1, 0.1]
    twice = TrainConfig(model=TINY, decay_epochs=(1, 2), decay_factor=0.5, warmup_steps=4)
    factor = rate_factor(twice, total_steps=30, steps_per_epoch=10)
    assert [factor(step) for step in (0, 3, 9, 10, 20)] == [0.25, 1.0, 1.0, 0.5, 0.25]


def test_cosine_schedule_rises_and_falls() -> None:
    config = TrainConfig(model=TINY, schedule=Schedule.COSINE, warmup_steps=10, final_factor=0.1)
    factor = rate_factor(config, total_steps=110, steps_per_epoch=7)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == factor(200) == pytest.approx(0.1)


def test_clip_has_the_whole_rate_at_first_where_that_is_asked() -> None:
    model = Cris(TINY)
    config = TrainConfig(model=TINY, full_rate_epochs=1, decay_epochs=(2,))
    moved = optimizer(model, config)
    rates = scheduler(moved, model, config, 9, 3)
    seen = []
    for _ in range(9):
        seen.append([group["lr"] for group in moved.param_groups])
        moved.step()
        rates.step()
    # Two groups of CLIP's part, then two of the rest.
    assert seen[0] == seen[2] == pytest.approx([1e-4] * 4)
    assert seen[3] == seen[5] == pytest.approx([1e-5] * 2 + [1e-4] * 2)
    assert seen[6] == seen[8] == pytest.approx([1e-6] * 2 + [1e-5] * 2)
