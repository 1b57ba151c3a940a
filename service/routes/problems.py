"""Whatever goes wrong, answered as the caller's protocol has it.

Native routes answer a problem document (RFC 9457), `/v1` OpenAI's form, `/v2` Triton's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import compile_path

from service.errors import BodyTimeout, FovealError, InvalidOption
from service.routes.bodies import BodiesTooLarge
from service.routes.body import BodyTooLarge, LingeringResponse

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499  # nginx's name for it; nobody is there to read it
MAX_DETAIL = 2000  # characters; more would only repeat what the client sent
MAX_FAULTS = 5
MAX_FAULT = 300  # characters
MAX_NAME = 100  # characters


UNREAD = (BodyTooLarge, BodiesTooLarge, BodyTimeout)  # the rest may still be on its way
EXPECTED = (FovealError, RequestValidationError, HTTPException, ClientDisconnect)


def install(app: FastAPI) -> None:
    """Have the application answer every error in the form of its route."""
    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, answer)


def internal() -> FovealError:
    """The problem of a defect: what happened is in the log and none of the client's business."""
    return FovealError("The server failed on this request; its log says why.")


def render(error: FovealError, path: str) -> Response:
    """Answer `error` in the form of the routes that `path` belongs to."""
    if len(error.detail) > MAX_DETAIL:
        error = copy(error)
        error.detail = shortened(error.detail, MAX_DETAIL)
    kind = LingeringResponse if isinstance(error, UNREAD) else Response
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if path.startswith("/v1/"):
        # OpenAI's clients know a bad input by 400 alone.
        status = 400 if error.status in (415, 422) else error.status
        return kind(orjson.dumps(error.openai()), status, headers, "application/json")
    if path.startswith("/v2"):
        return kind(orjson.dumps(error.inference()), error.status, headers, "application/json")
    return kind(orjson.dumps(error.problem()), error.status, headers, MEDIA_TYPE)


async def answer(request: Request, error: Exception) -> Response:
    """Answer what a route raised; of a defect nothing is told."""
    path = request.scope["path"]
    match error:
        case FovealError():
            return render(error, path)
        case RequestValidationError():
            return render(InvalidOption(explain(error.errors())), path)
        case HTTPException():
            refusal = render(_NoSuchRoute(HTTPStatus(error.status_code)), path)
            refusal.headers.update(error.headers or {})
            if "Allow" in refusal.headers and (methods := _methods(request)):
                refusal.headers["Allow"] = ", ".join(sorted(methods))
            return refusal
        case ClientDisconnect():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        case _:
            failure = render(internal(), path)
            # uvicorn closes the connection after a defect; unannounced, the next request is lost.
            failure.headers["Connection"] = "close"
            return failure


def _methods(request: Request) -> set[str]:
    """The documented methods at this path; the router itself tells those of one route."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    found = {
        method.upper()
        for template, methods in paths.items()
        if compile_path(template)[0].match(request.scope["path"])
        for method in methods
    }
    return found | {"HEAD"} if "GET" in found else found


class _NoSuchRoute(FovealError):
    """The router's own refusal: an unknown path, or a method that the path has not."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(f"{status.description or status.phrase}; GET /docs lists the routes.")
        self.status, self.code, self.title = status.value, status.name.lower(), status.phrase


def explain(errors: Sequence[Any]) -> str:
    """Turn the first of pydantic's errors into sentences that name each field."""
    sentences = []
    for error in errors[:MAX_FAULTS]:
        field = ".".join(str(part) for part in error["loc"] if part not in {"path", "query"})
        sentence = f"{field}: {error['msg'].removeprefix('Value error, ')}"
        sentences.append(shortened(sentence, MAX_FAULT))
    if more := len(errors) - len(sentences):
        sentences.append(f"and {more} more")
    return "; ".join(sentences) + "."


def require_known(names: Collection[str], known: Collection[str]) -> None:
    """Refuse options of unknown names.

    Raises:
        InvalidOption: There are some; it tells the first.
    """
    unknown = [name for name in names if name not in known]
    if not unknown:
        return
    told = [repr(shortened(name, MAX_NAME)) for name in unknown[:MAX_FAULTS]]
    if more := len(unknown) - len(told):
        told.append(f"and {more} more")
    raise InvalidOption(
        f"Unknown option {', '.join(told)}; images go into `images`, and the options are "
        f"{', '.join(sorted(known))}."
    )


def shortened(text: str, most: int) -> str:
    """The text, or where it is longer than `most` characters, its beginning."""
    return text if len(text) <= most else f"{text[:most]}…"
