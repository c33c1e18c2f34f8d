"""The two published recipes by name: what the paper says, and what its implementation does.

`recipe: paper` or `recipe: reference` in a file stands for the values here; whatever the file or
the command line says besides goes before them. `train/README.md` has the places.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cris_deploy.errors import InputError

# The paper (section 4, implementation details) and the reference's configuration agree on these, or
# the paper is silent (one expression drawn for each object, no warm-up, no limit on the gradient,
# no weight decay).
_BOTH: Final = {
    "learning_rate": 1e-4,
    "weight_decay": 0.0,
    "schedule": "step",
    "decay_epochs": [35],
    "decay_factor": 0.1,
    "warmup_steps": 0,
    "clip_norm": 0.0,
    "epochs": 50,
    "images_per_batch": 64,
    "expressions_per_image": 1,
    "draw": "object",
    "sync_batch_norm": True,
    "threshold": 0.35,
}

RECIPES: Final[Mapping[str, Mapping[str, Any]]] = {
    # The paper names one rate for all parameters, pixels that are the object's or not (equation 9),
    # and no mixed precision.
    "paper": {
        **_BOTH,
        "backbone_factor": 1.0,
        "full_rate_epochs": 0,
        "target": "nearest",
        "precision": "fp32",
    },
    # Its implementation gives CLIP a tenth, but sets the scheduler up so that the first epoch has
    # the full rate; keeps the grey of a letterboxed mask's edge; and scales the loss for float16,
    # which skips a step whose gradient overflows.
    "reference": {
        **_BOTH,
        "backbone_factor": 0.1,
        "full_rate_epochs": 1,
        "target": "graded",
        "precision": "fp16",
    },
}
"""Recipe -> its settings, as plain values."""


def published(name: object) -> Mapping[str, Any]:
    """The settings of a recipe by its name.

    Raises:
        InputError: there is none of that name.
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise InputError(f"recipe is {name!r}, expected {' or '.join(RECIPES)}, or drop it")
    return RECIPES[name]
