"""The optimiser: which parameter moves how fast, and when."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cris_train.model import Cris
from cris_train.run.recipe import Schedule, TrainConfig

# Part of CLIP and of every checkpoint; CRIS does not use it, so it has no gradient.
UNUSED = "backbone.logit_scale"


def optimizer(model: Cris, config: TrainConfig) -> AdamW:
    """Adam over a model's parameters; with weight decay, decoupled from the gradient (AdamW)."""
    return AdamW(parameter_groups(model, config), lr=config.learning_rate, fused=True)


def parameter_groups(model: Cris, config: TrainConfig) -> list[dict[str, Any]]:
    """CLIP's parameters at their share of the rate; no decay on norms, biases, embeddings.

    Position embeddings run at the full rate: another input size than CLIP's moves them furthest.
    """
    groups = []
    for slow in (True, False):
        for decayed in (True, False):
            chosen = [
                parameter
                for name, parameter in model.named_parameters()
                if _slow(name) is slow
                and (parameter.ndim > 1 and "embedding" not in name) is decayed
                and name != UNUSED
            ]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr": config.learning_rate * (config.backbone_factor if slow else 1.0),
                        "weight_decay": config.weight_decay if decayed else 0.0,
                    }
                )
    return groups


def scheduler(
    optimizer: Optimizer, model: Cris, config: TrainConfig, steps: int, steps_per_epoch: int
) -> LambdaLR:
    """What moves the rates of `optimizer`, whose groups are `parameter_groups` of `model`."""
    usual = rate_factor(config, steps, steps_per_epoch)

    def of_clip(step: int) -> float:
        full = step < config.full_rate_epochs * steps_per_epoch
        return usual(step) / config.backbone_factor if full else usual(step)

    slow = {id(parameter) for name, parameter in model.named_parameters() if _slow(name)}
    return LambdaLR(
        optimizer,
        [of_clip if id(g["params"][0]) in slow else usual for g in optimizer.param_groups],
    )


def set_rates(scheduler: LambdaLR) -> None:
    """Give the next step the rates of this schedule, after a state of another one was loaded."""
    groups = zip(
        scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
    )
    for group, base, factor in groups:
        group["lr"] = base * factor(scheduler.last_epoch)


def rate_factor(
    config: TrainConfig, total_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """What the learning rate is multiplied by, as a function of the steps done."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule is Schedule.STEP:
            epochs = step // steps_per_epoch
            return config.decay_factor ** sum(epochs >= at for at in config.decay_epochs)
        span = max(1, total_steps - config.warmup_steps)
        progress = min(1.0, (step - config.warmup_steps) / span)
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.final_factor + (1.0 - config.final_factor) * cosine

    return factor


def _slow(name: str) -> bool:
    return name.startswith("backbone.") and "positional_embedding" not in name
