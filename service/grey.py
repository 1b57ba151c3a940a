"""Deep greys -> eight bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.bands import bands


def grey(image: Image.Image) -> Image.Image:
    """Scale a picture of 16 bits, of integers or of floating point to eight bits.

    White is the first of the usual ones that holds every value. Values above them all, or below
    zero, are stretched from their least to their greatest; infinite ones and those that are not
    numbers count as zero. A shade that stands for transparency becomes white.
    """
    low, high = 0.0, -np.inf
    for _, band in bands(image):
        levels = _levels(band)
        low, high = min(low, float(levels.min())), max(high, float(levels.max()))
    whites = (1, 255, 65535) if image.mode == "F" else (65535,)
    white = next((white for white in whites if high <= white), high)
    page = Image.new("L", image.size)
    for box, band in bands(image):
        levels = _levels(band)
        levels -= low
        levels *= 255 / (white - low)
        page.paste(Image.fromarray(np.rint(levels, out=levels).astype(np.uint8)), box)
    return page


def _levels(band: Image.Image) -> NDArray[np.float32]:
    values = np.asarray(band)
    if (clear := band.info.get("transparency")) is not None:
        values = np.where(values == clear, 65535, values)
    return np.nan_to_num(values.astype(np.float32), copy=False, posinf=0, neginf=0)
