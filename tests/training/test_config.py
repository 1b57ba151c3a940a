import pytest

from training.config import RECIPES, Recipe, RecipeError


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_in_the_box_is_valid(path):
    assert Recipe.load(path.stem).name == path.stem


def test_overrides_reach_into_groups():
    overrides = ("epochs=3", "optimizer.lr=0.5", "model.patch_size=16")
    recipe = Recipe.load("imagenette-vitt8", overrides)
    assert (recipe.epochs, recipe.optimizer.lr, recipe.model.patch_size) == (3, 0.5, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("epoch=3",), "epoch: Extra inputs"),
        (("optimizer.learning_rate=1",), r"optimizer\.learning_rate: Extra inputs"),
        (("epochs=0",), "epochs: .*greater than 0"),
        (("crops.local_size=30",), "no multiple of model.patch_size"),
        (("epochs",), "key=value"),
        (("epochs.x=1",), "epochs is a value"),
    ],
)
def test_what_does_not_hold_together_is_named(overrides, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.load("imagenette-vitt8", overrides)


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(RecipeError, match="imagenette-vitt8"):
        Recipe.load("nonesuch")
