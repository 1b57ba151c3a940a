"""`auto`: head size, temperature and momentum scaled to the data, with the arithmetic shown.

Published runs see 1.28 million images; on a few thousand the same numbers leave the targets
uniform. The rules go from advice for small data (1,024 prototypes and a temperature of 0.02 for
20,000 images or fewer, 2,048 prototypes at 50,000, 4,096 at 100,000, momenta from 0.99) to the
papers' values from 500,000 images on (65,536 prototypes, 0.07).
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from training.config import Recipe

PROTOTYPES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (500_000, 65536))
TEMPERATURES = ((20_000, 0.02), (500_000, 0.07))
# Above it, short runs stay uniform.
SHORT_LIMIT = 0.04
LONG = 100  # epochs
# The published 0.996 is an average over 250 steps, a fifth of an epoch of 1,251 batches of 1,024.
EPOCH_SHARE = 0.2
MOMENTA = (0.99, 0.9995)


def resolve(recipe: Recipe, images: int) -> tuple[Recipe, list[str]]:
    """Put numbers in the place of `auto`.

    Args:
        recipe: As it was written.
        images: Number of training images.

    Returns:
        The recipe without `auto`, and a sentence for each number that was found.
    """
    head: dict[str, Any] = {}
    teacher: dict[str, Any] = {}
    arithmetic: list[str] = []
    if recipe.head.prototypes == "auto":
        exact = interpolate(PROTOTYPES, images)
        head["prototypes"] = count = 2 ** round(math.log2(exact))
        arithmetic.append(
            f"head.prototypes = {count}: {exact:.0f} for {images:,} images, to a power of two"
        )
    if recipe.teacher.momentum == "auto":
        steps = images // recipe.batch_size
        span = max(1.0, EPOCH_SHARE * steps)
        exact = 1.0 - 1.0 / span
        teacher["momentum"] = momentum = round(min(max(exact, MOMENTA[0]), MOMENTA[1]), 5)
        arithmetic.append(
            f"teacher.momentum = {momentum}: an average over {EPOCH_SHARE} epochs of {steps:,} "
            f"steps is 1 - 1 / {span:.0f}, kept within {MOMENTA[0]} and {MOMENTA[1]}"
        )
    if recipe.teacher.temperature == "auto":
        exact = interpolate(TEMPERATURES, images)
        limit = TEMPERATURES[-1][1] if recipe.epochs >= LONG else SHORT_LIMIT
        teacher["temperature"] = temperature = round(min(exact, limit), 4)
        arithmetic.append(
            f"teacher.temperature = {temperature}: {exact:.4f} for {images:,} images, at most "
            f"{limit} for {recipe.epochs} epochs"
        )
    if recipe.teacher.warmup_temperature == "auto":
        end = teacher.get("temperature", recipe.teacher.temperature)
        teacher["warmup_temperature"] = start = min(SHORT_LIMIT, end)
        arithmetic.append(
            f"teacher.warmup_temperature = {start}: the lower of {SHORT_LIMIT} and {end}"
        )
    return (
        recipe.model_copy(
            update={
                "head": recipe.head.model_copy(update=head),
                "teacher": recipe.teacher.model_copy(update=teacher),
            }
        ),
        arithmetic,
    )


def interpolate(points: tuple[tuple[float, float], ...], x: float) -> float:
    """A value between the points, both axes logarithmic; constant beyond their ends."""
    x = min(max(x, points[0][0]), points[-1][0])
    for (left, low), (right, high) in itertools.pairwise(points):
        if x <= right:
            share = math.log(x / left) / math.log(right / left)
            return float(low * (high / low) ** share)
    raise AssertionError("x lies between the ends")
