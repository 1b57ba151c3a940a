"""How an array travels through Redis: a checked header, then its bytes.

Nothing is ever unpickled: whoever can write to that Redis must not be able to run code here.
"""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np

from service.cache.memory import Array

MAGIC = b"FVA1"
CHECKSUM = 32
DTYPE = 8
HEADER = struct.Struct(f"<{DTYPE}sI")  # the elements then start at a multiple of four


def encode(key: str, array: Array) -> bytes:
    """Pack an array of numbers: magic, checksum, dtype, number of axes, shape, elements."""
    kind = array.dtype.str.encode()
    shape = struct.pack(f"<{array.ndim}I", *array.shape)
    body = HEADER.pack(kind, array.ndim) + shape + array.tobytes()
    return MAGIC + _checksum(key, body) + body


def decode(key: str, value: object) -> Array:
    """Unpack what `encode` made for the same key; read-only.

    Raises:
        ValueError: It did not: `value` is anything else, damaged, or belongs to another key.
    """
    start = len(MAGIC) + CHECKSUM
    if not isinstance(value, bytes) or value[: len(MAGIC)] != MAGIC:
        raise ValueError(f"the value under {key} is not one of Foveal's")
    body = memoryview(value)[start:]
    if value[len(MAGIC) : start] != _checksum(key, body):
        raise ValueError(f"the value under {key} is damaged")
    try:
        kind, axes = HEADER.unpack_from(body)
        shape = struct.unpack_from(f"<{axes}I", body, HEADER.size)
        elements = body[HEADER.size + 4 * axes :]
        array = np.frombuffer(elements, np.dtype(kind.rstrip(b"\0").decode()), math.prod(shape))
        return array.reshape(shape)
    except (struct.error, TypeError, OverflowError) as error:
        raise ValueError(f"the value under {key} is no array: {error}") from None


def _checksum(key: str, body: bytes | memoryview) -> bytes:
    checksum = hashlib.sha256(key.encode())
    checksum.update(body)
    return checksum.digest()
