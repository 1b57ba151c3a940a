"""k-NN accuracy while a run goes on, from the training images to held-out ones."""

from __future__ import annotations

import numpy as np

from service.bundle import InputSpec
from training.config import Recipe, RecipeError
from training.data.sources import DataError, Source
from training.evaluation.features import Embedded, Report, embed
from training.evaluation.knn import knn_accuracy
from training.models.backbone import Backbone


class Validation:
    """Classifies held-out images by their neighbours among the training images.

    Args:
        train: Labelled images to find neighbours among.
        held_out: Labelled images to classify, with the same classes.
        spec: How an image becomes the model's input.
        k: Neighbours that vote.
        most: Images of either set that take part, evenly chosen; None for all.

    Raises:
        DataError: One of them has no labels, or their classes differ.
    """

    def __init__(
        self, train: Source, held_out: Source, spec: InputSpec, k: int, most: int | None = None
    ) -> None:
        for source in (train, held_out):
            if len(set(source.labels)) < 2:
                raise DataError(f"{source.name} has no labels of two classes; k-NN needs them")
        if train.classes != held_out.classes:
            raise DataError(
                f"{train.name} and {held_out.name} have different classes: "
                f"{len(train.classes)} and {len(held_out.classes)} of other names"
            )
        self.train, self.held_out, self.spec, self.k = train, held_out, spec, k
        self.among, self.queries = (_some(len(s), most) for s in (train, held_out))

    @property
    def images(self) -> int:
        """Images that `accuracy` embeds."""
        return len(self.among) + len(self.queries)

    def accuracy(self, backbone: Backbone, report: Report = lambda count: None) -> float:
        """Top-1 accuracy in percent; the backbone comes back in the mode that it was in."""
        training = backbone.training
        backbone.eval()
        keys = embed(backbone, self.train, self.among, self.spec, report)
        queries = embed(backbone, self.held_out, self.queries, self.spec, report)
        backbone.train(training)
        return self.share(keys, queries)

    def share(self, keys: Embedded, queries: Embedded) -> float:
        """Top-1 accuracy in percent of the held-out features among the training ones."""
        labels = np.array(self.train.labels)[keys.indices]
        expected = np.array(self.held_out.labels)[queries.indices]
        return 100 * knn_accuracy(keys.features, labels, queries.features, expected, self.k)


def input_spec(recipe: Recipe, size: int | None = None, resize: int | None = None) -> InputSpec:
    """How images are fitted for evaluation.

    Args:
        recipe: Of the model.
        size: Side of the crop in pixels; None takes the recipe's.
        resize: Short side before the crop; None takes the recipe's where the crop is the recipe's,
            too, and else the protocol's, 256 over 224 of the crop.

    Raises:
        RecipeError: The size is no whole number of patches, or larger than the short side.
    """
    config = recipe.evaluation
    own = config.size or recipe.crops.global_size
    size = size or own
    resize = resize or (config.resize if size == own else None) or round(size * 256 / 224)
    # Only a ViT takes nothing but whole patches.
    vit = recipe.model.architecture.startswith("vit")
    multiple = recipe.model.patch_size if vit else 1
    if size % multiple:
        near = max(1, round(size / multiple)) * multiple
        raise RecipeError(f"size {size} is no multiple of the patch, {multiple} px; try {near}")
    if resize < size:
        raise RecipeError(f"resize {resize} is less than the crop's side; name {size} or more")
    return InputSpec(
        resize=resize,
        crop=size,
        multiple=multiple,
        mean=recipe.pixels.mean,
        std=recipe.pixels.std,
    )


def _some(count: int, most: int | None) -> list[int]:
    """Indices of at most so many, evenly spread over the whole."""
    if most is None or count <= most:
        return list(range(count))
    return [index * count // most for index in range(most)]
