"""Answers: each image on its own, as JSON or as one array."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from service.engines.base import Outputs
from service.errors import AllImagesFailed, FovealError, InvalidOption
from service.images import View
from service.models import Model
from service.routes.body import while_connected
from service.routes.gateway import Gateway
from service.routes.inputs import Source
from service.routes.problems import internal

T = TypeVar("T")

NPY = "application/x-npy"
logger = logging.getLogger(__name__)


async def run_each(
    request: Request,
    model: Model,
    images: Sequence[Source],
    view: View,
    outputs: tuple[str, ...],
) -> list[Outputs | FovealError]:
    """Run every image through the model; each fails alone.

    Raises:
        InvalidOption: There is no image.
        ClientDisconnect: The client went away; what was under way is cancelled.
    """
    if not images:
        raise InvalidOption("images: the request has none; send at least one.")
    settings = Gateway.of(request).settings
    deadline = asyncio.get_running_loop().time() + settings.request_timeout

    async def run(source: Source) -> Outputs | FovealError:
        if isinstance(source, FovealError):
            return source
        try:
            return await model.pipeline.run(source, view, outputs, deadline)
        except FovealError as error:
            return error
        except Exception:
            logger.exception("An image could not be answered")
            return internal()

    return await while_connected(request, asyncio.gather(*map(run, images)))


def require_one(results: list[Outputs | FovealError]) -> list[Outputs | FovealError]:
    """Give the results back if any image was answered.

    Raises:
        FovealError: None was: an only image's own error, the server's own failure, or
            `AllImagesFailed`.
    """
    errors = [result for result in results if isinstance(result, FovealError)]
    if len(errors) < len(results):
        return results
    # Overload and deadline are no fault of the images: the same request may succeed later.
    ours = [error for error in errors if error.status >= 500]
    if ours or len(errors) == 1:
        raise (ours or errors)[0]
    raise AllImagesFailed(
        [{"index": index, "error": error.problem()} for index, error in enumerate(errors)]
    )


def each(
    results: Sequence[T | FovealError], describe: Callable[[T], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Describe each result under its index, or say what went wrong with it."""
    return [
        {"index": index, "error": result.problem()}
        if isinstance(result, FovealError)
        else {"index": index, **describe(result)}
        for index, result in enumerate(results)
    ]


def all_or_error(results: Sequence[T | FovealError]) -> list[T]:
    """The results, for an answer that has no place for an error.

    Raises:
        FovealError: That of the first image that failed.
    """
    for result in results:
        if isinstance(result, FovealError):
            raise result
    return [result for result in results if not isinstance(result, FovealError)]


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    """Write JSON; arrays of numbers are written as nested lists."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
        status,
        media_type="application/json",
    )


def npy_response(array: NDArray[np.float32]) -> Response:
    """Write one array in NumPy's own format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)
