"""`POST /correspond`: which patch of one photograph is which of another."""

from __future__ import annotations

import asyncio

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.correspondence import correspond
from service.errors import InvalidOption
from service.routes.answers import (
    NPY,
    all_or_error,
    json_response,
    npy_response,
    run_each,
    wants_npy,
)
from service.routes.documented import ERRORS, FILE, image_input
from service.routes.gateway import Gateway
from service.routes.inputs import receive
from service.schemas import CorrespondAnswer, CorrespondOptions

router = APIRouter(tags=["images"])


@router.post(
    "/correspond",
    response_model=None,
    responses={200: {"model": CorrespondAnswer, "content": {NPY: FILE}}, **ERRORS},
    openapi_extra=image_input(CorrespondOptions, count=2),
)
async def correspond_patches(request: Request) -> Response:
    """Find for each patch of the first image its best match in the second.

    With `Accept: application/x-npy` the answer is float32 [rows, columns, 4] over the first grid:
    the match's row and column, the cosine, and 1 where the match is mutual.
    """
    asked = await receive(request, CorrespondOptions)
    if len(asked.images) != 2:
        raise InvalidOption(f"images: send exactly two here; there are {len(asked.images)}.")
    model = Gateway.of(request).model(asked.options.model)
    view = model.view(asked.options)
    first, second = (
        found["patches"]
        for found in all_or_error(await run_each(request, model, asked.images, view, ("patches",)))
    )
    found = await asyncio.to_thread(correspond, first, second)
    if wants_npy(request):
        layers = (found.matches, found.scores[..., None], found.mutual[..., None])
        return npy_response(np.concatenate(layers, axis=-1, dtype=np.float32))
    return json_response(
        {
            **model.served,
            "grids": [first.shape[:2], second.shape[:2]],
            "matches": found.matches,
            "scores": found.scores,
            "mutual": found.mutual,
        }
    )
