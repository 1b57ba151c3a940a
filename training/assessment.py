"""A finished run's network, and its k-NN accuracy beside what it has to beat."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

from service.bundle import InputSpec
from training import checkpoint
from training.build import build
from training.config import Recipe
from training.data.sources import DataError, open_source
from training.evaluation.features import Report, raw_pixels
from training.evaluation.validation import Validation
from training.models.backbone import Backbone

HELD_OUT = ("val", "test")


class Floor(StrEnum):
    """What a trained model has to beat."""

    PIXELS = "pixels"
    UNTRAINED = "untrained"


class Trained(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        recipe: Of the run.
        step: Steps that it has done.
        backbone: The network that is kept, in evaluation mode.
    """

    recipe: Recipe
    step: int
    backbone: Backbone


def load_trained(path: Path) -> Trained:
    """Read a checkpoint of `foveal-train run`.

    Raises:
        CheckpointError: It cannot be read, or is of something else.
        RecipeError: Its recipe is of another version.
    """
    state: Any = checkpoint.load(path)
    if not isinstance(state, dict) or not {"recipe", "objective", "step"} <= state.keys():
        raise checkpoint.CheckpointError(
            f"{path} is no checkpoint of `foveal-train run`; `foveal-train import` reads others"
        )
    recipe = Recipe.check(state["recipe"], str(path))
    objective = build(recipe)
    try:
        objective.load_state_dict(state["objective"])
    except (RuntimeError, TypeError):
        raise checkpoint.CheckpointError(
            f"{path} is of another version of foveal-train, whose networks have other weights; "
            "use that one"
        ) from None
    return Trained(recipe, state["step"], objective.backbone.eval())


class Assessment:
    """Measures k-NN accuracies in percent, from labelled training images to held-out ones.

    Args:
        recipe: Of the model.
        data: Folder with train/ and val/ (or test/), or an .npz file with both.
        spec: How an image becomes the model's input.
        k: Neighbours that vote.
    """

    def __init__(self, recipe: Recipe, data: str, spec: InputSpec, k: int) -> None:
        train, held_out = (open_source(s, recipe.pixels.channels) for s in splits(data))
        self.validation = Validation(train, held_out, spec, k)

    @property
    def images(self) -> int:
        """Images that one measurement looks at."""
        return self.validation.images

    def measure(
        self, trained: Trained, instead: Floor | None, report: Report = lambda count: None
    ) -> float:
        """Of the trained network, or of a floor instead."""
        if instead is Floor.PIXELS:
            return self._pixels(report)
        if instead is Floor.UNTRAINED:
            return self.validation.accuracy(build(trained.recipe).backbone, report)
        return self.validation.accuracy(trained.backbone, report)

    def _pixels(self, report: Report) -> float:
        train, held_out = self.validation.train, self.validation.held_out
        keys, queries = raw_pixels(train, report), raw_pixels(held_out, report)
        centre = keys.features.mean(axis=0)
        keys = keys._replace(features=keys.features - centre)
        queries = queries._replace(features=queries.features - centre)
        return self.validation.share(keys, queries)


def splits(data: str) -> tuple[str, str]:
    """The locations of the training images and of the held-out ones.

    Raises:
        DataError: The folder has neither val/ nor test/.
    """
    if data.endswith(".npz"):
        return f"{data}#train", f"{data}#test"
    for name in HELD_OUT:
        if (Path(data) / name).is_dir():
            return f"{data}/train", f"{data}/{name}"
    raise DataError(f"{data} must hold train/ and one of {', '.join(HELD_OUT)}")
