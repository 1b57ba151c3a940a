"""Whatever goes wrong, answered as a problem document (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import BodyTimeout, FovealError, InvalidOption
from service.routes.body import BodyTooLarge, LingeringResponse

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499  # nginx's name for it; nobody is there to read it


def install(app: FastAPI) -> None:
    """Have the application answer every error as a problem."""
    for kind in (FovealError, RequestValidationError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _answer)


def internal() -> FovealError:
    """The problem of a defect: what happened is in the log and none of the client's business."""
    return FovealError("The server failed on this request; its log says why.")


async def _answer(_: Request, error: Exception) -> Response:
    match error:
        case BodyTooLarge() | BodyTimeout():
            return _render(error, LingeringResponse)
        case FovealError():
            return _render(error)
        case RequestValidationError():
            return _render(InvalidOption(explain(error.errors())))
        case HTTPException():
            return _render_http(error)
        case ClientDisconnect():
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        case _:
            answer = _render(internal())
            # uvicorn closes the connection after a defect; unannounced, the next request is lost.
            answer.headers["Connection"] = "close"
            return answer


def _render(error: FovealError, kind: type[Response] = Response) -> Response:
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return kind(orjson.dumps(error.problem()), error.status, headers, MEDIA_TYPE)


def _render_http(error: HTTPException) -> Response:
    status = HTTPStatus(error.status_code)
    code = status.name.lower()
    problem = {
        "type": f"urn:foveal:error:{code}",
        "title": status.phrase,
        "status": status.value,
        "code": code,
        "detail": f"{status.description or status.phrase}; GET /docs lists the routes.",
    }
    return Response(orjson.dumps(problem), status, error.headers, MEDIA_TYPE)


def explain(errors: Any) -> str:
    """Turn pydantic's errors into sentences that name each field."""
    sentences = []
    for error in errors:
        field = ".".join(str(part) for part in error["loc"] if part not in {"path", "query"})
        sentences.append(f"{field}: {error['msg'].removeprefix('Value error, ')}")
    return "; ".join(sentences) + "."
