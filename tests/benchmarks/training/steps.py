"""Steps of the published training beside the trainer's own."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.training.published import Step
from training.trainer import Trainer

CLOSE = {"atol": 1e-5, "rtol": 0}


def assert_same_steps(
    trainer: Trainer, step: Step, crops: Callable[[int], list[Tensor]], *, per_epoch: int
) -> None:
    """Take the steps of two epochs by both; losses and networks agree within 1e-5."""
    for group in (*trainer.optimizer.param_groups, *step.optimizer.param_groups):
        # Adam makes whole steps of the keys' biases' gradients, which are rounding errors: softmax
        # does not see those biases. A larger epsilon keeps such steps small.
        group["eps"] = 1e-4
    for number in range(2 * per_epoch):
        ours = trainer.train_step(crops(number))
        theirs = step(
            crops(number),
            lr=trainer.lr[number],
            weight_decay=trainer.weight_decay[number],
            momentum=trainer.momentum[number],
            temperature=trainer.temperature[number],
            freeze_last_layer=number < per_epoch,
        )
        assert theirs == pytest.approx(ours["loss"], abs=1e-5)
    objective = trainer.objective
    student, teacher = objective.student.state_dict(), objective.teacher.network.state_dict()
    torch.testing.assert_close(step.student.state_dict(), student, **CLOSE)
    torch.testing.assert_close(step.teacher.state_dict(), teacher, **CLOSE)
