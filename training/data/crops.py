"""Multi-crop and the augmentation of each crop.

Source: Caron et al., "Emerging Properties" (2021), section 3.2, and "SwAV" (2020), section 3.2;
the colour distortions are BYOL's (Grill et al., 2020, appendix B).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from pydantic import BaseModel, ConfigDict, Field

ASPECTS = (3 / 4, 4 / 3)
ATTEMPTS = 10
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}


class CropConfig(BaseModel):
    """How many crops of an image, how large, and how much of the image each shows.

    Attributes:
        global_size: Side of the two global crops in pixels.
        local_size: Side of the local crops in pixels.
        local_count: Number of local crops; 0 turns multi-crop off.
        global_scale: Least and greatest share of the image's area in a global crop.
        local_scale: The same for a local crop.
        blur: Least and greatest radius of the blur in pixels; published for crops of 224 px.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    global_size: int = Field(224, gt=0)
    local_size: int = Field(96, gt=0)
    local_count: int = Field(8, ge=0)
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    blur: tuple[float, float] = (0.1, 2.0)


@dataclass(frozen=True)
class Distortion:
    """Probabilities in which one kind of crop differs from another."""

    blur: float
    solarize: float


FIRST_GLOBAL = Distortion(blur=1.0, solarize=0.0)
SECOND_GLOBAL = Distortion(blur=0.1, solarize=0.2)
LOCAL = Distortion(blur=0.5, solarize=0.0)


def multi_crop(
    image: Image.Image, config: CropConfig, random: Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut and distort the crops of one image.

    Returns:
        The global crops, [2, global_size, global_size, 3], and the local ones,
        [local_count, local_size, local_size, 3].
    """

    def cut(size: int, scale: tuple[float, float], kind: Distortion) -> NDArray[np.uint8]:
        return distort(resized_crop(image, size, scale, random), kind, config.blur, random)

    kinds = (FIRST_GLOBAL, SECOND_GLOBAL)
    large = [cut(config.global_size, config.global_scale, kind) for kind in kinds]
    small = [cut(config.local_size, config.local_scale, LOCAL) for _ in range(config.local_count)]
    shape = (config.local_count, config.local_size, config.local_size, 3)
    return np.stack(large), np.array(small, dtype=np.uint8).reshape(shape)


def resized_crop(
    image: Image.Image, size: int, scale: tuple[float, float], random: Generator
) -> Image.Image:
    """Cut a box of random area and aspect and resize it to a square, bicubic."""
    box = crop_box(image.width, image.height, scale, random)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def crop_box(
    width: int, height: int, scale: tuple[float, float], random: Generator
) -> tuple[int, int, int, int]:
    """Draw a box: area uniform in `scale`, log-aspect uniform; the centre if none fits in ten."""
    for _ in range(ATTEMPTS):
        area = width * height * random.uniform(*scale)
        aspect = math.exp(random.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, round(height * ASPECTS[1]))
    h = min(height, round(width / ASPECTS[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def distort(
    crop: Image.Image, kind: Distortion, blur: tuple[float, float], random: Generator
) -> NDArray[np.uint8]:
    """Flip, jitter, grey, blur and solarise, each by chance; [side, side, 3]."""
    if random.random() < 0.5:
        crop = ImageOps.mirror(crop)
    if random.random() < 0.8:
        crop = jitter(crop, random)
    if random.random() < 0.2:
        crop = crop.convert("L").convert("RGB")
    if random.random() < kind.blur:
        crop = crop.filter(ImageFilter.GaussianBlur(random.uniform(*blur)))
    if random.random() < kind.solarize:
        crop = ImageOps.solarize(crop, 128)
    return np.asarray(crop)


def jitter(crop: Image.Image, random: Generator) -> Image.Image:
    """Change brightness, contrast, saturation and hue, in random order."""
    for name in random.permutation(list(JITTER)):
        amount = random.uniform(-JITTER[name], JITTER[name])
        if name == "brightness":
            crop = ImageEnhance.Brightness(crop).enhance(1.0 + amount)
        elif name == "contrast":
            crop = ImageEnhance.Contrast(crop).enhance(1.0 + amount)
        elif name == "saturation":
            crop = ImageEnhance.Color(crop).enhance(1.0 + amount)
        else:
            crop = shift_hue(crop, amount)
    return crop


def shift_hue(crop: Image.Image, turn: float) -> Image.Image:
    """Turn the hue by a share of the full circle."""
    hue, saturation, value = crop.convert("HSV").split()
    shift = round(turn * 255) % 256
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
