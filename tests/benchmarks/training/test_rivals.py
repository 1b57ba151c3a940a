import pytest

from benchmarks.training.rivals import ROWS, compare
from training.config import Recipe


@pytest.mark.parametrize("recipe", ["fashion-vitn4", "cifar10-vitt4"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.method)
def test_every_row_is_a_recipe_that_can_be_run(row, recipe):
    base, loaded = Recipe.load(recipe), Recipe.load(recipe, row.overrides)
    for shared in ("model", "epochs", "batch_size", "seed", "pixels"):
        assert getattr(loaded, shared) == getattr(base, shared)
    assert loaded.optimizer.lr == base.optimizer.lr
    assert (loaded == base) == (row.number == 1)


def test_pairs_are_told_apart_by_more_than_the_seeds_spread():
    table = [
        {"method": "a", "mean": 70.0, "spread": 0.5, "published": 72.0},
        {"method": "b", "mean": 60.0, "spread": 0.5, "published": 68.0},
        {"method": "c", "mean": 60.8, "spread": 0.4, "published": 50.0},
        {"method": "d", "mean": 75.0, "spread": 0.1, "published": 40.0},
    ]
    agree, disagree, close = compare(table)
    assert agree == ["a and b", "a and c"]
    assert close == ["b and c"]
    assert disagree == ["a and d", "b and d", "c and d"]
