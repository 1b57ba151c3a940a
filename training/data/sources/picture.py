"""One image: its size first, its pixels when it is known how many are needed."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images import FORMATS, opaque, upright

PIXELS = 2**26
"""The most that an image may have; as the gateway's default."""

REDUCTIONS = (8, 4, 2)
"""By how much a JPEG can be reduced while it is decoded."""

_ORIENTATION = 274
_TURNED = (5, 6, 7, 8)


class Unreadable(Exception):
    """An image cannot be decoded; the message says why."""


class Picture(Protocol):
    """An image whose pixels have not been decoded yet.

    Attributes:
        size: Width and height in pixels, upright.
    """

    size: tuple[int, int]

    def pixels(self, reduction: int = 1) -> NDArray[np.uint8]:
        """Decode.

        Args:
            reduction: By how much both sides may be reduced, at the most: 1, 2, 4 or 8.

        Returns:
            [height, width, channels], upright.

        Raises:
            Unreadable: It is damaged or truncated.
        """


class ArrayPicture:
    """Pixels that were never encoded."""

    def __init__(self, pixels: NDArray[np.uint8], channels: int) -> None:
        """Take pixels [height, width, some channels] over as `channels` channels."""
        height, width, some = pixels.shape
        self.size = (width, height)
        if some != channels:
            flat = pixels[:, :, 0] if some == 1 else pixels
            pixels = _channels(Image.fromarray(flat), channels)
        self._pixels = pixels

    def pixels(self, reduction: int = 1) -> NDArray[np.uint8]:
        """The pixels; they are there already, so nothing is reduced."""
        return self._pixels


class EncodedPicture:
    """An encoded image of any common format.

    It comes out as a viewer shows it: turned as EXIF says, the first frame of several, transparency
    over white, deep greys scaled to eight bits.

    Raises:
        Unreadable: It is no image, or has more than `PIXELS` pixels.
    """

    def __init__(self, data: bytes, channels: int) -> None:
        self._channels = channels
        try:
            self._image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            turned = self._image.getexif().get(_ORIENTATION) in _TURNED
        # Pillow's parsers raise whatever they stumble over.
        except Exception as error:
            raise Unreadable(f"it is no image ({error})" if data else "it is empty") from error
        width, height = self._image.size
        if width * height > PIXELS:
            raise Unreadable(f"it has {width} x {height} pixels; the limit is {PIXELS}")
        self.size = (height, width) if turned else (width, height)

    def pixels(self, reduction: int = 1) -> NDArray[np.uint8]:
        """Decode; a JPEG is reduced by `reduction`, other formats are not."""
        width, height = self._image.size
        try:
            if reduction > 1:
                self._image.draft(None, (width // reduction, height // reduction))
            return _channels(opaque(upright(self._image)), self._channels)
        except Exception as error:
            raise Unreadable(f"it is damaged or truncated ({error})") from error


def _channels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)
