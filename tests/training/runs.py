"""Small runs that several tests share, alone and by several processes together."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data import ROOT, dataset
from training import checkpoint, distributed, loop
from training.config import Recipe
from training.loop import RunOptions
from training.trainer import Trainer

RECIPE = {
    "name": "small",
    "epochs": 2,
    "batch_size": 16,
    "precision": "fp32",
    "model": {"architecture": "vit_nano", "patch_size": 8, "drop_path": 0.3},
    "crops": {"global_size": 32, "local_size": 16, "local_count": 1},
    "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
    "optimizer": {"lr": 0.01, "warmup_epochs": 1},
}
SWIN = {
    "model": {"architecture": "swin_tiny", "patch_size": None},
    "crops": {"local_size": 16, "local_count": 1},
    "batch_size": 8,
}
STEPS = 6


def photographs(folder: Path) -> str:
    """An archive of some 50 photographs of 40 px, 3 batches of 16, in two classes."""
    small = [
        np.asarray(Image.open(path).convert("RGB").resize((40, 40)))
        for path in sorted(dataset("photos").glob("*.??g"))
    ]
    labels = np.arange(len(small)) % 2
    archive = folder / "photographs.npz"
    np.savez(
        archive,
        train_x=small,
        train_y=labels,
        test_x=small[::2] + small[1::4],
        test_y=[*labels[::2], *labels[1::4]],
    )
    return str(archive)


def changed(values: dict, changes: dict) -> dict:
    """Values with others in their places, group by group; None takes a key out."""
    merged = dict(values)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = changed(merged[key], value)
        else:
            merged[key] = value
    return merged


def small(data: str = "nowhere", **changes) -> Recipe:
    return Recipe.model_validate(changed({**RECIPE, "data": data}, changes))


class Interrupted(Exception):
    pass


class Listener:
    """Breaks the run off after a step, or sends this process a signal."""

    def __init__(self, interrupt=None, number=None):
        self.interrupt, self.number, self.warnings, self.notes = interrupt, number, [], []

    def __call__(self, record):
        if record["step"] == self.interrupt:
            if self.number is None:
                raise Interrupted
            os.kill(os.getpid(), self.number)

    def note(self, message):
        self.notes.append(message)

    def warn(self, step, message):
        self.warnings.append((step, message))


def run(recipe: Recipe, out: Path, interrupt=None, number=None, **options) -> Path:
    given = {"workers": 0, "save_every": 1, **options}
    options = RunOptions(out=out, device=torch.device("cpu"), **given)
    # The page of plots, which runs of the command line write, takes longer than all the steps.
    with patch.object(loop, "write_report"):
        return loop.train(recipe, options, Listener(interrupt, number))


def sigterm(recipe: Recipe, out: Path, after: int, **options) -> Path:
    return run(recipe, out, after, signal.SIGTERM, **options)


def losses(recipe: Recipe, steps: int) -> tuple[list[dict], dict]:
    """What a trainer reports of its steps on noise of whose batches this process has its share."""
    trainer = Trainer(recipe, steps_per_epoch=STEPS // recipe.epochs)
    rank, world = distributed.rank(), distributed.world()
    records = []
    for step in range(steps):
        noise = torch.Generator().manual_seed(step)
        crops = [
            torch.randn(recipe.batch_size, 3, side, side, generator=noise)[rank::world]
            for side in recipe.crops.sides
        ]
        records.append(trainer.train_step(crops))
    return records, trainer.state()


def together(folder: Path, processes: int = 2) -> None:
    """Let several processes do what `together.py` says of a folder."""
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", "-m", "tests.training.together", str(folder)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=1200,
    )


def equal(one, two) -> bool:
    """Whether two states are the same to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def assert_close(one: dict, two: dict, tolerance: float) -> None:
    """Two objectives' states, tensor by tensor."""
    assert list(one) == list(two)
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=tolerance, msg=name)


def write(path: Path, values: dict) -> None:
    """A recipe, for processes to read."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(changed({**RECIPE, "data": "nowhere"}, values)))


def logged(out: Path, name: str = "log") -> list[dict]:
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]


def assert_same_run(out: Path, whole: Path) -> None:
    """Two runs saw the same, but for the order in which numbers were added."""
    for line, wanted in zip(logged(out), logged(whole), strict=True):
        for key in ("step", "loss", "entropy", "kl", "deviation", "lr"):
            assert line[key] == pytest.approx(wanted[key], rel=1e-4), key
    assert logged(out, "evaluations") == logged(whole, "evaluations")
    ours, theirs = (checkpoint.load(folder / "last.pt") for folder in (out, whole))
    assert ours["step"] == theirs["step"] == STEPS
    shapes, wanted = (
        [(name, value.shape) for name, value in state["objective"].items()]
        for state in (ours, theirs)
    )
    assert shapes == wanted
