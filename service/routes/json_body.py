"""A JSON body, validated: for the routes that take no other form."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.errors import InvalidOption, MalformedRequest, UnsupportedMediaType
from service.routes.body import off_loop_if_large, read_body
from service.routes.gateway import Gateway
from service.routes.inputs import Link, Source, decode
from service.routes.problems import explain

M = TypeVar("M", bound=BaseModel)

# A white pixel, for examples.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


async def read_json(request: Request, kind: type[M]) -> M:
    """Read the body of a request; none at all counts as {}.

    Raises:
        UnsupportedMediaType: The body is said to be something else, or is compressed.
        MalformedRequest: It is not JSON.
        InvalidOption: A field is unknown, missing or out of its range.
        TooLarge: It is over its limit in bytes.
        BodyTimeout: It did not arrive in time.
    """
    form = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if form.lower() != "application/json":
        raise UnsupportedMediaType(f"Content-Type {form}: send application/json.")
    body = await read_plain(request)
    return await off_loop_if_large(len(body), parse_json, body or b"{}", kind)


async def read_plain(request: Request) -> bytes:
    """Read the body, which must not be compressed.

    Raises:
        UnsupportedMediaType: It is compressed.
        TooLarge: It is over its limit in bytes.
        BodyTimeout: It did not arrive in time.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"Content-Encoding {encoding}: images are compressed already; send the body as it is."
        )
    return await read_body(request, Gateway.of(request).settings)


def parse_json(body: bytes, kind: type[M]) -> M:
    """Parse and validate a JSON document.

    Raises:
        MalformedRequest: It is not JSON.
        InvalidOption: A field is unknown, missing or out of its range.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from None
    try:
        return kind.model_validate(document, strict=True)
    except ValidationError as error:
        raise InvalidOption(explain(error.errors(include_url=False))) from None


def source_of(entry: Any) -> Source | Link:
    """Read an image from a text: base64, a data URI or a URL; objects as in a list of `images`."""
    if isinstance(entry, str) and not entry.startswith("data:"):
        return decode({"url" if entry.startswith(("http://", "https://")) else "b64": entry})
    return decode(entry)


def json_input(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe a JSON body for `openapi_extra`."""
    schema = kind.model_json_schema()
    content = {"application/json": {"schema": _inlined(schema, schema.get("$defs", {}))}}
    return {"requestBody": {"content": content}}


def _inlined(node: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references, which would lead nowhere inside a larger document."""
    if isinstance(node, list):
        return [_inlined(child, definitions) for child in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(definitions[node["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(child, definitions) for key, child in node.items() if key != "$defs"}
