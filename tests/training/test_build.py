"""Every recipe in the box builds its networks, and learns when it is made tiny."""

import pytest
import torch

from training.auto import resolve
from training.build import build
from training.config import RECIPES, Recipe
from training.trainer import Trainer

BOXED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
IMAGES = 1_281_167
BATCH = 4
# The least that differs from the recipe: what decides which code runs stays as it is.
SMALL = ("epochs=2", f"batch_size={BATCH}", "precision=fp32", "resident=false")


def tiny(name):
    """The recipe with a small network, small crops and a small head."""
    full = Recipe.load(name)
    window = full.model.window
    model, (large, small) = {
        "vit": ("{architecture: vit_nano, patch_size: 4}", (16, 8)),
        "swi": (f"{{architecture: swin_tiny, window: {window}}}", (32, 16)),
        "res": ("{architecture: resnet18}", (16, 8)),
    }[full.model.architecture[:3]]
    overrides = [
        *SMALL,
        f"model={model}",
        f"crops.global_size={large}",
        f"crops.local_size={small}",
        f"crops.local_count={min(full.crops.local_count, 2)}",
        "head.hidden=16",
        "head.bottleneck=8",
        "evaluation=null",
    ]
    if full.objective.name in ("dino", "esvit", "swav"):
        overrides.append("head.prototypes=16")
    if full.objective.name == "moco":
        overrides.append("objective.queue=8")
    return resolve(Recipe.load(name, tuple(overrides)), IMAGES)[0]


@pytest.mark.parametrize("name", BOXED)
def test_every_recipe_builds_at_full_size(name):
    recipe, _ = resolve(Recipe.load(name), IMAGES)
    with torch.device("meta"):
        objective = build(recipe)
    assert objective.backbone.dim > 0
    assert objective.outcomes in (None, recipe.head.prototypes)


@pytest.mark.parametrize("name", BOXED)
def test_every_recipe_takes_steps(name):
    recipe = tiny(name)
    trainer = Trainer(recipe, steps_per_epoch=1)
    before = [parameter.detach().clone() for parameter in trainer.parameters]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        crops = [
            torch.randn(BATCH, recipe.pixels.channels, side, side, generator=generator)
            for side in recipe.crops.sides
        ]
        assert 0 < trainer.train_step(crops)["loss"] < 100
    moved = [not torch.equal(*pair) for pair in zip(before, trainer.parameters, strict=True)]
    # The regions' head waits for its epochs, and biases in front of a norm have no gradient.
    assert sum(moved) > 0.7 * len(moved)
