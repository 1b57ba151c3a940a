"""Which routes need a key, in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.guards.middleware import is_open

SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of `foveal key`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def require_keys(document: dict[str, Any], *, open_metrics: bool) -> None:
    """Say of each route of an OpenAPI document whether it needs a key, and how one is sent.

    Args:
        document: Of a gateway that has keys; it is changed.
        open_metrics: As the guards have it.
    """
    document["components"]["securitySchemes"] = SCHEMES
    document["security"] = [{name: []} for name in SCHEMES]
    for path, operations in document["paths"].items():
        if is_open(path, open_metrics=open_metrics):
            for operation in operations.values():
                operation["security"] = []
