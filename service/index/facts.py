"""Metadata as tags: what makes "this key equals this value" one exact look-up in a tag index.

A fact is one key of the metadata with its value, where that is a string, a number, a boolean or
null. Its tag is a hash of both, so that no key needs a schema, no character an escape, and types
stay apart as in JSON: true, 1 and "1" are three values, 1 and 1.0 are one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from service.index.base import Scalar

TAG_BYTES = 16
LARGEST = 2**63


def tags(metadata: dict[str, Any]) -> list[str]:
    """The tag of each fact, in hexadecimal digits."""
    return [
        _tag(key, value)
        for key, value in metadata.items()
        if value is None or isinstance(value, str | int | float)
    ]


def _tag(key: str, value: Scalar) -> str:
    fact = orjson.dumps([key, _canonical(value)])
    return hashlib.blake2b(fact, digest_size=TAG_BYTES).hexdigest()


def _canonical(value: Scalar) -> Scalar:
    """One form of equal numbers: an integer where 64 bits hold it, else a real."""
    if isinstance(value, float) and value.is_integer() and -LARGEST <= value < LARGEST:
        return int(value)
    if isinstance(value, int) and not -LARGEST <= value < LARGEST:
        return float(value)
    return value
