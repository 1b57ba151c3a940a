"""Two gloo processes that share a model's parameters, and one process that has them all."""

import pytest
import torch

from tests.training.runs import (
    assert_close,
    assert_same_run,
    changed,
    losses,
    photographs,
    run,
    small,
    together,
    write,
)
from training.stopping import Stopped

SHARDED = {"shard": True, "optimizer": {"warmup_epochs": 0, "clip_grad": 0.1}}
SGD = {"optimizer": {"name": "sgd", "lr": 4.0}}
RECIPES = {
    "dino": changed(SHARDED, SGD),
    "adamw": SHARDED,
    "previous_iteration": changed(SHARDED, {**SGD, "teacher": {"follows": "previous_iteration"}}),
    "byol": changed(
        SHARDED,
        {
            **SGD,
            "objective": {"name": "byol"},
            "head": {"prototypes": None, "batch_norm": True},
            "accumulate": 2,
        },
    ),
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    data = photographs(tmp_path_factory.mktemp("data"))
    return {"data": data, "evaluation": {"data": f"{data}#test", "k": 3, "every": 1}}


@pytest.fixture(scope="module")
def folder(evaluated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for name, values in RECIPES.items():
        write(folder / f"steps/{name}.yaml", values)
    for name in ("started-by-one", "stops"):
        write(folder / f"runs/{name}.yaml", {**evaluated, "shard": True})
    with pytest.raises(Stopped):
        run(small(**evaluated), folder / "runs/started-by-one", interrupt=2, number=15)
    together(folder)
    return folder


@pytest.fixture(scope="module")
def whole(evaluated, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    run(small(**evaluated), out)
    return out


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_that_share_a_model_compute_what_one_does(folder, name):
    records, state = torch.load(folder / f"steps/{name}.pt")
    expected_records, expected = losses(small(**RECIPES[name]), steps=5)
    for record, wanted in zip(records, expected_records, strict=True):
        assert record == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    if name != "adamw":
        assert_close(state["objective"], expected["objective"], tolerance=1e-4)
    ours, theirs = (part["optimizer"]["state"] for part in (state, expected))
    assert ours.keys() == theirs.keys()
    for index, values in theirs.items():
        assert_close(ours[index], values, tolerance=1e-4)


def test_a_model_that_was_whole_is_shared_and_evaluated(folder, whole):
    assert_same_run(folder / "runs/started-by-one", whole)


def test_a_model_that_was_shared_goes_on_whole(folder, evaluated, whole):
    run(small(**evaluated), folder / "runs/stops")
    assert_same_run(folder / "runs/stops", whole)
