"""The commands of docs/training.md: who has other images than ImageNet can type them."""

import re
import shlex

import pytest

from tests.data import ROOT
from training.config import Recipe

TEXT = (ROOT / "docs/training.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.replace("\\\n", "").splitlines()
]
RUNS = [command[2:] for command in COMMANDS if command[:2] == ["foveal-train", "run"]]
MINE = "data/mine/"


@pytest.fixture
def recipe(tmp_path):
    """The recipe of one's own, which the commands call my-recipe.yaml."""
    (text,) = (block for kind, block in BLOCKS if kind == "yaml" and MINE in block)
    path = tmp_path / "my-recipe.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("arguments", RUNS, ids=" ".join)
def test_a_run_asks_for_no_other_images_than_it_names(arguments, recipe):
    name, *overrides = arguments
    loaded = Recipe.load(recipe if name == "my-recipe.yaml" else name, tuple(overrides))
    if loaded.data.startswith(MINE):
        held_out = loaded.evaluation.data
        assert held_out is None or held_out.startswith(MINE)
        assert loaded.batch_size <= 64


def test_some_runs_are_of_ones_own_images():
    assert len([run for run in RUNS if any(MINE in argument for argument in run)]) == 2
