"""Requests as bytes, and as little of HTTP/1.1 answers as counting them takes."""

from __future__ import annotations

import json
import math


def layout(form: str, path: str, image: bytes) -> bytes:
    """A POST with an image: `raw` as the body, as `triton`'s one tensor of bytes, or of `pixels`.

    Pixels are uint8 [side, side, 3].
    """
    headers = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n"
    if form == "raw":
        headers += "Content-Type: image/jpeg\r\n"
        body = image
    else:
        if form == "pixels":
            side = math.isqrt(len(image) // 3)
            tensor = {"name": "images", "shape": [1, side, side, 3], "datatype": "UINT8"}
        else:
            tensor = {"name": "jpeg", "shape": [1, 1], "datatype": "BYTES"}
            image = len(image).to_bytes(4, "little") + image
        asked = {
            "inputs": [tensor | {"parameters": {"binary_data_size": len(image)}}],
            "outputs": [{"name": "embedding", "parameters": {"binary_data": True}}],
        }
        head = json.dumps(asked).encode()
        headers += "Content-Type: application/octet-stream\r\n"
        headers += f"Inference-Header-Content-Length: {len(head)}\r\n"
        body = head + image
    return f"{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Answer:
    """An answer as it arrives.

    Attributes:
        status: Its status, once known.
        reusable: Whether the connection outlives it.
    """

    def __init__(self) -> None:
        self.status = ""
        self.reusable = True
        self._data = b""
        self._left: int | None = None

    def feed(self, data: bytes) -> bool:
        """Take what came; tell whether the answer is whole."""
        if self.status and self._left is not None:
            self._left -= len(data)
            return self._left <= 0
        self._data += data
        if not self.status:
            head, end, body = self._data.partition(b"\r\n\r\n")
            if not end:
                return False
            self.status = head[9:12].decode()
            lower = head.lower()
            self.reusable = b"connection: close" not in lower
            _, found, rest = lower.partition(b"content-length:")
            if found:
                self._left = int(rest.split(b"\r\n", 1)[0]) - len(body)
                return self._left <= 0
        # Chunked: the last chunk is empty.
        return self._data.endswith(b"0\r\n\r\n")
