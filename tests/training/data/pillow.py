"""The oracle: crops one at a time, with Pillow alone."""

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from training.data.views import BRIGHTNESS, CONTRAST, SATURATION, Distortions


def crop(image: Image.Image, box: np.ndarray, view: Distortions, side: int) -> np.ndarray:
    """The crop of a box, distorted as drawn; [side, side, channels]."""
    crop = image.crop(tuple(box.tolist())).resize((side, side), Image.Resampling.BICUBIC)
    if view.flip:
        crop = ImageOps.mirror(crop)
    if view.jitter:
        for kind in view.order:
            crop = jitter(crop, kind, float(view.amount[kind]))
    if view.grey and crop.mode == "RGB":
        crop = crop.convert("L").convert("RGB")
    if view.blur:
        crop = crop.filter(ImageFilter.GaussianBlur(float(view.blur)))
    if view.solarize:
        crop = ImageOps.solarize(crop, 128)
    pixels = np.asarray(crop)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def jitter(crop: Image.Image, kind: int, amount: float) -> Image.Image:
    if kind == BRIGHTNESS:
        return ImageEnhance.Brightness(crop).enhance(amount)
    if kind == CONTRAST:
        return ImageEnhance.Contrast(crop).enhance(amount)
    if crop.mode != "RGB":
        return crop
    if kind == SATURATION:
        return ImageEnhance.Color(crop).enhance(amount)
    hue, saturation, value = crop.convert("HSV").split()
    hue = hue.point([(level + int(amount)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
