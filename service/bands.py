"""A picture in bands of rows: several copies of the whole at once would cost gigabytes."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

_PIXELS = 2**20

Box = tuple[int, int, int, int]


def bands(image: Image.Image) -> Iterator[tuple[Box, Image.Image]]:
    """Cut a picture into bands of whole rows, and say where each belongs."""
    rows = max(1, _PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield box, image.crop(box)
