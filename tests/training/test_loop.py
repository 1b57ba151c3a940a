import json

import pytest
import torch

from tests.data import dataset
from training import checkpoint
from training.checkpoint import CheckpointError
from training.config import Recipe
from training.loop import Diverged, Trainer, parameter_groups, train

RECIPE = {
    "name": "small",
    "epochs": 2,
    "batch_size": 16,
    "precision": "fp32",
    "model": {"architecture": "vit_tiny", "patch_size": 16, "drop_path": 0.3},
    "crops": {"global_size": 32, "local_size": 16, "local_count": 1},
    "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
    "optimizer": {"lr": 0.01, "warmup_epochs": 1},
}


class Interrupted(Exception):
    pass


@pytest.fixture
def recipe():
    return Recipe.model_validate({**RECIPE, "data": dataset("photos")})


def run(recipe, out, stop_after=None):
    def report(progress):
        if progress.step == stop_after:
            raise Interrupted

    return train(recipe, out, workers=0, save_every=1, report=report)


def equal(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


@pytest.mark.parametrize("stop_after", [2, 3, 4])
def test_an_interrupted_run_goes_on_to_the_same_numbers(recipe, tmp_path, stop_after):
    whole = checkpoint.load(run(recipe, tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "parts", stop_after)
    # The step that was reported but not yet saved is done again.
    assert checkpoint.load(tmp_path / "parts/last.pt")["step"] == stop_after - 1
    resumed = checkpoint.load(run(recipe, tmp_path / "parts"))
    assert whole["step"] == resumed["step"] == 6
    assert equal(whole, resumed)


def test_a_finished_run_is_left_as_it_is(recipe, tmp_path):
    first = run(recipe, tmp_path).read_bytes()
    assert run(recipe, tmp_path).read_bytes() == first


def test_the_log_has_a_line_a_step(recipe, tmp_path):
    run(recipe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1]
    assert all(line["images_per_second"] > 0 for line in lines)


def test_another_recipes_checkpoint_is_refused_by_name(recipe, tmp_path):
    run(recipe, tmp_path)
    other = recipe.model_copy(update={"seed": 1, "student_temperature": 0.2})
    with pytest.raises(CheckpointError, match="differs in seed, student_temperature"):
        run(other, tmp_path)


def test_a_loss_that_is_no_number_stops_before_the_update(recipe):
    trainer = Trainer(recipe, 3)
    before = trainer.model.student.backbone.cls_token.detach().clone()
    crops = [torch.full((2, 3, 32, 32), float("nan"))] * 2
    with pytest.raises(Diverged, match=r"optimizer\.lr"):
        trainer.train_step(crops)
    assert trainer.step == 0
    assert torch.equal(trainer.model.student.backbone.cls_token, before)


def test_cls_and_positions_are_decayed_but_no_bias_and_no_norm(recipe):
    student = Trainer(recipe, 3).model.student
    decayed, free = ({id(p) for p in group["params"]} for group in parameter_groups(student))
    backbone = student.backbone
    assert {id(backbone.cls_token), id(backbone.pos_embed)} <= decayed
    assert {id(backbone.norm.weight), id(backbone.patch_embed.proj.bias)} <= free
    assert id(student.head.last_layer.weight_g) not in decayed | free  # frozen at one
