import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from training.journal import Journal, read


def record(step):
    return {"step": step, "steps": 9, "epoch": 0, "loss": 1 / step, "entropy": 0.5}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def board(folder):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(folder, tag):
    return [(event.step, event.value) for event in board(folder).Scalars(tag)]


def test_a_step_is_a_line_that_can_be_read_while_the_run_goes_on(tmp_path):
    with Journal(tmp_path / "new/run", 0) as journal:
        for step in (1, 2, 3):
            journal.step(record(step))
            assert lines(tmp_path / "new/run/log.jsonl")[-1] == record(step)
    assert list(read(tmp_path / "new/run/log.jsonl")) == [record(1), record(2), record(3)]


def test_tensorboard_shows_the_same_numbers(tmp_path):
    with Journal(tmp_path, 0) as journal:
        for step in (1, 2, 4):
            journal.step(record(step))
        journal.evaluation({"step": 4, "epoch": 1, "knn": 62.5})
        journal.warning(4, "the loss stands still")
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5), (4, 0.25)]
    assert scalars(tmp_path, "evaluation/knn") == [(4, 62.5)]
    assert set(board(tmp_path).Tags()["scalars"]) == {
        "train/epoch",
        "train/loss",
        "train/entropy",
        "evaluation/epoch",
        "evaluation/knn",
    }
    assert "warnings/text_summary" in board(tmp_path).Tags()["tensors"]


def test_after_a_resume_no_step_occurs_twice(tmp_path, monkeypatch):
    # A process's files of one second are read in the order of their numbers as text, 10 before 9.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    with Journal(tmp_path, 0) as journal:
        for step in range(1, 6):
            journal.step(record(step))
            journal.evaluation({"step": step, "epoch": 0, "knn": float(step)})
            journal.warning(step, f"after {step}")
    with Journal(tmp_path, 3) as journal:
        for step in range(4, 7):
            journal.step({**record(step), "loss": 9.0})
    log = lines(tmp_path / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["loss"] for line in log[3:]] == [9.0, 9.0, 9.0]
    assert [line["step"] for line in lines(tmp_path / "evaluations.jsonl")] == [1, 2, 3]
    assert [line["message"] for line in lines(tmp_path / "warnings.jsonl")] == [
        "after 1",
        "after 2",
        "after 3",
    ]
    assert scalars(tmp_path, "train/loss")[3:] == [(4, 9.0), (5, 9.0), (6, 9.0)]
    assert [step for step, _ in scalars(tmp_path, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in scalars(tmp_path, "evaluation/knn")] == [1, 2, 3]


@pytest.mark.parametrize("half", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "\0\0\0\n"])
def test_a_line_that_was_cut_short_is_dropped(tmp_path, half):
    with Journal(tmp_path, 0) as journal:
        journal.step(record(1))
        journal.step(record(2))
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + half)
    assert [line["step"] for line in read(path)] == [1, 2]
    with Journal(tmp_path, 5) as journal:
        journal.step(record(6))
    assert [line["step"] for line in lines(path)] == [1, 2, 6]


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path):
    with Journal(tmp_path, 0) as journal:
        journal.step(record(1))
    with Journal(tmp_path, 0):
        pass
    assert lines(tmp_path / "log.jsonl") == []


def test_a_file_that_is_not_there_has_no_records(tmp_path):
    assert list(read(tmp_path / "log.jsonl")) == []
