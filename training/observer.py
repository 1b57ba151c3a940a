"""Everything that watches a run and changes nothing in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from training.attention_over_time import MOST as PHOTOGRAPHS
from training.attention_over_time import AttentionMaps
from training.config import Recipe
from training.data.pixels import normalise
from training.data.sources import Source, open_field
from training.evaluation.features import batches
from training.evaluation.validation import Validation, input_spec
from training.journal import EVALUATIONS, Journal, read
from training.models.backbone import Backbone
from training.monitor import Monitor
from training.trainer import Record, Trainer


class Listener(Protocol):
    """Is told how a run goes."""

    def __call__(self, record: Record) -> None:
        """A step is done."""

    def note(self, message: str) -> None:
        """Something that a person should know of the run."""

    def warn(self, step: int, message: str) -> None:
        """The run may be going wrong."""


class Observer:
    """Journal, monitor, evaluations and attention maps of a run.

    Args:
        recipe: Of the run.
        source: Its training images.
        trainer: Does the steps.
        folder: Of the run.
        journal: Open.
        listener: Told of every step and warning.

    Raises:
        DataError: The images to evaluate on cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        trainer: Trainer,
        folder: Path,
        journal: Journal,
        listener: Listener,
    ) -> None:
        self.recipe, self.trainer, self.journal, self.listener = recipe, trainer, journal, listener
        self.monitor = monitor(recipe, trainer.objective.outcomes, trainer.steps_per_epoch)
        past = list(read(folder / EVALUATIONS))
        self.best = max((e["knn"] for e in past), default=0.0)
        self.evaluated = max((e["step"] for e in past), default=0)
        spec = input_spec(recipe)
        self.validation: Validation | None = None
        shown = source
        config = recipe.evaluation
        if config.data is not None:
            shown = open_field("evaluation.data", config.data, recipe.pixels.channels)
            self.validation = Validation(source, shown, spec, config.k, config.images)
        chosen = np.linspace(0, len(shown) - 1, min(PHOTOGRAPHS, len(shown)), dtype=int).tolist()
        _, photographs = next(batches(shown, chosen, spec))
        self.maps = AttentionMaps(folder, photographs)
        self.normalise: Callable[[Tensor], Tensor] = partial(
            normalise, mean=spec.mean, std=spec.std
        )

    def step(self, record: Record) -> None:
        """Log a step and say what is wrong with it."""
        self.journal.step(record)
        self.listener(record)
        step = int(record["step"])
        for message in self.monitor.watch(step, record["loss"], record):
            self.journal.warning(step, message)
            self.listener.warn(step, message)

    def evaluate(self, epoch: int, backbone: Backbone) -> bool:
        """Look at the kept network after an epoch; whether its k-NN accuracy is the best so far.

        What the journal has already is not done again.
        """
        step = self.trainer.step
        if step <= self.evaluated:
            return False
        self.maps.record(backbone, epoch, self.normalise)
        if self.validation is None:
            return False
        accuracy = self.validation.accuracy(backbone)
        self.journal.evaluation({"step": step, "epoch": epoch, "knn": accuracy})
        best, self.best = accuracy > self.best, max(accuracy, self.best)
        return best


def monitor(recipe: Recipe, outcomes: int | None, steps_per_epoch: int) -> Monitor:
    """The monitor of a run.

    Every run starts out collapsed: the warm-up and one epoch are left to it.

    Args:
        recipe: Of the run.
        outcomes: Number K of its targets' outcomes, where they are distributions.
        steps_per_epoch: Of its loader.
    """
    return Monitor(outcomes, grace=(recipe.optimizer.warmup_epochs + 1) * steps_per_epoch)
