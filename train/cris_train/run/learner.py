"""What learns: the model, its loss and its optimiser, one step at a time."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
from cris_train.run.seen import NotFiniteError, Pending, Seen, mean
from cris_train.run.sync_norm import synchronised
from cris_train.run.towers import crop_loss

# So many skipped steps in a row halve a loss scale of 2 ** 16 to where it scales down.
MOST_SKIPPED = 20


def repeat_exactly(wanted: bool) -> None:
    """Let a GPU use only kernels that repeat to the bit; one that has none raises RuntimeError.

    Not merely a warning: then memory-efficient attention would take its inexact backward pass.
    """
    if wanted:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)


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
        repeat_exactly(config.deterministic and process.device.type == "cuda")
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
        self._loss = TextToPixelLoss(config.dice)
        self._pending: Pending | None = None
        self._skipped = 0  # steps in a row, by the loss scaler
        # 1 once something was not finite.
        self._bad = torch.zeros((), dtype=torch.float32, device=process.device)
        # A pass whose step is skipped leaves nothing behind, not in batch norm's averages either.
        skips = self.scaler.is_enabled()
        self._averages = [b for b in self.model.buffers() if skips and b.is_floating_point()]
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

    def step(self, batch: Batch, number: int) -> Seen | None:
        """One optimiser step on this process's share of a batch.

        What came of it is looked at (`look`) with the next step, when the device has it anyway:
        nothing here waits for the device. The weights are safe meanwhile (`_move`).

        Args:
            batch: On the device.
            number: Of the step, from 0: dropout is drawn from seed, step and process alone, so that
                a run that goes on draws what one without a pause does.

        Returns:
            What came of the step before, if that was not looked at yet.

        Raises:
            NotFiniteError: of the step before, as `look`.
            TrainingError: the device's memory is full, torch.compile failed, or an operation cannot
                be done as `deterministic` wants it.
        """
        seeds = np.random.SeedSequence((self.config.seed, number, self.process.rank))
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.model.train()
        before = [average.clone() for average in self._averages]
        try:
            with self._attention():  # backward, too: `recompute` goes forward there once more
                loss = self._gradient(batch)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"the memory of {self.process.device} is full: raise accumulate (now "
                f"{self.config.accumulate}), set recompute=true or precision=bf16"
            ) from error
        except RuntimeError as error:
            if self.config.deterministic and "deterministic" in str(error):
                raise TrainingError(
                    f"deterministic=true: {str(error).splitlines()[0]} Set deterministic=false, or "
                    f"train on a CPU"
                ) from error
            if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
                raise
            reason = " ".join(str(error).splitlines()[:2])  # the first names the back end
            raise TrainingError(
                f"torch.compile failed: {reason}; on a CPU it needs a C++ compiler (g++). Set "
                f"compile=false to do without"
            ) from error
        losses = self.process.all_rows(loss[None])[:, 0]
        norm = self._move(losses)
        for average, value in zip(self._averages, before, strict=True):
            average.copy_(torch.where(norm.isfinite(), average, value))
        with warnings.catch_warnings():
            # Loss scaling may pass over the first steps; the schedule counts them all the same.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        of_before = self.look()
        self._pending = Pending(number, losses, norm, batch.names)
        return of_before

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
                    if part.crops is not None:
                        loss = crop_loss(self.model.backbone, part, part.crops)
                    else:
                        loss = self._loss(self._forward(image, part.tokens), part.target)
                loss = loss / len(parts)
                cast(Any, self.scaler.scale(loss)).backward()
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    def _attention(self) -> AbstractContextManager[None]:
        """On a CPU in mixed precision: attention as products and a softmax, one after the other.

        The backward pass of PyTorch's fused one is slow there: a small model's step takes twice as
        long with it (train/README.md, "Precision").
        """
        if self.autocast is None or self.process.device.type != "cpu":
            return nullcontext()
        return cast(AbstractContextManager[None], sdpa_kernel(SDPBackend.MATH))

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Gradients are averaged over the processes once a step, with the last part."""
        if last or not isinstance(self._forward, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self._forward.no_sync())

    def look(self) -> Seen | None:
        """What came of the step that was not looked at yet, if there is one.

        Raises:
            NotFiniteError: its loss or gradient is not finite and no loss scaler looks after that,
                or this happened `MOST_SKIPPED` times in a row.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return None
        losses, norm = pending.read()
        if math.isfinite(norm):
            self._skipped = 0
            return Seen(mean(losses), skipped=False)
        self._skipped += 1
        if self.scaler.is_enabled() and self._skipped < MOST_SKIPPED:
            return Seen(mean(losses), skipped=True)
        bad = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        what = f"the loss is {losses[bad[0]]}" if bad else f"the gradient's norm is {norm}"
        names = self.process.all_of(pending.names)
        shown = [name for rank in (bad or range(len(names))) for name in names[rank]]
        remedy = f"Lower learning_rate (now {self.config.learning_rate}), or look at these pictures"
        if self.scaler.is_enabled():
            what = f"{what}, {self._skipped} times in a row, with ever smaller loss scales"
            remedy = f"Set precision=bf16 or fp32. {remedy}"
        raise NotFiniteError(pending.number, f"{what}; the batch: {', '.join(shown)}. {remedy}")

    def _move(self, losses: Tensor) -> Tensor:
        """Change the weights by the gradients, unless something is not finite; the norm, ().

        `losses` (world,) are all processes': one that is not finite makes the gradient so in each
        of them, which then do the same.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        # Infinity keeps its gradient finite where the sigmoid is flat. Adding 0 changes nothing.
        gradients[0].add_((losses * 0).sum())
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm(gradients)
        if self.config.clip_norm:
            clip_grads_with_norm_(parameters, self.config.clip_norm, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return norm
        # What a loss scaler tells a fused optimiser, on the device: leave the weights. It stays so
        # until somebody looks.
        self._bad = torch.maximum(self._bad, (~norm.isfinite()).to(self._bad.dtype))
        cast(Any, self.optimizer).found_inf = self._bad
        self.optimizer.step()
        return norm

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
