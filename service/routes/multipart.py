"""multipart/form-data out of a body that is in memory, without temporary files."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import MalformedRequest, TooLarge


def parse_multipart(content_type: str, body: bytes, max_parts: int) -> list[tuple[str, bytes]]:
    """Give the name and the content of each part, in order.

    Raises:
        MalformedRequest: There is no boundary, a part has no name, or the body ends early.
        TooLarge: There are more than `max_parts` parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedRequest("The Content-Type multipart/form-data names no boundary.")
    parts = _Parts(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": parts.begin,
                "on_header_field": parts.header_name,
                "on_header_value": parts.header_value,
                "on_header_end": parts.header_end,
                "on_part_data": parts.data,
                "on_part_end": parts.end,
                "on_end": parts.finish,
            },
        )
        parser.write(body)
    except FormParserError as error:
        raise MalformedRequest(f"The body is not multipart/form-data: {error}.") from None
    if not parts.complete:
        raise MalformedRequest("The multipart body ends before its closing boundary.")
    return parts.found


class _Parts:
    """Collects what the parser calls out."""

    def __init__(self, most: int) -> None:
        self.found: list[tuple[str, bytes]] = []
        self.complete = False
        self._most = most

    def begin(self) -> None:
        self._disposition = b""
        self._header = b""
        self._value = b""
        self._content: list[bytes] = []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def end(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name")
        if name is None:
            raise MalformedRequest("A part of the multipart body has no name.")
        if len(self.found) == self._most:
            raise TooLarge(f"The multipart body has more than {self._most} parts.")
        self.found.append((name.decode(errors="replace"), b"".join(self._content)))

    def finish(self) -> None:
        self.complete = True
