"""One step after another: schedules, forward, backward, update."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training import distributed, schedules, sharding
from training.build import build, build_backbone
from training.checkpoint import CheckpointError
from training.config import Recipe, RecipeError
from training.devices import has_bf16
from training.models.backbone import Backbone
from training.objectives.base import Losses, Moment, Objective
from training.objectives.config import EsViTConfig
from training.optimizers import build_optimizer, clip_each

LR_BATCH = 256
Record = dict[str, float]


class Diverged(Exception):
    """The loss is no number any more; the message says where and what to try."""


class Trainer:
    """Steps through a recipe, with the other processes if there are any.

    Several processes compute what one would: all that depends on a batch as a whole does on the
    global one, batch normalisation too. Except for a ResNet's on a CPU: there each process
    normalises by its own share.

    Args:
        recipe: What to train; without `auto`.
        steps_per_epoch: Batches an epoch, on which the schedules depend.
        device: Where.
        images: Number of training images, on which their order depends; None outside of a run.

    Raises:
        RecipeError: The batch has no equal parts for the processes.
    """

    def __init__(
        self,
        recipe: Recipe,
        steps_per_epoch: int,
        device: torch.device | str = "cpu",
        images: int | None = None,
    ) -> None:
        self.recipe = recipe
        self.images = images
        self.steps_per_epoch = steps_per_epoch
        self.steps = recipe.epochs * steps_per_epoch
        self.step = 0
        self.device = torch.device(device)
        world = distributed.world()
        if recipe.batch_size % (recipe.accumulate * world):
            raise RecipeError(
                f"batch_size = {recipe.batch_size} is no multiple of accumulate = "
                f"{recipe.accumulate} times the {world} processes"
            )
        self.objective = build(recipe).to(self.device).train()
        if world > 1 and self.device.type == "cuda":
            self.objective = nn.SyncBatchNorm.convert_sync_batchnorm(self.objective)
        if recipe.compile:
            compile_backbones(self.objective)
        self._parallel: nn.Module = self.objective
        self.sharded = recipe.shard and world > 1
        if self.sharded:
            sharding.shard(self.objective, self.device)
        elif world > 1:
            self._parallel = in_parallel(self.objective, recipe)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(recipe.optimizer, self.objective)
        self.bf16 = recipe.precision == "bf16" or (
            recipe.precision == "auto" and has_bf16(self.device)
        )
        self._schedule()

    def _schedule(self) -> None:
        optimizer, teacher, epochs = self.recipe.optimizer, self.recipe.teacher, self.recipe.epochs
        assert isinstance(teacher.momentum, float)
        assert isinstance(teacher.temperature, float)
        assert isinstance(teacher.warmup_temperature, float)
        lr = optimizer.lr * self.recipe.batch_size / LR_BATCH
        warmup = optimizer.warmup_epochs * self.steps_per_epoch
        self.lr = schedules.cosine(lr, optimizer.min_lr, self.steps, warmup)
        self.weight_decay = schedules.cosine(
            optimizer.weight_decay, optimizer.weight_decay_end, self.steps
        )
        self.momentum = schedules.cosine(teacher.momentum, 1.0, self.steps)
        self.temperature = schedules.staircase(
            teacher.warmup_temperature,
            teacher.temperature,
            teacher.warmup_epochs,
            epochs,
            self.steps_per_epoch,
        )

    def train_step(self, crops: list[Tensor]) -> Record:
        """Forward, backward and update on this process's share of a batch.

        Args:
            crops: Normalised, each [batch, channels, side, side], the two global ones first.

        Returns:
            What the step was done with and what it gave, for the log.

        Raises:
            Diverged: The loss is not finite; nothing was updated.
        """
        step, epoch = self.step, self.step // self.steps_per_epoch
        # A step's random numbers depend on the seed and the step alone: neither an interruption
        # nor another number of processes changes them.
        torch.manual_seed(step_seed(self.recipe.seed, step))
        moment = Moment(
            temperature=self.temperature[step],
            momentum=self.momentum[step],
            epoch=epoch,
            epoch_ends=(step + 1) % self.steps_per_epoch == 0,
        )
        decayed, free = self.optimizer.param_groups
        decayed["lr"] = free["lr"] = self.lr[step]
        decayed["weight_decay"] = self.weight_decay[step]
        record = self._backward(crops, moment)
        if self.recipe.optimizer.clip_grad is not None:
            clip_each(self.parameters, self.recipe.optimizer.clip_grad)
        if epoch < self.recipe.optimizer.freeze_last_layer:
            for parameter in self.objective.last_layers():
                parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.objective.update(moment)
        self.step += 1
        return {
            "step": self.step,
            "steps": self.steps,
            "epoch": epoch,
            **record,
            "lr": self.lr[step],
            "weight_decay": self.weight_decay[step],
            "momentum": moment.momentum,
            "temperature": moment.temperature,
        }

    def _backward(self, crops: list[Tensor], moment: Moment) -> Record:
        """Leave the batch's gradients, part by part; the loss and the measures, averaged."""
        count = self.recipe.accumulate
        parts = [list(part) for part in zip(*(crop.chunk(count) for crop in crops), strict=True)]
        seen: list[Tensor] = []
        names: list[str] = []
        for number, part in enumerate(parts, start=1):
            with self._synchronised(last=number == count):
                losses = self._forward(part, moment)
                (losses.loss / count).backward()
            names = ["loss", *losses.measures]
            seen.append(torch.stack([losses.loss.detach(), *losses.measures.values()]))
        means = distributed.mean(torch.stack(seen).mean(dim=0)).tolist()
        record = dict(zip(names, means, strict=True))
        if not math.isfinite(record["loss"]):
            self.optimizer.zero_grad()
            raise Diverged(
                f"the loss is {record['loss']} at step {self.step}; lower optimizer.lr "
                "or use precision=fp32"
            )
        return record

    def _forward(self, crops: list[Tensor], moment: Moment) -> Losses:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses: Losses = self._parallel(crops, moment)
        return losses

    def _synchronised(self, last: bool) -> Any:
        """Processes exchange gradients in the last part only."""
        if last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()

    def backbone(self) -> Backbone:
        """The network that is evaluated and kept, for the first process to use.

        All processes must ask for it: where it is sharded, its shares are collected in a copy.
        """
        backbone = self.objective.backbone
        if not self.sharded:
            return backbone
        state = sharding.whole(backbone.state_dict())
        recipe = self.recipe
        copy = build_backbone(recipe.model, recipe.crops.global_size, recipe.pixels.channels)
        if distributed.rank() == 0:
            copy.load_state_dict(state)
        return copy.to(self.device)

    def state(self) -> dict[str, Any]:
        """All that decides the numbers to come; whole in the first process alone."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "images": self.images,
            "step": self.step,
            "objective": sharding.whole(self.objective.state_dict()),
            "optimizer": sharding.whole(self.optimizer.state_dict()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, by whatever number of processes.

        Raises:
            CheckpointError: The state is of another recipe or number of images, or of no run.
        """
        if not (isinstance(state, dict) and state.keys() >= PARTS):
            raise CheckpointError(
                "the checkpoint in the output folder is none of `foveal-train run`; choose another "
                "output folder"
            )
        # Earlier versions kept no number.
        images = state.get("images", self.images)
        if images != self.images:
            raise CheckpointError(
                f"the checkpoint is of a run on {images:,} images, and data holds {self.images:,}; "
                "choose another output folder or the same images"
            )
        refuse_another(self.recipe, state["recipe"], "the checkpoint's recipe")
        try:
            sharding.load(self.objective, self.optimizer, state)
        except (LookupError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                "the checkpoint is of another version, whose network differs; choose another "
                "output folder or that version"
            ) from error
        self.step = state["step"]


