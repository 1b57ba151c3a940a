"""What an encoded image's headers say that decoding it would cost, before anything is decoded."""

from __future__ import annotations

import re
import struct

from PIL import Image

from service.errors import UndecodableImage

# Every scan of a progressive JPEG visits every pixel, however few bytes it takes; encoders write
# about ten.
MAX_SCANS = 100

_TILE_WIDTH, _TILE_LENGTH, _ROWS_PER_STRIP = 322, 323, 278
_SEGMENT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9


def decoded_pixels(image: Image.Image) -> int:
    """Pixels that decoding will hold: a TIFF's single tile may be larger than its picture."""
    width, height = image.size
    if image.format != "TIFF":
        return width * height
    tags = image.tag_v2  # type: ignore[attr-defined]
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    pixels = max(width * height, tile)
    if image.info.get("compression") in ("lzma", "zstd"):
        # What has been unpacked of a tile or strip is held a second time, to be referred to.
        pixels += tile or width * min(int(tags.get(_ROWS_PER_STRIP, height)), height)
    return pixels


def icon_pixels(data: bytes) -> int:
    """Pixels of an icon file's largest picture, which Pillow decodes as it opens the file."""
    if not data.startswith(b"\0\0\1\0"):
        return 0
    pixels = 0
    for entry in range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        png = data[start : start + 8] == b"\x89PNG\r\n\x1a\n"
        sides = data[start + 16 : start + 24] if png else data[start + 4 : start + 12]
        if len(sides) == 8:
            width, height = struct.unpack(">II" if png else "<ii", sides)
            # A bitmap's height counts its transparency mask as well.
            pixels = max(pixels, width * height if png else abs(width * height) // 2)
    return pixels


def check_scans(image: Image.Image, data: bytes) -> None:
    """Count a JPEG's scans up to its end marker, stepping over the contents of its segments.

    Raises:
        UndecodableImage: There are more than `MAX_SCANS`.
    """
    # Coded data never holds a marker, so that this counts no scan too few, and only those of a
    # preview in the metadata too many.
    if image.format not in ("JPEG", "MPO") or data.count(b"\xff\xda") <= MAX_SCANS:
        return
    scans, position = 0, 2
    while (found := _SEGMENT.search(data, position)) and scans <= MAX_SCANS:
        marker = data[found.end() - 1]
        if marker == _END_OF_IMAGE:
            return
        scans += marker == _START_OF_SCAN
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    if scans > MAX_SCANS:
        raise UndecodableImage(
            f"The JPEG has more than {MAX_SCANS} scans, the limit. Send it re-encoded."
        )
