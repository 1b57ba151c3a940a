"""The crops of one image, on the processor."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def resized_crops(image: Tensor, boxes: NDArray[np.int64], side: int) -> Tensor:
    """Cut boxes out of an image and resize each to a square, bicubic.

    Args:
        image: uint8 [height, width, channels].
        boxes: Left, top, right and bottom of each crop in pixels, [crops, 4].
        side: Of every crop, in pixels.

    Returns:
        uint8 [crops, channels, side, side].
    """
    planes = image.permute(2, 0, 1)[None]
    crops = torch.empty(len(boxes), image.shape[2], side, side, dtype=torch.uint8)
    for crop, (left, top, right, bottom) in zip(crops, boxes.tolist(), strict=True):
        box = planes[:, :, top:bottom, left:right]
        # In eight bits torch is five times as fast as Pillow, and within one level of it.
        crop.copy_(F.interpolate(box, (side, side), mode="bicubic", antialias=True)[0])
    return crops
