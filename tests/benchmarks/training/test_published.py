import pytest
import torch
from torch import Tensor, nn

from benchmarks.training.published import Head, Loss, Network, Step, VisionTransformer, clip
from tests.benchmarks.training.steps import CLOSE, assert_same_steps
from training.config import Recipe
from training.objectives.dino import DINO
from training.objectives.targets import Centering
from training.trainer import Trainer

STEPS_PER_EPOCH = 3
RECIPE = {
    "name": "tiny",
    "data": "none",
    "epochs": 2,
    "batch_size": 2,
    "precision": "fp32",
    "model": {"architecture": "vit_micro", "patch_size": 8, "drop_path": 0.0},
    "crops": {"global_size": 32, "local_size": 16, "local_count": 3},
    "head": {"prototypes": 48, "hidden": 40, "bottleneck": 16},
    "optimizer": {"lr": 0.5, "warmup_epochs": 0, "clip_grad": 3.0, "freeze_last_layer": 1},
    "teacher": {"momentum": 0.7, "temperature": 0.05, "warmup_temperature": 0.05},
}


def published(trainer: Trainer) -> Step:
    """The published step from the trainer's own start."""
    objective = trainer.objective
    assert isinstance(objective, DINO)
    backbone = objective.student.backbone

    def network() -> Network:
        theirs = VisionTransformer(8, backbone.dim, len(backbone.blocks), backbone.heads, 32)
        return Network(theirs, Head(backbone.dim, 48, 40, 16))

    student = network()
    student.load_state_dict(objective.student.state_dict())
    return Step(student, network(), Loss(48))


def crops(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, side, side, generator=generator) for side in (32, 32, 16, 16, 16)]


def test_published_steps_are_the_trainers() -> None:
    trainer = Trainer(Recipe.model_validate(RECIPE), STEPS_PER_EPOCH)
    step = published(trainer)
    assert_same_steps(trainer, step, crops, per_epoch=STEPS_PER_EPOCH)
    objective = trainer.objective
    assert isinstance(objective, DINO)
    assert isinstance(objective.targets, Centering)
    torch.testing.assert_close(step.loss.center[0], objective.targets.center, **CLOSE)


def test_clip_limits_each_gradient_on_its_own() -> None:
    model = nn.Linear(4, 2)
    model.weight.grad = torch.full((2, 4), 5.0)
    model.bias.grad = torch.tensor([0.6, 0.8])
    clip(model, 3.0)
    assert model.weight.grad.norm().item() == pytest.approx(3.0)
    assert model.bias.grad.tolist() == pytest.approx([0.6, 0.8])
