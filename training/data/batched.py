"""All crops of many images at once, on any device.

A resized crop is two matrix products, so a batch of them is two batched ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def resized_crops(images: Tensor, boxes: NDArray[np.int64], side: int) -> Tensor:
    """Cut boxes out of images and resize each to a square, bicubic.

    Args:
        images: uint8 [images, height, width, channels]; smaller ones are padded right and below.
        boxes: Left, top, right and bottom of each crop in pixels, [images, crops, 4].
        side: Of every crop, in pixels.

    Returns:
        uint8 [images * crops, channels, side, side].
    """
    count, height, width, channels = images.shape
    crops = boxes.shape[1]
    box = torch.from_numpy(boxes).to(images.device)
    rows = bicubic(box[..., 1], box[..., 3], height, side)
    columns = bicubic(box[..., 0], box[..., 2], width, side)
    # Channels stand before columns, so that no product has to move them.
    lines = images.transpose(2, 3).reshape(count, height, channels * width).float()
    lines = torch.bmm(rows.view(count, crops * side, height), lines).clamp_(0, 255)
    levels = torch.bmm(
        lines.view(count * crops, side * channels, width),
        columns.view(count * crops, side, width).transpose(1, 2),
    )
    levels = levels.add_(0.5).clamp_(0, 255).view(count * crops, side, channels, side)
    return levels.transpose(1, 2).to(torch.uint8, memory_format=torch.contiguous_format)


def bicubic(start: Tensor, stop: Tensor, length: int, side: int) -> Tensor:
    """Weights that resize the pixels from `start` to `stop` of a line to `side` pixels.

    Keys' kernel with a = -0.5, widened where the line shrinks, cut off at the box and made to sum
    to 1: what Pillow does.

    Args:
        start: First pixel of each box, of any shape.
        stop: Pixel after its last.
        length: Pixels of the whole line.
        side: Pixels to make.

    Returns:
        float32 [..., side, length].
    """
    start, stop = start[..., None, None].float(), stop[..., None, None].float()
    scale = (stop - start) / side
    place = torch.arange(length, device=start.device)
    centre = start + (torch.arange(side, device=start.device)[:, None] + 0.5) * scale
    x = (place + 0.5 - centre).div_(scale.clamp(min=1)).abs_()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = weights * ((place >= start) & (place < stop))
    return weights / weights.sum(-1, keepdim=True)
