"""The training loop: batches in; checkpoints, a journal and a page of plots out."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import yaml

from training import checkpoint, distributed
from training.auto import resolve
from training.checkpoint import CheckpointError, Checkpoints
from training.config import Recipe
from training.data.device_loader import DeviceLoader
from training.data.loader import CropLoader, ResidentLoader
from training.data.pixels import normalise
from training.data.sources import Source, open_field
from training.journal import Journal
from training.observer import Listener, Observer
from training.report import write_report
from training.stopping import Stopped, Stopping
from training.trainer import Trainer

RECIPE = "recipe.yaml"
Loader = CropLoader | ResidentLoader | DeviceLoader


@dataclass(frozen=True)
class RunOptions:
    """What a run costs and leaves behind; nothing here changes its numbers.

    Attributes:
        out: Folder of the run; the run in it goes on.
        device: Where it computes.
        workers: Processes that decode images and cut crops.
        save_every: Steps between checkpoints.
        keep: Number of last checkpoints that are kept.
    """

    out: Path
    device: torch.device
    workers: int = 1
    save_every: int = 100
    keep: int = 1


def train(recipe: Recipe, options: RunOptions, listener: Listener) -> Path:
    """Run a recipe to its end, going on from the checkpoint in the folder if there is one.

    Args:
        recipe: What to train.
        options: Where and how.
        listener: Told of every step and warning by the first process.

    Returns:
        Path of the last checkpoint.

    Raises:
        DataError: There are not enough images, or they cannot be evaluated on.
        CheckpointError: The checkpoint is of another recipe, or cannot be read or written.
        Diverged: The loss is no number any more.
        Stopped: A signal came; the checkpoint is written.
    """
    source = open_field("data", recipe.data, recipe.pixels.channels)
    recipe, arithmetic = resolve(recipe, len(source))
    loader = build_loader(recipe, source, options)
    trainer = Trainer(recipe, loader.steps, options.device)
    checkpoints = Checkpoints(options.out, options.keep)
    if checkpoints.last.exists():
        trainer.restore(checkpoint.load(checkpoints.last))
    if trainer.step != distributed.largest(trainer.step):
        raise CheckpointError(
            f"another process goes on from a checkpoint that this one does not see in "
            f"{options.out}; put it where every machine finds it"
        )
    with ExitStack() as stack:
        observer = None
        if distributed.rank() == 0:
            write_recipe(recipe, arithmetic, options.out)
            for line in arithmetic:
                listener.note(line)
            journal = stack.enter_context(Journal(options.out, trainer.step))
            observer = Observer(recipe, source, trainer, options.out, journal, listener)
        stopping = stack.enter_context(Stopping())
        steps(trainer, loader, checkpoints, observer, stopping, options)
    if observer is not None:
        write_report(options.out)
    return checkpoints.last


def steps(
    trainer: Trainer,
    loader: Loader,
    checkpoints: Checkpoints,
    observer: Observer | None,
    stopping: Stopping,
    options: RunOptions,
) -> None:
    """Do all steps that are left, saving and evaluating on the way."""
    recipe = trainer.recipe
    prepare = partial(normalise, mean=recipe.pixels.mean, std=recipe.pixels.std)
    while True:
        epoch, first = divmod(trainer.step, loader.steps)
        # Here, so that a run that stopped before its evaluation does it when it goes on.
        if first == 0 and evaluated_after(recipe, epoch):
            evaluate(trainer, checkpoints, observer, epoch - 1)
        if trainer.step == trainer.steps:
            return
        clock = time.perf_counter()
        for crops in loader.epoch(epoch, first):
            record = trainer.train_step([prepare(crop.to(options.device)) for crop in crops])
            now = time.perf_counter()
            record["images_per_second"], clock = recipe.batch_size / (now - clock), now
            if observer is not None:
                observer.step(record)
            signal = distributed.largest(stopping.signal)
            if signal or trainer.step % options.save_every == 0 or trainer.step == trainer.steps:
                save(trainer, checkpoints)
            if signal:
                raise Stopped(
                    signal,
                    f"stopped after step {trainer.step} of {trainer.steps}; the checkpoint is "
                    f"{checkpoints.last}, and the same command goes on from there",
                )


def evaluated_after(recipe: Recipe, epochs: int) -> bool:
    """Whether a run is evaluated after so many epochs."""
    return epochs == recipe.epochs or (epochs > 0 and epochs % recipe.evaluation.every == 0)


def evaluate(
    trainer: Trainer, checkpoints: Checkpoints, observer: Observer | None, epoch: int
) -> None:
    """Let the first process evaluate the network after an epoch, and keep it if it is the best."""
    backbone = trainer.backbone()
    best = observer.evaluate(epoch, backbone) if observer is not None else False
    if distributed.largest(int(best)):
        save(trainer, checkpoints, best=True)


def save(trainer: Trainer, checkpoints: Checkpoints, best: bool = False) -> None:
    """Write a checkpoint; all processes give their part, the first one writes."""
    state = trainer.state()
    if distributed.rank() == 0:
        checkpoints.save(state, best)


def build_loader(recipe: Recipe, source: Source, options: RunOptions) -> Loader:
    """What cuts a recipe's crops, for this process's share of each batch."""
    share = {"rank": distributed.rank(), "world": distributed.world()}
    batch, seed = recipe.batch_size, recipe.seed
    if recipe.resident:
        return ResidentLoader(source, recipe.crops, batch, seed, options.device, **share)
    if options.device.type != "cpu":
        return DeviceLoader(
            source, recipe.crops, batch, seed, options.workers, options.device, **share
        )
    return CropLoader(source, recipe.crops, batch, seed, options.workers, **share)


def write_recipe(recipe: Recipe, arithmetic: list[str], folder: Path) -> None:
    """Write the recipe as it is run, with the arithmetic of what was `auto`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    lines = [f"# {line}\n" for line in arithmetic]
    (folder / RECIPE).write_text("".join(lines) + values)
