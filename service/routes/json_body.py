"""A JSON body, validated: for the routes that take no other form."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from service.errors import InvalidOption, UnsupportedMediaType
from service.json_text import MAX_VALUES, load_body
from service.routes.body import off_loop_if_large, read_body
from service.routes.gateway import Gateway
from service.routes.inputs import Link, Source, decode
from service.routes.problems import explain, require_known

M = TypeVar("M", bound=BaseModel)

# A white pixel, for examples.
PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


FEW_VALUES = 1000


async def read_json(request: Request, kind: type[M]) -> M:
    """Read and validate a body of few values; none at all counts as {}.

    Raises:
        UnsupportedMediaType: The body is said to be something else, or is compressed.
        MalformedRequest: It is not JSON.
        InvalidOption: A field is unknown, missing or out of its range.
        TooLarge: It is over its limit in bytes, or has more than `FEW_VALUES` values.
        BodyTimeout: It did not arrive in time.
    """
    body = await read_json_body(request)
    return await off_loop_if_large(len(body), parse_json, body or b"{}", kind, FEW_VALUES)


async def read_json_body(request: Request) -> bytes:
    """Read a body that must be JSON, without parsing it.

    Raises:
        UnsupportedMediaType: The body is said to be something else, or is compressed.
        TooLarge: It is over its limit in bytes.
        BodyTimeout: It did not arrive in time.
    """
    form = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if form.lower() != "application/json":
        raise UnsupportedMediaType(f"Content-Type {form}: send application/json.")
    return await read_plain(request)


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


def parse_json(body: bytes, kind: type[M], most: int = MAX_VALUES) -> M:
    """Parse and validate a JSON document.

    Raises:
        MalformedRequest: It is not JSON.
        InvalidOption: A field is unknown, missing or out of its range.
        TooLarge: It has more than `most` values.
    """
    document = load_body(body, most)
    if kind.model_config.get("extra") == "forbid" and isinstance(document, dict):
        require_known(document, kind.model_fields)
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
