"""A GPU takes a CPU's steps, and nothing but the loss keeps the two waiting."""

import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor

from tests.data import ROOT
from tests.training.runs import RECIPE, assert_close, changed, photographs, small
from training import checkpoint
from training.config import Recipe
from training.trainer import Trainer

pytestmark = pytest.mark.gpu

# Adam makes whole steps of gradients that are rounding errors; SGD does not. Paths are not dropped:
# a GPU draws other numbers.
EXACT = {"optimizer": {"name": "sgd", "lr": 1.0, "warmup_epochs": 0}}
DINO = changed(EXACT, {"model": {"drop_path": 0.0}, "crops": {"local_count": 2}})
ESVIT = changed(
    EXACT,
    {
        "model": {"architecture": "swin_tiny", "patch_size": None, "drop_path": 0.0},
        "objective": {"name": "esvit"},
        "crops": {"global_size": 64, "local_size": 32, "local_count": 2},
        "batch_size": 4,
    },
)
OBJECTIVES = {"dino": DINO, "esvit": ESVIT}
STEPS = 3


def crops(recipe: Recipe, step: int, device: torch.device) -> list[Tensor]:
    noise = torch.Generator().manual_seed(step)
    return [
        torch.randn(recipe.batch_size, 3, side, side, generator=noise).to(device)
        for side in recipe.crops.sides
    ]


def stepped(recipe: Recipe, device: torch.device) -> tuple[list[float], Trainer]:
    trainer = Trainer(recipe, STEPS, device)
    return [trainer.train_step(crops(recipe, n, device))["loss"] for n in range(STEPS)], trainer


@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_are_the_cpus(name, device):
    recipe = small(**OBJECTIVES[name])
    losses, trainer = stepped(recipe, device)
    expected, other = stepped(recipe, torch.device("cpu"))
    assert losses == pytest.approx(expected, abs=1e-3)
    state = {key: value.cpu() for key, value in trainer.objective.state_dict().items()}
    assert_close(state, other.objective.state_dict(), tolerance=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_bf16_step_starts_from_the_exact_loss(name, compiled, device):
    recipe = small(**OBJECTIVES[name], precision="bf16", compile=compiled)
    losses, _ = stepped(recipe, device)
    expected, _ = stepped(small(**OBJECTIVES[name]), device)
    # Rounding grows from step to step.
    assert losses[0] == pytest.approx(expected[0], abs=0.05)
    assert all(loss < 2 * expected[0] for loss in losses)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_the_loss_is_waited_for(name, device):
    recipe = small(**OBJECTIVES[name], precision="bf16")
    trainer = Trainer(recipe, STEPS, device)
    batches = [crops(recipe, step, device) for step in range(STEPS)]
    for batch in batches[:-1]:  # what is made once may wait
        trainer.train_step(batch)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train_step(batches[-1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    assert len(waits) == 1, waits


def command(recipe, out, *prefix):
    subprocess.run(
        [sys.executable, *prefix, "-m", "training.cli", "run", str(recipe), "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    lines = (out / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines], checkpoint.load(out / "last.pt")


@pytest.fixture
def recipe(tmp_path):
    """A recipe file and what may be changed in it."""

    def write(**changes):
        data = photographs(tmp_path)
        evaluation = {"data": f"{data}#test", "k": 3, "every": 1}
        values = changed({**RECIPE, "data": data, "evaluation": evaluation}, changes)
        path = tmp_path / "small.yaml"
        path.write_text(json.dumps(values))
        return path

    return write


@pytest.mark.parametrize("resident", [False, True])
def test_a_run_goes_from_start_to_end(resident, recipe, tmp_path, device):
    losses, state = command(recipe(resident=resident, precision="auto"), tmp_path / "run")
    assert state["step"] == len(losses) == 6
    assert (tmp_path / "run" / "evaluations.jsonl").read_text().count("\n") == 2


if torch.cuda.device_count() > 1:

    def test_two_gpus_train_as_one(recipe, tmp_path):
        path = recipe(**DINO)
        pair = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
        losses, state = command(path, tmp_path / "two", *pair)
        expected, other = command(path, tmp_path / "one")
        assert losses == pytest.approx(expected, abs=1e-3)
        assert_close(state["objective"], other["objective"], tolerance=1e-3)
