"""Answers: each image on its own, as JSON or as one array."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections.abc import Callable, Coroutine, Sequence
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
from service.routes.body import deadline, while_connected
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
    until = deadline(request, Gateway.of(request).settings)

    def begin(source: Source) -> Outputs | FovealError | Coroutine[None, None, Outputs]:
        if isinstance(source, FovealError):
            return source
        try:
            return model.pipeline.begin(source, view, outputs, until)
        except Exception as error:
            return _failure(error)

    begun = [begin(source) for source in images]
    # What is in memory is answered at once, without a task.
    known = [answer for answer in begun if not isinstance(answer, Coroutine)]
    if len(known) == len(begun):
        return known
    if len(begun) == 1:
        return [await while_connected(request, _finish(begun[0]))]
    return await while_connected(request, asyncio.gather(*map(_finish, begun)))


async def _finish(
    answer: Outputs | FovealError | Coroutine[None, None, Outputs],
) -> Outputs | FovealError:
    if not isinstance(answer, Coroutine):
        return answer
    try:
        return await answer
    except Exception as error:
        return _failure(error)


def _failure(error: Exception) -> FovealError:
    if isinstance(error, FovealError):
        return error
    logger.error("An image could not be answered", exc_info=error)
    return internal()


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
    for index, result in enumerate(results):
        if isinstance(result, FovealError):
            raise result if len(results) == 1 else result.of(f"images[{index}]")
    return [result for result in results if not isinstance(result, FovealError)]


def json_response(content: dict[str, Any], status: int = 200) -> Response:
    """Write JSON; arrays of numbers are written as nested lists."""
    return Response(
        orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY),
        status,
        media_type="application/json",
    )


def base64_numbers(array: NDArray[Any]) -> str:
    """The numbers of an array in base64: little-endian, row by row."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(little.tobytes()).decode()


def stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The arrays of all images in one.

    Raises:
        InvalidOption: Their grids differ.
    """
    if len({array.shape for array in arrays}) > 1:
        raise InvalidOption(
            "images: they have different grids, which one array cannot hold; ask for JSON, for "
            "fit=crop, or for one image at a time."
        )
    return np.stack(arrays)


def wants_npy(request: Request) -> bool:
    """Whether the client accepts an array in NumPy's own format."""
    return NPY in request.headers.get("accept", "")


def npy_response(array: NDArray[Any]) -> Response:
    """Write one array in NumPy's own format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Response(buffer.getvalue(), media_type=NPY)
