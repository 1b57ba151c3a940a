"""The training loop: batches in, checkpoints and a log out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from training import checkpoint, schedules
from training.config import Recipe
from training.data.loader import CropLoader
from training.data.pixels import normalise
from training.data.sources import ImageFolder
from training.models.heads import DINOHead
from training.models.vit import vit
from training.objectives.dino import DINO


class Progress(NamedTuple):
    """One finished step, for the log and the progress bar.

    Attributes:
        step: Steps done since the start of the run.
        steps: Steps of the whole run.
        epoch: Epoch of this step, from 0.
        loss: The objective's loss in nats.
        teacher_entropy: Mean entropy of the teacher's targets in nats.
        images_per_second: Speed of this step.
    """

    step: int
    steps: int
    epoch: int
    loss: float
    teacher_entropy: float
    images_per_second: float


class Diverged(Exception):
    """The loss is no number any more; the message says where and what to try."""


def build(recipe: Recipe) -> DINO:
    """The student, the teacher and the centre that a recipe starts from."""
    torch.manual_seed(recipe.seed)
    backbone = vit(
        recipe.model.architecture,
        recipe.model.patch_size,
        recipe.crops.global_size,
        recipe.model.drop_path,
    )
    head = DINOHead(backbone.dim, **recipe.head.model_dump())
    return DINO(backbone, head, recipe.student_temperature, recipe.teacher.center_momentum)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weight decay for all but biases and one-dimensional parameters."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = name.endswith(".bias") or parameter.ndim == 1
            (free if exempt else decayed).append(parameter)
    return [{"params": decayed}, {"params": free, "weight_decay": 0.0}]


class Trainer:
    """Steps through a recipe.

    Args:
        recipe: What to train.
        steps_per_epoch: Batches an epoch, on which the schedules depend.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.steps = recipe.epochs * steps_per_epoch
        self.step = 0
        self.model = build(recipe).train()
        optimizer, teacher = recipe.optimizer, recipe.teacher
        lr = optimizer.lr * recipe.batch_size / 256
        warmup = optimizer.warmup_epochs * steps_per_epoch
        self.lr = schedules.cosine(lr, optimizer.min_lr, self.steps, warmup)
        self.weight_decay = schedules.cosine(
            optimizer.weight_decay, optimizer.weight_decay_end, self.steps
        )
        self.momentum = schedules.cosine(teacher.momentum, 1.0, self.steps)
        self.temperature = schedules.staircase(
            teacher.warmup_temperature,
            teacher.temperature,
            teacher.warmup_epochs,
            recipe.epochs,
            steps_per_epoch,
        )
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model.student), fused=True)

    def train_step(self, crops: list[Tensor]) -> tuple[float, float]:
        """Forward, backward and update on normalised crops.

        Returns:
            The loss and the teacher's entropy, in nats.

        Raises:
            Diverged: The loss is not finite; nothing was updated.
        """
        decayed, free = self.optimizer.param_groups
        decayed["lr"] = free["lr"] = self.lr[self.step]
        decayed["weight_decay"] = self.weight_decay[self.step]
        device_type = crops[0].device.type
        with torch.autocast(device_type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            losses = self.model(crops, self.temperature[self.step])
        loss = losses.loss.item()
        if loss != loss or loss == float("inf"):
            raise Diverged(
                f"the loss is {loss} at step {self.step}; lower optimizer.lr or use precision=fp32"
            )
        losses.loss.backward()
        student = self.model.student
        for parameter in student.parameters():
            if parameter.grad is not None:
                clip_grad_norm_(parameter, self.recipe.optimizer.clip_grad)
        if self.step < self.recipe.optimizer.freeze_last_layer * self.steps_per_epoch:
            for parameter in student.head.last_layer.parameters():
                parameter.grad = None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.update_teacher(self.momentum[self.step])
        self.step += 1
        return loss, losses.teacher_entropy.item()

    def state(self) -> dict[str, Any]:
        """All that decides the numbers to come."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            checkpoint.CheckpointError: The state is of another recipe.
        """
        ours = self.recipe.model_dump(mode="json")
        other = [key for key in ours if ours[key] != state["recipe"].get(key) and key != "data"]
        if other:
            raise checkpoint.CheckpointError(
                f"the checkpoint's recipe differs in {', '.join(other)}; "
                "choose another output folder or the same recipe"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        torch.set_rng_state(state["random"])


def train(
    recipe: Recipe,
    out: Path,
    *,
    workers: int,
    save_every: int,
    report: Callable[[Progress], None],
) -> Path:
    """Run a recipe to its end, going on from the checkpoint in `out` if there is one.

    Args:
        recipe: What to train.
        out: Folder of the checkpoint and of `log.jsonl`.
        workers: Processes that cut crops.
        save_every: Steps between checkpoints.
        report: Told of every step.

    Returns:
        Path of the last checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    loader = CropLoader(
        ImageFolder.open(recipe.data), recipe.crops, recipe.batch_size, recipe.seed, workers
    )
    trainer = Trainer(recipe, loader.steps)
    last = out / checkpoint.LAST
    if last.exists():
        trainer.restore(checkpoint.load(last))
    with (out / "log.jsonl").open("a", buffering=1) as log:
        while trainer.step < trainer.steps:
            epoch, first = divmod(trainer.step, loader.steps)
            clock = time.perf_counter()
            for crops in loader.epoch(epoch, first):
                loss, entropy = trainer.train_step([normalise(crop) for crop in crops])
                now = time.perf_counter()
                speed, clock = recipe.batch_size / (now - clock), now
                progress = Progress(trainer.step, trainer.steps, epoch, loss, entropy, speed)
                log.write(json.dumps(progress._asdict()) + "\n")
                report(progress)
                if trainer.step % save_every == 0 or trainer.step == trainer.steps:
                    checkpoint.save(last, trainer.state())
    return last
