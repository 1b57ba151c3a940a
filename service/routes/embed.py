"""`POST /embed`: photographs to vectors that compare them."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.routes.answers import (
    NPY,
    all_or_error,
    each,
    json_response,
    npy_response,
    require_one,
    run_each,
)
from service.routes.documented import ERRORS, image_input
from service.routes.gateway import Gateway
from service.routes.inputs import receive
from service.routes.vectors import unit
from service.schemas import EmbedAnswer, EmbedOptions

router = APIRouter(tags=["images"])


@router.post(
    "/embed",
    response_model=None,
    responses={200: {"model": EmbedAnswer, "content": {NPY: {}}}, **ERRORS},
    openapi_extra=image_input(EmbedOptions),
)
async def embed(request: Request) -> Response:
    """Embed images.

    With `Accept: application/x-npy` the answer is one float32 array [images, dim]; it has no place
    for errors, so the first image that fails fails the request.
    """
    asked = await receive(request, EmbedOptions)
    model = Gateway.of(request).model(asked.options.model)
    results = require_one(
        await run_each(request, model, asked.images, model.view(asked.options), ("embedding",))
    )
    finish = unit if asked.options.normalize else np.asarray
    if NPY in request.headers.get("accept", ""):
        outputs = all_or_error(results)
        return npy_response(np.stack([finish(output["embedding"]) for output in outputs]))
    return json_response(
        {
            **model.served,
            "dim": model.manifest.dim,
            "embeddings": each(results, lambda found: {"embedding": finish(found["embedding"])}),
        }
    )
