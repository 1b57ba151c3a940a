"""JSON as clients send it, bounded before it is parsed.

A parsed value takes up to 70 times the bytes that it was written in, and the parser holds all other
threads up; so values are counted first, which costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import orjson

from service.errors import MalformedRequest, TooLarge

MAX_VALUES = 600_000  # the metadata of 64 images, 16,384 bytes each, could hold 524,288


def load(text: bytes | str, most: int = MAX_VALUES) -> Any:
    """Parse JSON.

    Args:
        text: The JSON.
        most: How many commas and opening brackets it may have, those inside of texts included:
            there are no more values than those, but for one.

    Raises:
        TooLarge: It has more.
        orjson.JSONDecodeError: It is no JSON.
    """
    if len(text) > most and _values(text) > most:
        raise TooLarge(
            f"The JSON has more than {most} values, the limit. Send less at once, images as "
            "base64, tensors as binary data."
        )
    return orjson.loads(text)


def load_body(body: bytes, most: int = MAX_VALUES) -> Any:
    """Parse a body of JSON.

    Raises:
        MalformedRequest: It is not JSON.
        TooLarge: It has more than `most` values.
    """
    try:
        return load(body, most)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from None


def _values(text: bytes | str) -> int:
    if isinstance(text, str):
        return sum(text.count(mark) for mark in ",[{")
    return sum(text.count(mark) for mark in b",[{")
