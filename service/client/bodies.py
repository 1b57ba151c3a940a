"""The body of a request: images and the options beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from service.client.sources import Payload, as_json


def form(
    payloads: Sequence[Payload], options: Mapping[str, Any], candidates: Sequence[Payload] = ()
) -> dict[str, Any]:
    """The body: multipart where every image is bytes, which it leaves as they are; else JSON.

    Args:
        payloads: The images.
        options: The fields beside them.
        candidates: The images to rank.

    Returns:
        Arguments of httpx's `request`.
    """
    named = {"images": payloads, "candidates": candidates}
    # A form field joins ids by commas, which an id may have.
    plain = not any("," in name for name in options.get("ids", ()))
    if payloads and plain and all(isinstance(p, bytes) for p in [*payloads, *candidates]):
        parts = [(name, ("", payload)) for name, some in named.items() for payload in some]
        return {"files": parts, "data": {name: _text(value) for name, value in options.items()}}
    listed = {name: [as_json(payload) for payload in some] for name, some in named.items() if some}
    return {"json": {**options, **listed}}


def vector_field(embedding: ArrayLike | None) -> dict[str, list[float]]:
    """The field of a vector, if there is one."""
    # A float32 is a double too, and JSON carries doubles without loss.
    return {} if embedding is None else {"embedding": np.asarray(embedding, np.float64).tolist()}


def _text(value: Any) -> str:
    """An option as a form field: lists of words joined by commas, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return ",".join(value)
    return json.dumps(value)
