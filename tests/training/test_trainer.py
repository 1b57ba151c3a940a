import functools

import pytest
import torch
from torch._dynamo.utils import counters

from tests.training.runs import SWIN, assert_close, equal, losses, small
from training.devices import has_bf16
from training.trainer import Diverged, Trainer


def noise(side, batch=16):
    return [torch.randn(batch, 3, side, side) for _ in range(2)]


def test_a_loss_that_is_no_number_stops_before_the_update():
    trainer = Trainer(small(), 3)
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    with pytest.raises(Diverged, match=r"at step 0; lower optimizer\.lr"):
        trainer.train_step([torch.full((2, 3, 32, 32), float("nan"))] * 2)
    assert trainer.step == 0
    assert equal(before, dict(trainer.objective.state_dict()))


def test_parts_of_a_batch_give_the_step_of_the_whole():
    steady = {"model": {"drop_path": 0.0}, "optimizer": {"name": "sgd", "lr": 4.0}}
    steady["optimizer"]["warmup_epochs"] = 0
    one, whole = losses(small(**steady), 4)
    four, parts = losses(small(accumulate=4, **steady), 4)
    # The spread over a part is another one than that over the batch.
    keys = ("loss", "entropy", "kl")
    for record, wanted in zip(four, one, strict=True):
        assert [record[key] for key in keys] == pytest.approx([wanted[key] for key in keys], 1e-4)
    assert_close(parts["objective"], whole["objective"], 1e-4)


def test_the_prototypes_rest_in_the_first_epochs():
    trainer = Trainer(small(optimizer={"freeze_last_layer": 1, "warmup_epochs": 0}), 2)
    (prototypes, _) = trainer.objective.last_layers()
    moved = []
    for _ in range(3):
        before = prototypes.detach().clone()
        trainer.train_step(noise(32))
        moved.append(not torch.equal(prototypes, before))
    assert moved == [False, False, True]


def test_a_step_is_done_by_its_schedules():
    trainer = Trainer(small(optimizer={"warmup_epochs": 1}, epochs=2), 3)
    records = [trainer.train_step(noise(32)) for _ in range(6)]
    # 0.01 for a batch of 256 is 0.000625 for one of 16, at the end of the warm-up.
    rates = [record["lr"] for record in records]
    assert rates[:4] == pytest.approx([0.0, 0.0003125, 0.000625, 0.000625])
    assert rates[3] > rates[4] > rates[5] > 0
    assert records[0]["weight_decay"] == pytest.approx(0.04)
    assert records[0]["momentum"] == pytest.approx(0.996)
    assert records[-1]["momentum"] > 0.999


def test_auto_precision_is_bf16_where_the_processor_has_it():
    trainer = Trainer(small(precision="auto"), 3)
    assert trainer.bf16 == has_bf16(torch.device("cpu"))


def test_bf16_gives_nearly_the_losses_of_fp32():
    # From other seeds' starts the losses swing, and a processor's rounding with them.
    single, _ = losses(small(seed=3), 6)
    half, state = losses(small(seed=3, precision="bf16"), 6)
    assert [r["loss"] for r in half] != [r["loss"] for r in single]
    for record, wanted in zip(half, single, strict=True):
        assert record["loss"] == pytest.approx(wanted["loss"], rel=0.02)
    assert {value.dtype for value in state["objective"].values()} == {torch.float32}


@pytest.mark.parametrize(
    "changes", [{"crops": {"local_count": 1}}, {"objective": {"name": "esvit"}, **SWIN}]
)
def test_compiled_backbones_compute_the_same_under_the_same_names(monkeypatch, changes):
    # Without the kernels, which take minutes to build.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    counters.clear()
    records, state = losses(small(compile=True, **changes), 2)
    assert counters["stats"]["unique_graphs"] == 3  # student, two sizes; teacher, one
    assert not counters["graph_break"]
    expected_records, expected = losses(small(**changes), 2)
    # A compiled linear layer is not multiplied by the same library: the last digits differ.
    for record, wanted in zip(records, expected_records, strict=True):
        assert record == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert list(state["objective"]) == list(expected["objective"])
