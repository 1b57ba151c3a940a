"""The three input forms in the OpenAPI document; the routes read the body themselves."""

from __future__ import annotations

from typing import Any

from service.routes.body import DEADLINE_HEADER
from service.schemas import Options

Schema = dict[str, Any]

PROBLEM = {"schema": {"$ref": "#/components/schemas/Problem"}}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "What is wrong with the request.",
        "content": {"application/problem+json": PROBLEM},
    },
    "5XX": {
        "description": "The server is overloaded, or the deadline has passed.",
        "content": {"application/problem+json": PROBLEM},
    },
}
BYTES: Schema = {"type": "string", "format": "binary"}
FILE = {"schema": BYTES}
ENCODED: Schema = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"b64": {"type": "string", "format": "byte"}},
            "required": ["b64"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"url": {"type": "string", "format": "uri", "pattern": "^https?://"}},
            "required": ["url"],
            "additionalProperties": False,
        },
        {
            "type": "string",
            "pattern": "^data:.*;base64,",
            "description": "data:image/png;base64,…",
        },
    ]
}
DEADLINE: Schema = {
    "name": DEADLINE_HEADER,
    "in": "header",
    "required": False,
    "description": "After how many milliseconds the answer is of no more use; it is then 504.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}


def image_input(
    options: type[Options], *, candidates: bool = False, count: int | None = None
) -> dict[str, Any]:
    """Describe the options and the image forms of a route, for `openapi_extra`.

    Args:
        options: The route's options; with `embedding` among them, images need not be sent.
        candidates: Whether the route takes candidates.
        count: How many images it takes, where it is one number.
    """
    properties = options.model_json_schema()["properties"]
    as_text = {name: _without_null(schema) for name, schema in properties.items()}
    content = {
        "multipart/form-data": _form(BYTES, as_text, candidates, count),
        "application/json": _form(ENCODED, properties, candidates, count),
    }
    if count in (None, 1):
        content = {"image/*": FILE, "application/octet-stream": FILE} | content
    return {
        "parameters": [*(_parameter(*option) for option in as_text.items()), DEADLINE],
        "requestBody": {"content": content, "required": "embedding" not in properties},
    }


def _form(image: Schema, options: Schema, candidates: bool, count: int | None) -> Schema:
    several: Schema = {"type": "array", "items": image}
    images = several | (
        {"minItems": 1} if count is None else {"minItems": count, "maxItems": count}
    )
    return {
        "schema": {
            "type": "object",
            "properties": {"images": images}
            | ({"candidates": several} if candidates else {})
            | options,
            "required": [] if "embedding" in options else ["images"],
            "additionalProperties": False,
        }
    }


def _parameter(name: str, schema: Schema) -> Schema:
    """An option in the query string; what is not a plain value stands there as JSON."""
    described = {"name": name, "in": "query", "required": False}
    kinds = {kind.get("type") for kind in schema.get("anyOf", [schema])}
    if kinds & {"object", "array"}:
        return described | {"content": {"application/json": {"schema": schema}}}
    return described | {"schema": schema}


def _without_null(schema: Schema) -> Schema:
    """The schema of text, which cannot say null: the option is left out instead."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    rest = {name: value for name, value in schema.items() if name != "anyOf"}
    if len(kinds) == 1:
        return {**kinds[0], **rest}
    return schema | ({"anyOf": kinds} if kinds else {})
