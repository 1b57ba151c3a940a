"""One exception tree for everything that can go wrong with a request.

Each class carries the status, the code and the title that a client sees; the message names the
field, the limit and the way out. An error renders in three ways, one for each family of routes.
Anything that is not a `FovealError` is a defect and answers 500.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Self

# What OpenAI's client is told beside the status; other refusals are `invalid_request_error`.
OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class FovealError(Exception):
    """A request that cannot be answered, for a reason that the client is told.

    Args:
        detail: What went wrong and what to do about it, in one or two sentences.
        retry_after: Seconds after which the same request may succeed.

    Attributes:
        field: The part of the request at fault, such as `input[3]`, where the rendering has a
            place for it.
    """

    status: int = 500
    code: str = "internal"
    title: str = "Internal error"

    def __init__(self, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.field: str | None = None

    def of(self, field: str) -> Self:
        """This error, saying that it is about one part of the request."""
        # A copy, because requests that wait for the same computation share its error.
        error = copy(self)
        error.detail, error.field = f"{field}: {self.detail}", field
        return error

    def problem(self) -> dict[str, Any]:
        """Render as the members of a problem document (RFC 9457), for the native routes."""
        return {
            "type": f"urn:foveal:error:{self.code}",
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }

    def openai(self) -> dict[str, Any]:
        """Render as OpenAI's API does, for `/v1`."""
        other = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.detail,
                "type": OPENAI_TYPES.get(self.status, other),
                "param": self.field,
                "code": self.code,
            }
        }

    def inference(self) -> dict[str, Any]:
        """Render as the Open Inference Protocol does, for `/v2`."""
        return {"error": self.detail}


class MalformedRequest(FovealError):
    """The body cannot be parsed: JSON, base64 or multipart is broken."""

    status, code, title = 400, "malformed_request", "Malformed request"


class Unauthorized(FovealError):
    """The request has no API key, or one that is not known."""

    status, code, title = 401, "unauthorized", "No valid API key"


class Forbidden(FovealError):
    """The API key lacks the right to do this."""

    status, code, title = 403, "forbidden", "Not allowed with this key"


class NotFound(FovealError):
    """No such model, collection or item."""

    status, code, title = 404, "not_found", "Not found"


class ModelMismatch(FovealError):
    """The collection holds the vectors of another model."""

    status, code, title = 409, "model_mismatch", "Vectors of another model"


class TooLarge(FovealError):
    """The body, an image or the batch is over its limit in bytes or in count."""

    status, code, title = 413, "too_large", "Too large"


class UnsupportedMediaType(FovealError):
    """The body is none of the accepted forms, or the bytes are not an accepted image type."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class UndecodableImage(FovealError):
    """The bytes are not a whole image, or the image is over the pixel limit."""

    status, code, title = 422, "undecodable_image", "Undecodable image"


class UnfetchableImage(FovealError):
    """The image's URL may not be fetched, or no image came from it."""

    status, code, title = 422, "unfetchable_image", "Unfetchable image"


class InvalidOption(FovealError):
    """An option is unknown or out of its range."""

    status, code, title = 422, "invalid_option", "Invalid option"


class RateLimited(FovealError):
    """The caller has asked for more than its rate allows."""

    status, code, title = 429, "rate_limited", "Too many images"


class Overloaded(FovealError):
    """The queue is full, or the server is not ready or draining."""

    status, code, title = 503, "overloaded", "Overloaded"


class DeadlineExceeded(FovealError):
    """The answer could not be given before the request's deadline."""

    status, code, title = 504, "deadline_exceeded", "Deadline exceeded"


class BodyTimeout(FovealError):
    """The request's bytes did not arrive in time."""

    status, code, title = 408, "body_timeout", "Request took too long to arrive"


class HeadersTimeout(FovealError):
    """The request's headers did not arrive in time."""

    status, code, title = 408, "headers_timeout", "Headers took too long to arrive"


class HeadersTooLarge(FovealError):
    """The request's path and headers are over their limit in bytes."""

    status, code, title = 431, "headers_too_large", "Headers too large"


class AllImagesFailed(FovealError):
    """Of several images none could be answered; `errors` says why at each index.

    Args:
        errors: The problem of each image, `{"index", "error"}`.
    """

    status, code, title = 422, "all_images_failed", "Every image failed"

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        super().__init__(f"None of the {len(errors)} images could be answered; see errors.")
        self.errors = errors

    def problem(self) -> dict[str, Any]:
        """Render with the problem of each image beside that of the request."""
        return super().problem() | {"errors": self.errors}
