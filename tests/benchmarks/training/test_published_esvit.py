import pytest
import torch
from torch import Tensor

from benchmarks.training.published import Head, Step
from benchmarks.training.published_esvit import Loss, Network, SwinTransformer
from tests.benchmarks.training.steps import CLOSE, assert_same_steps
from training.config import Recipe
from training.models import swin
from training.objectives.esvit import EsViT
from training.trainer import Trainer

STEPS_PER_EPOCH = 2
SIZE = (12, (2, 2, 2), (1, 2, 3))
RECIPE = {
    "name": "tiny",
    "data": "none",
    "epochs": 2,
    "batch_size": 2,
    "precision": "fp32",
    "model": {"architecture": "swin_tiny", "window": 7, "drop_path": 0.0},
    "objective": {"name": "esvit"},
    # The map is 16, 8 and 4 tokens wide, so windows are padded, shifted and cut short.
    "crops": {"global_size": 64, "local_size": 36, "local_count": 2},
    "head": {"prototypes": 48, "hidden": 40, "bottleneck": 16},
    "optimizer": {"lr": 0.5, "warmup_epochs": 0, "clip_grad": 3.0, "freeze_last_layer": 1},
    "teacher": {"momentum": 0.7, "temperature": 0.05, "warmup_temperature": 0.05},
}


def published(trainer: Trainer) -> Step:
    """The published step from the trainer's own start."""

    def network() -> Network:
        dim = SIZE[0] * 4
        return Network(
            SwinTransformer(*SIZE, window=7, image_size=64),
            Head(dim, 48, 40, 16),
            Head(dim, 48, 40, 16),
        )

    objective = trainer.objective
    assert isinstance(objective, EsViT)
    student = network()
    student.load_state_dict(objective.student.state_dict())
    return Step(student, network(), Loss(48))


def crops(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, side, side, generator=generator) for side in (64, 64, 36, 36)]


def test_published_steps_are_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(swin.SIZES, "swin_tiny", SIZE)
    trainer = Trainer(Recipe.model_validate(RECIPE), STEPS_PER_EPOCH)
    step = published(trainer)
    assert_same_steps(trainer, step, crops, per_epoch=STEPS_PER_EPOCH)
    objective = trainer.objective
    assert isinstance(objective, EsViT)
    torch.testing.assert_close(step.loss.center[0], objective.centering.center, **CLOSE)
    torch.testing.assert_close(
        step.loss.region_center[0], objective.region_centering.center, **CLOSE
    )
