"""`POST /embed`: photographs to vectors that compare them."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service.engines.base import Outputs
from service.errors import FovealError, InvalidOption, TooLarge
from service.pooling import cast, outputs_for, pool, unit
from service.routes.answers import (
    NPY,
    all_or_error,
    base64_numbers,
    each,
    json_response,
    npy_response,
    require_one,
    run_each,
    stacked,
    wants_npy,
)
from service.routes.documented import ERRORS, FILE, image_input
from service.routes.gateway import Gateway
from service.routes.inputs import receive
from service.schemas import EmbedAnswer, EmbedOptions

router = APIRouter(tags=["images"])

Results = list[Outputs | FovealError]


@router.post(
    "/embed",
    response_model=None,
    responses={200: {"model": EmbedAnswer, "content": {NPY: FILE}}, **ERRORS},
    openapi_extra=image_input(EmbedOptions),
)
async def embed(request: Request) -> Response:
    """Embed images.

    `dtype=int8` multiplies each image's vectors so that the greatest magnitude is 127: `scale`
    times the integers gives them back, and unit vectors are also the integers divided by their
    length. `encoding=base64` holds the little-endian bytes, row by row.

    With `Accept: application/x-npy` the answer is one array, [images, dim], or [images, rows,
    columns, dim] for `pooling=patches`; it has no place for errors, so the first image that fails
    fails the request.
    """
    asked = await receive(request, EmbedOptions)
    options = asked.options
    gateway = Gateway.of(request)
    model = gateway.model(options.model)
    npy = wants_npy(request)
    if npy and options.dtype == "int8" and not options.normalize:
        raise InvalidOption("dtype: int8 without normalize needs a scale, which npy has not.")
    outputs = outputs_for(options.pooling, model.manifest)
    results = require_one(
        await run_each(request, model, asked.images, model.view(options), outputs)
    )
    if options.pooling == "patches":
        _check_size(results, gateway.settings.max_answer_bytes)
    write = _as_npy if npy else _as_json
    if outputs == ("embedding",):
        return write(results, options, model.served)
    # Patches are many numbers, and other requests should not wait for them.
    return await asyncio.to_thread(write, results, options, model.served)


def _vectors(found: Outputs, options: EmbedOptions) -> tuple[NDArray[Any], float | None]:
    vectors = pool(found, options.pooling)
    return cast(unit(vectors) if options.normalize else vectors, options.dtype)


def _as_npy(results: Results, options: EmbedOptions, _: dict[str, str]) -> Response:
    return npy_response(stacked([_vectors(found, options)[0] for found in all_or_error(results)]))


def _as_json(results: Results, options: EmbedOptions, served: dict[str, str]) -> Response:
    dim = 0

    def describe(found: Outputs) -> dict[str, Any]:
        nonlocal dim
        vectors, scale = _vectors(found, options)
        dim = vectors.shape[-1]
        encoded = options.encoding == "base64"
        answer: dict[str, Any] = {"embedding": base64_numbers(vectors) if encoded else vectors}
        if vectors.ndim > 1:
            answer["grid"] = vectors.shape[:-1]
        if scale is not None:
            answer["scale"] = scale
        return answer

    embeddings = each(results, describe)
    return json_response({**served, "dim": dim, "embeddings": embeddings})


def _check_size(results: Results, limit: int) -> None:
    size = sum(found["patches"].nbytes for found in results if not isinstance(found, FovealError))
    if size > limit:
        raise TooLarge(
            f"The patches of these images take {size} bytes as float32; the limit is {limit}. "
            "Send fewer images at once, or ask for a smaller size."
        )
