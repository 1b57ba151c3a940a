import os
import signal

import numpy as np
import pytest
import torch

from tests.training.runs import STEPS, Interrupted, Listener, equal, logged, photographs, run, small
from training import checkpoint
from training.checkpoint import CheckpointError
from training.data.sources import DataError
from training.evaluation import features
from training.loop import RunOptions, train
from training.stopping import Stopped


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("data"))


@pytest.fixture
def recipe(data):
    return small(data)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """The last checkpoint of a run that nothing interrupts."""
    return checkpoint.load(run(small(data), tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize(("stop_after", "workers"), [(2, 0), (3, 0), (4, 0), (5, 1)])
def test_an_interrupted_run_goes_on_to_the_same_numbers(
    recipe, whole, tmp_path, stop_after, workers
):
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, stop_after, workers=workers)
    # The step that was reported but not yet saved is done again.
    assert checkpoint.load(tmp_path / "last.pt")["step"] == stop_after - 1
    resumed = checkpoint.load(run(recipe, tmp_path, workers=workers))
    assert whole["step"] == resumed["step"] == STEPS
    assert equal(whole, resumed)


def test_an_interrupted_run_on_resident_images_goes_on_to_the_same_numbers(data, tmp_path):
    recipe = small(data, resident=True)
    whole = checkpoint.load(run(recipe, tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "parts", 3)
    assert equal(whole, checkpoint.load(run(recipe, tmp_path / "parts")))


@pytest.mark.parametrize("stop_after", [2, 3, 6])
def test_a_run_that_is_asked_to_stop_saves_its_step_and_goes_on_from_there(
    data, tmp_path, stop_after
):
    recipe = small(data, evaluation={"data": f"{data}#test", "every": 1, "k": 3})
    whole = checkpoint.load(run(recipe, tmp_path / "whole"))
    out = tmp_path / "parts"
    with pytest.raises(Stopped, match=f"after step {stop_after} of 6") as stopped:
        run(recipe, out, stop_after, signal.SIGINT, save_every=100)
    assert stopped.value.number == signal.SIGINT
    assert checkpoint.load(out / "last.pt")["step"] == stop_after
    resumed = checkpoint.load(run(recipe, out, save_every=100))
    assert equal(whole, resumed)
    # The evaluation that it did not stay for is made up for.
    evaluations = logged(out, "evaluations")
    assert evaluations == logged(tmp_path / "whole", "evaluations")
    assert [evaluation["step"] for evaluation in evaluations] == [3, 6]


def test_a_signal_during_an_evaluation_stops_it_after_the_checkpoint(data, tmp_path, monkeypatch):
    recipe = small(data, evaluation={"data": f"{data}#test", "every": 1, "k": 3})
    whole = checkpoint.load(run(recipe, tmp_path / "whole"))
    out, saved, read = tmp_path / "parts", [], features.batches

    def signalled(*arguments):
        for batch in read(*arguments):
            if not saved:
                os.kill(os.getpid(), signal.SIGTERM)
            saved.append(checkpoint.load(out / "last.pt")["step"])
            yield batch

    monkeypatch.setattr(features, "batches", signalled)
    with pytest.raises(Stopped, match="after step 3 of 6"):
        run(recipe, out, save_every=100)
    assert saved == [3]
    assert logged(out, "evaluations") == []
    assert equal(whole, checkpoint.load(run(recipe, out, save_every=100)))
    assert logged(out, "evaluations") == logged(tmp_path / "whole", "evaluations")


def test_the_log_has_each_step_once_also_after_an_interruption(recipe, tmp_path):
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, 5, save_every=2)
    assert [line["step"] for line in logged(tmp_path)] == [1, 2, 3, 4, 5]
    run(recipe, tmp_path)
    log = logged(tmp_path)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["epoch"] for line in log] == [0, 0, 0, 1, 1, 1]
    assert all(line["images_per_second"] > 0 for line in log)


def test_another_recipes_checkpoint_is_refused_by_name(data, recipe, tmp_path):
    run(recipe, tmp_path)
    before = (tmp_path / "recipe.yaml").read_bytes()
    other = small(data, seed=1, optimizer={"lr": 0.02}, objective={"name": "byol"}, head=None)
    with pytest.raises(CheckpointError, match=r"differs in seed, .*objective.*optimizer\.lr"):
        run(other, tmp_path)
    assert (tmp_path / "recipe.yaml").read_bytes() == before


