"""Vectors to compare: of an image, or sent by the client."""

from __future__ import annotations

import numpy as np
from starlette.requests import Request

from service.errors import FovealError, InvalidOption
from service.images import View
from service.index.base import Vector
from service.models import Model
from service.pooling import unit
from service.routes.answers import run_each
from service.routes.inputs import Source


async def image_vector(request: Request, model: Model, image: Source, view: View) -> Vector:
    """Embed the one image of a request; its own error is raised."""
    (result,) = await run_each(request, model, [image], view, ("embedding",))
    if isinstance(result, FovealError):
        raise result
    return result["embedding"]


def given_vector(values: list[float], dim: int) -> Vector:
    """The direction of a vector that the client sent, at unit length.

    Raises:
        InvalidOption: It has another length than the model's, or no direction.
    """
    if len(values) != dim:
        raise InvalidOption(f"embedding: has {len(values)} numbers; the model's have {dim}.")
    wide = np.asarray(values, np.float64)
    largest = np.abs(wide).max()
    if largest == 0:
        raise InvalidOption("embedding: all its numbers are 0, which has no direction.")
    # Divided twice, because the squares of very large numbers overflow.
    return unit((wide / largest).astype(np.float32))
