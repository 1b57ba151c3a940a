"""Augmentations that look where the transformer looks.

`mask_patches` hides what attention passes over: a view that still shows the foreground, from which
a student must reach the teacher's answer. `paste_anomalies` damages what attention rests on:
examples of the abnormal where none were collected.

Both are pure functions of tensors on any device; what is random comes from the generator that they
are given, which must live on the same device.

Source: Bozorgtabar & Mahapatra, "Attention-Conditioned Augmentations for Self-Supervised Anomaly
Detection and Localization" (AAAI 2023). How an anomaly is shaped and blended is after Li et al.,
"CutPaste" (2021), and Schlüter et al., "Natural Synthetic Anomalies" (2022).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Range = tuple[float, float]


class Augmented(NamedTuple):
    """Images and what was done to them.

    Attributes:
        images: Augmented copies, [batch, channels, height, width].
        mask: Share of each patch's pixels that were replaced, 0 to 1, [batch, rows, columns].
    """

    images: Tensor
    mask: Tensor


def saliency(attention: Tensor) -> Tensor:
    """Attention per patch as a distribution: the mean over heads, each head counting the same.

    Args:
        attention: From CLS to each patch, [batch, heads, rows, columns].

    Returns:
        [batch, rows, columns], each image's values summing to one.
    """
    heads = attention / attention.sum(dim=(2, 3), keepdim=True)
    return heads.mean(dim=1)


def mask_patches(
    images: Tensor,
    attention: Tensor,
    generator: Generator,
    *,
    probability: float = 1.0,
    ratio: Range = (0.1, 0.5),
    fill: float = 0.0,
) -> Augmented:
    """Hide the least salient patches (the paper's APMask).

    An image is masked with `probability`; the share of its patches that is hidden is drawn
    uniformly from `ratio` and rounded to whole patches. Which patches these are is not drawn: they
    are the ones with the least saliency.

    Args:
        images: [batch, channels, height, width].
        attention: [batch, heads, rows, columns]; the grid must divide the image.
        generator: Draws who is masked and how much.
        probability: Of an image being masked.
        ratio: Least and greatest share of patches to hide.
        fill: Value of hidden pixels; 0 is the mean colour of normalised images.

    Raises:
        ValueError: The shapes do not fit each other, or a share is outside 0 to 1.
    """
    patch = patch_shape(images, attention)
    _check_shares(probability=(probability, probability), ratio=ratio)
    batch, rows, columns = images.shape[0], *attention.shape[2:]
    chosen = _uniform((0.0, 1.0), batch, images.device, generator) < probability
    hidden = (_uniform(ratio, batch, images.device, generator) * rows * columns).round() * chosen
    rank = saliency(attention).flatten(1).argsort(dim=1).argsort(dim=1)
    mask = (rank < hidden[:, None]).unflatten(1, (rows, columns))
    pixels = mask.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)
    return Augmented(images.masked_fill(pixels[:, None], fill), mask.to(images.dtype))


def paste_anomalies(
    images: Tensor,
    attention: Tensor,
    generator: Generator,
    *,
    probability: float = 0.5,
    area: Range = (0.01, 0.12),
    aspect: Range = (1.0, 8.0),
    contrast: Range = (0.5, 1.5),
    brightness: Range = (-1.0, 1.0),
    opacity: Range = (0.5, 1.0),
) -> Augmented:
    """Paste a changed piece of another place or image where attention is high.

    With `probability` an image gets one anomaly: a rotated rectangle, centred on a patch that is
    drawn with the saliency as its probability. Area, brightness, contrast and opacity are drawn
    uniformly, aspect log-uniformly, the angle from the half circle. The pixels come from a random
    place of a random image of the batch, and go on from the opposite edge where they run out.

    Args:
        images: Normalised, [batch, channels, height, width].
        attention: [batch, heads, rows, columns]; the grid must divide the image. A constant
            attention gives the same anomalies at any place alike.
        generator: Draws everything.
        probability: Of an image being damaged.
        area: Least and greatest share of the image's area.
        aspect: Least and greatest ratio of the longer side to the shorter.
        contrast: Factor of the pasted pixels' difference from their image's mean.
        brightness: Added to the pasted pixels, in units of the normalised image.
        opacity: Share of the pasted pixels in the blend.

    Raises:
        ValueError: The shapes do not fit each other, or a share is outside 0 to 1.
    """
    patch = patch_shape(images, attention)
    _check_shares(probability=(probability, probability), area=area, opacity=opacity)
    batch, _, height, width = images.shape
    device = images.device

    def draw(limits: Range) -> Tensor:
        return _uniform(limits, batch, device, generator)[:, None, None]

    damaged = draw((0.0, 1.0)) < probability
    place = torch.multinomial(saliency(attention).flatten(1), 1, generator=generator)[:, :, None]
    centre_y = (place // attention.shape[3] + draw((0.0, 1.0))) * patch[0]
    centre_x = (place % attention.shape[3] + draw((0.0, 1.0))) * patch[1]
    size = (draw(area) * height * width).sqrt()
    stretch = draw((math.log(aspect[0]), math.log(aspect[1]))).exp().sqrt()
    angle = draw((0.0, math.pi))

    y = torch.arange(height, device=device)[:, None] + 0.5 - centre_y
    x = torch.arange(width, device=device) + 0.5 - centre_x
    along = y * angle.sin() + x * angle.cos()
    across = y * angle.cos() - x * angle.sin()
    inside = damaged & (along.abs() < size * stretch / 2) & (across.abs() < size / stretch / 2)

    donor = torch.randint(batch, (batch, 1, 1), generator=generator, device=device)
    row = (draw((0.0, height)) + across).floor().long() % height
    column = (draw((0.0, width)) + along).floor().long() % width
    source = images[donor, :, row, column].permute(0, 3, 1, 2)
    mean = images.mean(dim=(2, 3), keepdim=True)[donor[:, 0, 0]]
    pasted = (source - mean) * draw(contrast)[:, None] + mean + draw(brightness)[:, None]
    weight = (inside * draw(opacity))[:, None]
    share = F.avg_pool2d(inside[:, None].to(images.dtype), patch)[:, 0]
    return Augmented(torch.lerp(images, pasted, weight.to(images.dtype)), share)


def patch_shape(images: Tensor, attention: Tensor) -> tuple[int, int]:
    """Height and width of a patch in pixels.

    Raises:
        ValueError: The two are not of one batch, or the grid does not divide the image.
    """
    if images.ndim != 4 or attention.ndim != 4 or images.shape[0] != attention.shape[0]:
        raise ValueError(
            "images must be [batch, channels, height, width] and attention "
            "[batch, heads, rows, columns] of the same batch; got "
            f"{list(images.shape)} and {list(attention.shape)}"
        )
    (height, width), (rows, columns) = images.shape[2:], attention.shape[2:]
    if height % rows or width % columns:
        raise ValueError(
            f"a grid of {rows} x {columns} patches does not divide images of {height} x {width} "
            "pixels; crop the images to a multiple of the patch"
        )
    return height // rows, width // columns


def _uniform(limits: Range, batch: int, device: torch.device, generator: Generator) -> Tensor:
    low, high = limits
    return low + (high - low) * torch.rand(batch, device=device, generator=generator)


def _check_shares(**shares: Range) -> None:
    for name, (low, high) in shares.items():
        if not 0.0 <= low <= high <= 1.0:
            raise ValueError(
                f"{name} must lie between 0 and 1, the lesser first; got {low}, {high}"
            )
