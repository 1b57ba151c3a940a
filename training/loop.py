"""The training loop: batches in; checkpoints, a journal and a page of plots out."""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
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
from training.journal import LOG, Journal, read
from training.observer import Listener, Observer
from training.recipe_files import read_recipe
from training.report import write_report
from training.stopping import Interrupted, Stopped, Stopping
from training.trainer import Trainer, refuse_another

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
        CheckpointError: The checkpoint is of another recipe, cannot be read or cannot be written,
            or another run goes on in the folder.
        Diverged: The loss is no number any more.
        Stopped: A signal came; the checkpoint is written.
    """
    source = open_field("data", recipe.data, recipe.pixels.channels)
    recipe, arithmetic = resolve(recipe, len(source))
    loader = build_loader(recipe, source, options)
    trainer = Trainer(recipe, loader.steps, options.device, len(source))
    checkpoints = Checkpoints(options.out, options.keep)
    with ExitStack() as stack:
        if distributed.rank() == 0:
            stack.enter_context(checkpoint.alone(options.out))
        if checkpoints.last.exists():
            trainer.restore(checkpoint.load(checkpoints.last))
        else:
            refuse_another_run(recipe, options.out)
        if trainer.step != distributed.largest(trainer.step):
            raise CheckpointError(
                f"another process goes on from a checkpoint that this one does not see in "
                f"{options.out}; put it where every machine finds it"
            )
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
            if signal := distributed.largest(stopping.signal):
                raise stopped(signal, trainer, checkpoints)
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
            if signal or save_due(trainer, options.save_every):
                save(trainer, checkpoints)
            if signal:
                raise stopped(signal, trainer, checkpoints)


def save_due(trainer: Trainer, every: int) -> bool:
    """Whether a checkpoint is: after some steps, and before an evaluation, which may fail."""
    epochs, left = divmod(trainer.step, trainer.steps_per_epoch)
    return trainer.step % every == 0 or (left == 0 and evaluated_after(trainer.recipe, epochs))


def stopped(signal: int, trainer: Trainer, checkpoints: Checkpoints) -> Stopped:
    """What tells of a run that a signal has stopped."""
    return Stopped(
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
    """Let the first process evaluate the network after an epoch, and keep it if it is the best.

    A signal interrupts it.
    """
    backbone = trainer.backbone()
    best = False
    if observer is not None:
        with suppress(Interrupted):
            best = observer.evaluate(epoch, backbone)
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


def refuse_another_run(recipe: Recipe, folder: Path) -> None:
    """Refuse a folder where a run of another recipe has done steps but kept no checkpoint."""
    if next(read(folder / LOG), None) is not None and (folder / RECIPE).exists():
        values = read_recipe(str(folder / RECIPE))
        refuse_another(recipe, values, f"{folder / RECIPE}, of a run without a checkpoint yet,")


def write_recipe(recipe: Recipe, arithmetic: list[str], folder: Path) -> None:
    """Write the recipe as it is run, with the arithmetic of what was `auto`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    lines = [f"# {line}\n" for line in arithmetic]
    (folder / RECIPE).write_text("".join(lines) + values)
