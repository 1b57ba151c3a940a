"""`POST /attention`: where the model looks, as numbers or as a picture."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.attention import mass_masks, render, run_lengths, select_heads
from service.engines.base import Outputs
from service.errors import FovealError
from service.models import Model
from service.routes.answers import (
    NPY,
    all_or_error,
    each,
    json_response,
    npy_response,
    require_one,
    run_each,
    stacked,
)
from service.routes.body import deadline, while_connected
from service.routes.documented import ERRORS, FILE, image_input
from service.routes.gateway import Gateway
from service.routes.inputs import Asked, receive
from service.schemas import AttentionAnswer, AttentionOptions

router = APIRouter(tags=["images"])

DRAWN_MASS = 0.6  # as in Figure 4 of the DINO paper


@router.post(
    "/attention",
    response_model=None,
    responses={
        200: {"model": AttentionAnswer, "content": {NPY: FILE, "image/png": FILE}},
        **ERRORS,
    },
    openapi_extra=image_input(AttentionOptions),
)
async def attention(request: Request) -> Response:
    """Give the last layer's attention from the query token to each patch.

    `output=npy` gives float32 [heads, rows, columns] for one image and [images, heads, rows,
    columns] for several of one grid; `output=png` draws one image.
    """
    asked = await receive(request, AttentionOptions)
    model = Gateway.of(request).model(asked.options.model)
    view = model.view(asked.options)
    if asked.options.output == "png":
        asked.only_image()
    results = require_one(await run_each(request, model, asked.images, view, ("attention",)))
    if asked.options.output == "npy":
        return npy_response(_stack(all_or_error(results), asked.options))
    if asked.options.output == "png":
        return await _draw(request, model, asked, all_or_error(results)[0])
    # Masks take a while, and other requests should not wait for them.
    images = await asyncio.to_thread(_describe, results, asked.options, model)
    return json_response({**model.served, "images": images})


def _describe(
    results: list[Outputs | FovealError], options: AttentionOptions, model: Model
) -> list[dict[str, Any]]:
    def describe(found: Outputs) -> dict[str, Any]:
        heads, maps = select_heads(found["attention"], options.heads)
        answer: dict[str, Any] = {
            "grid": maps.shape[1:],
            "query": model.manifest.attention.query,
            "heads": heads,
            "attention": np.ascontiguousarray(maps),
        }
        if options.mass is not None:
            answer["masks"] = [run_lengths(mask) for mask in mass_masks(maps, options.mass)]
        return answer

    return each(results, describe)


def _stack(outputs: list[Outputs], options: AttentionOptions) -> np.ndarray[Any, Any]:
    maps = [select_heads(found["attention"], options.heads)[1] for found in outputs]
    return maps[0] if len(maps) == 1 else stacked(maps)


async def _draw(
    request: Request, model: Model, asked: Asked[AttentionOptions], found: Outputs
) -> Response:
    options = asked.options
    _, maps = select_heads(found["attention"], options.heads)
    source = asked.only_image()
    if isinstance(source, FovealError):
        raise source
    until = deadline(request, Gateway.of(request).settings)
    decoding = model.pipeline.pixels(source, model.view(options), until)
    pixels = await while_connected(request, decoding)
    mass = DRAWN_MASS if options.mass is None else options.mass
    picture = await asyncio.to_thread(render, pixels, maps, options.view, mass)
    return Response(picture, media_type="image/png")
