"""What learns: the model, its loss and its optimiser, one step at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cris_deploy.execution.backends import Compute
from cris_train import checkpoint
from cris_train.autocast import AUTOCAST
from cris_train.data.batch import Batch
from cris_train.errors import TrainingError
from cris_train.model import Cris
from cris_train.model.pretrained import load_clip
from cris_train.run.course import Course, parts_of
from cris_train.run.distributed import Process
from cris_train.run.losses import TextToPixelLoss
from cris_train.run.optim import optimizer, scheduler, set_rates
from cris_train.run.recipe import TrainConfig
from cris_train.run.recompute import recompute_activations
from cris_train.run.sync_norm import synchronised

# Below this the gradients overflow float16 without being scaled up at all.
LEAST_SCALE = 1.0


class NotFiniteError(TrainingError):
    """The loss or the gradient is NaN or infinite; the weights are those before the step."""


class Learner:
    """A model, and what changes it.

    Attributes:
        model: The weights that are trained.
        autocast: Type of mixed precision; None for float32.
    """

    def __init__(self, config: TrainConfig, course: Course, process: Process) -> None:
        self.config, self.process = config, process
        self.autocast = AUTOCAST[config.precision]
        if process.device.type == "cuda":
            # Shapes stay the same from step to step, so trying out kernels pays.
            torch.backends.cudnn.benchmark = not config.deterministic
        torch.use_deterministic_algorithms(
            config.deterministic and process.device.type == "cuda", warn_only=True
        )
        self.model = _first_model(config, process).to(process.device)
        self.model.to(memory_format=torch.channels_last)
        self.ema = None
        if config.ema:
            average = cast(Any, get_ema_multi_avg_fn)(config.ema)
            self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        together = process.world > 1
        if together and config.sync_batch_norm:
            synchronised(self.model, process.device)
        if config.recompute:
            recompute_activations(self.model)
        self.optimizer = optimizer(self.model, config)
        self.scheduler = scheduler(
            self.optimizer, self.model, config, course.steps, course.steps_per_epoch[0]
        )
        self.scaler = torch.amp.GradScaler(
            process.device.type, enabled=config.precision is Compute.FP16
        )
        self._loss = TextToPixelLoss()
        self._forward: nn.Module = self.model
        if config.compile:
            # The compiled one shares the parameters; validation, with its ever other shapes, stays
            # on the plain one.
            self._forward = cast(nn.Module, torch.compile(self.model))
        if together:
            self._forward = DistributedDataParallel(
                self._forward,
                device_ids=[process.device] if process.device.type == "cuda" else None,
            )

    @property
    def judged(self) -> Cris:
        """The model to measure and to keep: the average where there is one; in evaluation mode."""
        return cast(Cris, self.model if self.ema is None else self.ema.module).eval()

    def step(self, batch: Batch, number: int) -> float:
        """One optimiser step on this process's share of a batch.

        Args:
            batch: On the device.
            number: Of the step, from 0: dropout is drawn from seed, step and process alone, so that
                a run that goes on draws what one without a pause does.

        Returns:
            Mean loss over the global batch.

        Raises:
            NotFiniteError: the loss or the gradient is not finite.
            TrainingError: the device's memory is full, or torch.compile failed.
        """
        seeds = np.random.SeedSequence((self.config.seed, number, self.process.rank))
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.model.train()
        try:
            loss = self._gradient(batch)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of {self.process.device} is full: raise accumulate (now "
                f"{self.config.accumulate}), set recompute=true or precision=bf16"
            ) from error
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise
            reason = " ".join(str(error).splitlines()[:2])  # the first names the back end
            raise TrainingError(
                f"torch.compile failed: {reason}; on a CPU it needs a C++ compiler (g++). Set "
                f"compile=false to do without"
            ) from error
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        mean = self._checked(batch, loss, norm)
        if self.config.clip_norm:
            clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise NotFiniteError(
                "the gradients overflow float16 step after step: set precision=bf16 or fp32, or "
                f"lower learning_rate (now {self.config.learning_rate})"
            )
        with warnings.catch_warnings():
            # Loss scaling may pass over the first steps; the schedule counts them all the same.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return mean

    def _gradient(self, batch: Batch) -> Tensor:
        """Fill the gradients; returns the mean loss of this process's share, () float32."""
        self.optimizer.zero_grad(set_to_none=True)
        parts = parts_of(batch, self.config.accumulate)
        losses = []
        for index, part in enumerate(parts):
            image = part.image.contiguous(memory_format=torch.channels_last)
            with self._exchanging(index == len(parts) - 1):
                with torch.autocast(
                    self.process.device.type, self.autocast, enabled=self.autocast is not None
                ):
                    logits = self._forward(image, part.tokens)
                loss = self._loss(logits, part.target) / len(parts)
                self.scaler.scale(loss).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once a step, with the last part."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self._forward.no_sync())

    def _checked(self, batch: Batch, loss: Tensor, norm: Tensor) -> float:
        """Mean loss over all processes, if it and the gradient are finite."""
        rows = self.process.all_rows(torch.stack([loss, norm])).tolist()
        bad = [rank for rank, row in enumerate(rows) if not math.isfinite(row[0])]
        # With loss scaling an infinite gradient is part of the search for the scale.
        if not bad and (self.scaler.is_enabled() or all(math.isfinite(row[1]) for row in rows)):
            return math.fsum(row[0] for row in rows) / len(rows)
        names = self.process.all_of(batch.names)
        what = f"the loss is {rows[bad[0]][0]}" if bad else f"the gradient's norm is {rows[0][1]}"
        shown = [name for rank in (bad or range(len(names))) for name in names[rank]]
        raise NotFiniteError(
            f"{what}; the batch: {', '.join(shown)}. Lower learning_rate (now "
            f"{self.config.learning_rate}), or look at these pictures"
        )

    def state(self) -> dict[str, Any]:
        """What goes on from here needs, besides the weights: tensors and plain values."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
        }

    def load_state(self, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """The inverse of `state`; `weights` are the model's, by name without prefix."""
        self.model.load_state_dict(weights, strict=True)
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.scheduler.load_state_dict(dict(state["scheduler"]))
        set_rates(self.scheduler)  # `epochs` may have changed
        self.scaler.load_state_dict(dict(state["scaler"]))
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])


def _first_model(config: TrainConfig, process: Process) -> Cris:
    """The model as training starts, the same in every process.

    Raises:
        InputError: CLIP's weights cannot be had, or are of another shape.
        CheckpointError: `init` cannot be used, or is of another shape.
    """
    torch.manual_seed(config.seed)
    if process.rank > 0:
        distributed.barrier()  # the first one may have to download CLIP
    if config.init is not None:
        given = checkpoint.load(config.init)
        model = checkpoint.build(replace(given, config=config.model))
    else:
        model = Cris(config.model)
        if config.clip is not None:
            load_clip(model, config.clip)
    if process.rank == 0 and process.world > 1:
        distributed.barrier()
    # Not used by CRIS: without a gradient it does not hold up the other processes.
    model.backbone.logit_scale.requires_grad_(False)
    return model