# What every version's state holds.
PARTS = {"recipe", "step", "objective", "optimizer"}

# Keys that an interrupted run may go on with another value of.
FREE = {"data", "compile", "shard", "resident", "evaluation"}


def refuse_another(recipe: Recipe, values: dict[str, Any], whose: str) -> None:
    """Let an interrupted run go on with its own recipe alone.

    Args:
        recipe: To go on with.
        values: Of the interrupted run's recipe.
        whose: These are, for the message.

    Raises:
        CheckpointError: They differ in more than what may change on the way.
    """
    if other := list(differences(recipe.model_dump(mode="json", exclude=FREE), values)):
        raise CheckpointError(
            f"{whose} differs in {', '.join(other)}; "
            "choose another output folder or the same recipe"
        )


def differences(ours: dict[str, Any], theirs: dict[str, Any], group: str = "") -> Iterator[str]:
    """Names of the keys of a recipe that have another value in another one."""
    for key, value in ours.items():
        other = theirs.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from differences(value, other, f"{group}{key}.")
        elif value != other:
            yield group + key


def in_parallel(objective: Objective, recipe: Recipe) -> DistributedDataParallel:
    """Average the gradients of all processes while they are computed."""
    with warnings.catch_warnings():
        # torch 2.13 calls the switch `forward_sync_buffers`, which 2.8 does not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            objective,
            # They are the same everywhere, and MoCo's queue is large.
            broadcast_buffers=False,
            # The regions' head has no part in the epochs of views alone.
            find_unused_parameters=isinstance(recipe.objective, EsViTConfig)
            and recipe.objective.view_epochs > 0,
        )


def compile_backbones(objective: nn.Module) -> None:
    """Compile what is called of every backbone, in place: parameters keep their names.

    Each size of crops gets a program of its own.
    """
    for module in objective.modules():
        if isinstance(module, Backbone):
            module.compile(dynamic=False)
            regions = torch.compile(module.regions, dynamic=False)
            module.regions = regions  # type: ignore[method-assign]


def step_seed(seed: int, step: int) -> int:
    """A generator's seed for one step of a run; 64 bits."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)
