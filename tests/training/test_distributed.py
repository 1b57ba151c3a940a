"""Two gloo processes on the CPU, and one, which must see the same numbers."""

import pytest
import torch

from tests.training.runs import (
    SWIN,
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
from training import distributed
from training.config import RecipeError
from training.data.sources import DataError
from training.stopping import Stopped

# Adam makes steps of noise where the true gradient is zero, as that of a bias in front of a batch
# normalisation; plain SGD does not.
SGD = {"optimizer": {"name": "sgd", "lr": 4.0, "warmup_epochs": 0}}
NO_PROTOTYPES = {"prototypes": None, "batch_norm": True}
VIEWS = {"epochs": 3, "crops": {"local_count": 2}}
OBJECTIVES = {
    "dino": VIEWS,
    "adamw": {"optimizer": {"warmup_epochs": 0}},
    "accumulated": {"accumulate": 2, "head": {"batch_norm": True}, **VIEWS},
    "mse": {"objective": {"name": "dino", "loss": "mse"}},
    "sinkhorn": {"objective": {"name": "dino", "targets": "sinkhorn"}},
    "byol": {"objective": {"name": "byol"}, "head": NO_PROTOTYPES},
    "moco": {"objective": {"name": "moco", "queue": 64}, "head": NO_PROTOTYPES, "accumulate": 2},
    "simclr": {
        "objective": {"name": "simclr"},
        "head": NO_PROTOTYPES,
        "crops": {"local_count": 0},
    },
    "swav": {"objective": {"name": "swav"}, "head": {"batch_norm": True}},
    # The regions join in after two of the steps.
    "esvit": {"objective": {"name": "esvit", "view_epochs": 1}, **SWIN, "epochs": 3},
}
RECIPES = {name: changed(SGD, changes) for name, changes in OBJECTIVES.items()}
RECIPES["adamw"] = OBJECTIVES["adamw"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def evaluated(data):
    return {"data": data, "evaluation": {"data": f"{data}#test", "k": 3, "every": 1}}


@pytest.fixture(scope="module")
def folder(evaluated, tmp_path_factory):
    """What two processes did: steps of every objective, runs from start to end and parts."""
    folder = tmp_path_factory.mktemp("two")
    for name, values in RECIPES.items():
        write(folder / f"steps/{name}.yaml", values)
    for name in ("started-by-one", "stops"):
        write(folder / f"runs/{name}.yaml", evaluated)
    with pytest.raises(Stopped):
        run(small(**evaluated), folder / "runs/started-by-one", interrupt=2, number=15)
    together(folder)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_two_processes_compute_what_one_does(folder, name):
    records, state = torch.load(folder / f"steps/{name}.pt")
    expected_records, expected = losses(small(**RECIPES[name]), steps=5)
    for record, wanted in zip(records, expected_records, strict=True):
        assert record == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    if name == "adamw":
        moments = (
            {
                f"{i} {key}": value
                for i, values in part["optimizer"]["state"].items()
                for key, value in values.items()
            }
            for part in (state, expected)
        )
        assert_close(*moments, tolerance=1e-5)
    else:
        # Centre and queue are part of it.
        assert_close(state["objective"], expected["objective"], tolerance=1e-4)


@pytest.fixture(scope="module")
def whole(evaluated, tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    run(small(**evaluated), out)
    return out


def test_two_processes_go_on_where_one_stopped(folder, whole):
    assert_same_run(folder / "runs/started-by-one", whole)


def test_both_processes_stop_at_one_step_and_one_goes_on(folder, evaluated, whole):
    said = [(folder / f"runs/stops.{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert "after step 2 of 6" in said[0]
    run(small(**evaluated), folder / "runs/stops")
    assert_same_run(folder / "runs/stops", whole)


def test_a_batch_without_equal_parts_is_refused(monkeypatch, data, tmp_path):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(DataError, match="no multiple of the 3 processes"):
        run(small(data), tmp_path)
    with pytest.raises(RecipeError, match="accumulate = 8 times the 3 processes"):
        losses(small(accumulate=8), steps=1)


def test_a_run_of_one_process_moves_nothing():
    rows = torch.rand(3, 2)
    assert distributed.gather(rows) is rows
    assert distributed.total(rows) is rows
    assert distributed.largest(7) == 7
