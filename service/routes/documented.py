"""The three input forms in the OpenAPI document; the routes read the body themselves."""

from __future__ import annotations

from typing import Any

from service.schemas import Options, Problem

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Problem", "content": {"application/problem+json": {}}, "model": Problem}
}
BYTES = {"type": "string", "format": "binary"}
ENCODED = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"b64": {"type": "string", "format": "byte"}},
            "required": ["b64"],
        },
        {"type": "string", "pattern": "^data:", "description": "data:image/png;base64,…"},
    ]
}


def image_input(options: type[Options], *, candidates: bool = False) -> dict[str, Any]:
    """Describe the options and the image forms of a route, for `openapi_extra`."""
    properties = options.model_json_schema()["properties"]
    fields = ["images", "candidates"] if candidates else ["images"]
    as_json = {name: {"type": "array", "items": ENCODED} for name in fields}
    as_parts = {name: {"type": "array", "items": BYTES} for name in fields}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in properties.items()
        ],
        "requestBody": {
            "content": {
                "image/*": {"schema": BYTES},
                "multipart/form-data": {
                    "schema": {"type": "object", "properties": as_parts | properties}
                },
                "application/json": {
                    "schema": {"type": "object", "properties": as_json | properties}
                },
            }
        },
    }