def test_another_recipe_is_refused_also_before_the_first_checkpoint(data, recipe, tmp_path):
    elsewhere = small(data, evaluation={"data": data})
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, 2, save_every=100)
    before = (tmp_path / "recipe.yaml").read_bytes()
    with pytest.raises(CheckpointError, match=r"recipe.yaml, of a run .* differs in seed; choose"):
        run(small(data, seed=1), tmp_path)
    assert (tmp_path / "recipe.yaml").read_bytes() == before
    run(elsewhere, tmp_path)
    assert checkpoint.load(tmp_path / "last.pt")["step"] == STEPS


def test_a_run_that_did_no_step_makes_room_for_another_recipe(data, tmp_path):
    with np.load(data) as archive:
        np.savez(tmp_path / "one.npz", test_x=archive["test_x"])
    out = tmp_path / "run"
    with pytest.raises(DataError, match="no labels of two classes"):
        run(small(data, evaluation={"data": f"{tmp_path}/one.npz#test"}), out)
    run(small(data, seed=1), out)
    assert "seed: 1" in (out / "recipe.yaml").read_text()


def test_another_number_of_images_is_refused_and_an_older_checkpoint_is_not(
    data, recipe, whole, tmp_path
):
    with np.load(data) as archive:
        fewer = {name: archive[name][:-1] for name in archive.files}
    np.savez(tmp_path / "fewer.npz", **fewer)
    count = len(fewer["train_x"])
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(recipe, out, 4)
    with pytest.raises(CheckpointError, match=f"on {count + 1} images, and data holds {count};"):
        run(small(str(tmp_path / "fewer.npz")), out)
    older = checkpoint.load(out / "last.pt")
    del older["images"]
    checkpoint.save(out / "last.pt", older)
    assert equal(whole, checkpoint.load(run(recipe, out)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda state: {"model": state["objective"]}, "none of `foveal-train run`"),
        (lambda state: [1, 2], "none of `foveal-train run`"),
        (lambda state: state | {"objective": {}}, "of another version"),
        (lambda state: state | {"optimizer": {"state": {}, "param_groups": []}}, "another version"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(recipe, whole, tmp_path, spoil, message):
    checkpoint.save(tmp_path / "last.pt", spoil(whole))
    with pytest.raises(CheckpointError, match=f"{message}.*; choose another output folder"):
        run(recipe, tmp_path)


def test_what_does_not_change_the_numbers_may_change(data, recipe, whole, tmp_path):
    with pytest.raises(Interrupted):
        run(recipe, tmp_path, 3)
    other = small(data, evaluation={"data": f"{data}#test", "k": 3})
    resumed = checkpoint.load(run(other, tmp_path))
    assert equal(whole["objective"], resumed["objective"])


def test_the_last_checkpoints_and_the_best_are_kept(data, tmp_path):
    recipe = small(data, epochs=4, evaluation={"data": f"{data}#test", "every": 1, "k": 3})
    last = run(recipe, tmp_path, keep=2)
    names = sorted(path.name for path in tmp_path.glob("*.pt"))
    assert names == ["best.pt", "last.pt", "step-00000011.pt", "step-00000012.pt"]
    assert not list(tmp_path.glob("*.tmp"))
    assert equal(checkpoint.load(last), checkpoint.load(tmp_path / "step-00000012.pt"))
    evaluations = logged(tmp_path, "evaluations")
    best = max(evaluations, key=lambda evaluation: evaluation["knn"])
    assert checkpoint.load(tmp_path / "best.pt")["step"] == best["step"]


def test_a_finished_run_is_left_as_it_is(data, tmp_path):
    recipe = small(data, evaluation={"data": f"{data}#test", "k": 3})
    run(recipe, tmp_path)
    kept = ["last.pt", "best.pt", "log.jsonl", "evaluations.jsonl", "recipe.yaml"]
    before = [(tmp_path / name).read_bytes() for name in kept]
    run(recipe, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in kept] == before


def test_a_batch_larger_than_the_set_is_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(DataError, match="lower batch_size"):
        run(small(data, batch_size=64), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_arithmetic_of_auto_is_said_at_the_start_and_kept(data, recipe, tmp_path):
    recipe = recipe.model_copy(
        update={"head": recipe.head.model_copy(update={"prototypes": "auto"})}
    )
    listener = Listener()
    options = RunOptions(out=tmp_path, device=torch.device("cpu"), workers=0)
    train(recipe, options, listener)
    (note,) = listener.notes
    assert note.startswith("head.prototypes = 1024: ")
    assert note in (tmp_path / "recipe.yaml").read_text()
