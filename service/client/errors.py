"""What a call can fail with, one class for each thing that a caller may want to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

EXCERPT = 200  # characters of an answer that is no problem document


class ClientError(Exception):
    """A call, or one image of it, that came to nothing."""


class UnreadableFile(ClientError):
    """An image or a folder that cannot be read on this side; nothing of it was sent."""


class Unreachable(ClientError):
    """No answer came: no connection, a broken one, or none in time."""


class Refused(ClientError):
    """The server answered with a problem (RFC 9457).

    Attributes:
        status: The HTTP status, of the answer or of one image in it.
        code: What went wrong, as a word for programs.
        detail: What went wrong and what to do about it, as a sentence.
        errors: Where every image of a request failed, the problem of each by its index.
    """

    def __init__(
        self, status: int, code: str, detail: str, errors: Mapping[int, Refused] | None = None
    ) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors or {}


class InvalidInput(Refused):
    """The image or an option will not do; the same request fails again."""


class Forbidden(Refused):
    """The API key is missing, unknown or without the right."""


class NotFound(Refused):
    """No such model, collection, item or route."""


class Conflict(Refused):
    """The collection holds the vectors of another model."""


class RateLimited(Refused):
    """The key's quota is used up, and stayed so for as long as the client may try."""


class Unavailable(Refused):
    """The server was overloaded or draining for as long as the client may try."""


class ServerFailure(Refused):
    """The server failed; its log says why."""


_KINDS: dict[int, type[Refused]] = {
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    429: RateLimited,
    503: Unavailable,
    504: Unavailable,
}


def from_problem(problem: Mapping[str, Any]) -> Refused:
    """The exception that a problem document describes."""
    status = int(problem["status"])
    kind = _KINDS.get(status, ServerFailure if status >= 500 else InvalidInput)
    errors = {entry["index"]: from_problem(entry["error"]) for entry in problem.get("errors", [])}
    return kind(status, problem["code"], problem["detail"], errors)


def from_response(response: httpx.Response) -> Refused:
    """The exception for an answer that is no success, from Foveal or from a proxy before it."""
    try:
        return from_problem(response.json())
    except (ValueError, KeyError, TypeError, AttributeError):
        excerpt = response.text[:EXCERPT].strip() or response.reason_phrase
        code = f"http_{response.status_code}"
        return from_problem({"status": response.status_code, "code": code, "detail": excerpt})
