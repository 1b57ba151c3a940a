"""Flip, colour, blur and solarise a batch of crops, on any device.

Each change is Pillow's: the same formula, rounded to whole levels as Pillow rounds. What works on
pixels takes and gives float32 [crops, channels, side, side] of whole levels from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from training.data.views import HUE, SATURATION, Distortions, Numbers

COLOUR = (SATURATION, HUE)
CACHED = 2**16
"""Values, a few copies of which fit in a core's second-level cache."""
GROUP = 2**21
"""Values that a processor distorts together, fewer than fit in its third-level cache."""


def distort(crops: Tensor, draws: Distortions) -> Tensor:
    """Distort crops as drawn, in place.

    Args:
        crops: uint8 [crops, channels, side, side]; hue, saturation and grey are left out unless
            there are three channels.
        draws: Their draws, along one axis.

    Returns:
        `crops`.
    """
    if not len(crops):
        return crops
    group = len(crops)
    if crops.device.type == "cpu":
        group = max(1, GROUP // crops[0].numel())
    for start in range(0, len(crops), group):
        part = slice(start, start + group)
        crops[part] = _distort(crops[part].float(), draws[part])
    return crops


def _distort(crops: Tensor, draws: Distortions) -> Tensor:
    colour = crops.shape[1] == 3

    def change(rows: NDArray[np.int64], by: Callable[..., Tensor], *amounts: Numbers) -> None:
        for part in _parts(rows, crops):
            values = [torch.from_numpy(a[part]).to(crops)[..., None, None, None] for a in amounts]
            if len(rows[part]) == 1:
                some = crops.narrow(0, rows[part][0], 1)
                some.copy_(by(some, *values))
            else:
                index = torch.from_numpy(rows[part]).to(crops.device)
                crops.index_copy_(0, index, by(crops.index_select(0, index), *values))

    change(np.flatnonzero(draws.flip), lambda some: some.flip(-1))
    for place in range(draws.order.shape[-1]):
        for kind, by in enumerate((_brighten, _contrast, _saturate, _turn_hue)):
            if colour or kind not in COLOUR:
                rows = np.flatnonzero(draws.jitter & (draws.order[:, place] == kind))
                change(rows, by, draws.amount[rows, kind])
    if colour:
        change(np.flatnonzero(draws.grey), lambda some: _luma(some).expand_as(some))
    # Like radii together, because the widest blur decides how many taps all have.
    blurred = np.flatnonzero(draws.blur)
    blurred = blurred[draws.blur[blurred].argsort()]
    for part in _parts(blurred, crops):
        change(blurred[part], _blur, blur_kernels(draws.blur[blurred[part]]))
    change(np.flatnonzero(draws.solarize), lambda some: torch.minimum(some, 255 - some))
    return crops


def _parts(rows: NDArray[np.int64], crops: Tensor) -> list[slice]:
    """Parts of `rows` to be changed together: on a processor as many as stay in its cache."""
    count = len(rows) or 1
    if crops.device.type == "cpu":
        count = max(1, CACHED // crops[0].numel())
    return [slice(start, start + count) for start in range(0, len(rows), count)]


def _brighten(crops: Tensor, factor: Tensor) -> Tensor:
    return crops.mul_(factor).clamp_(0, 255).floor_()


def _contrast(crops: Tensor, factor: Tensor) -> Tensor:
    grey = _luma(crops) if crops.shape[1] == 3 else crops
    mean = grey.mean(dim=(1, 2, 3), keepdim=True).add_(0.5).floor_()
    return crops.sub_(mean).mul_(factor).add_(mean).clamp_(0, 255).floor_()


def _saturate(crops: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_luma(crops), crops, factor).clamp_(0, 255).floor_()


def _luma(crops: Tensor) -> Tensor:
    """ITU-R BT.601's weights of red, green and blue; [crops, 1, side, side]."""
    red, green, blue = crops.split(1, dim=1)
    grey: Tensor = (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    return grey.add_(0.5).floor_()


def _turn_hue(crops: Tensor, turn: Tensor) -> Tensor:
    """Add `turn` to the hue, in 256ths of a circle; hue and saturation are kept in eight bits."""
    red, green, blue = crops.unbind(1)
    value = crops.amax(1)
    chroma = value - crops.amin(1)
    # Whole levels, so these are 0 or 1; selecting by them is many times as fast as by booleans.
    not_red, not_green = (value - red).clamp_(max=1), (value - green).clamp_(max=1)
    near_green, near_blue = (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)
    sixth = torch.lerp(near_green, near_blue, not_green)
    sixth = torch.lerp(green - blue, sixth, not_red).div_(chroma.clamp(min=1))
    # The small part keeps what is whole in exact arithmetic from being floored to the level below.
    hue = _fraction(sixth.div_(6)).mul_(255).add_(1e-4).floor_().add_(turn[:, 0])
    hue = _fraction(hue.div_(256)).mul_(6 * 256 / 255)
    chroma.mul_(255).div_(value.clamp(min=1)).add_(1e-4).floor_().mul_(value).div_(255)
    # Shares of the chroma by which red, green and blue fall short of the value, around the circle.
    red.copy_((hue - 3).abs_().neg_().add_(2))
    green.copy_((hue - 2).abs_().sub_(1))
    blue.copy_((hue - 4).abs_().sub_(1))
    return crops.clamp_(0, 1).mul_(chroma[:, None]).neg_().add_(value[:, None]).add_(0.5).floor_()


def _fraction(values: Tensor) -> Tensor:
    return values.sub_(values.floor())


def blur_kernels(radius: Numbers) -> Numbers:
    """Taps of the blur that Pillow makes of three box blurs, whose variances add up to `radius`².

    Source: Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by Extended Box
    Filtering" (2011).

    Args:
        radius: The Gaussian's standard deviation in pixels, [crops].

    Returns:
        [crops, taps], symmetric, of sum 1.
    """
    variance = radius**2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    box = whole + part / (6 * (variance - (whole + 1) ** 2))
    reach = int(np.ceil(box.max()))
    offsets = np.abs(np.arange(-reach, reach + 1))
    taps = np.clip(box[:, None] + 1 - offsets, 0, 1) / (2 * box[:, None] + 1)
    width = 6 * reach + 1
    return np.fft.irfft(np.fft.rfft(taps, width) ** 3, width)


def _blur(crops: Tensor, taps: Tensor) -> Tensor:
    """Convolve columns, then rows; edges are repeated."""
    reach = taps.shape[1] // 2
    for axis, padding in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        side = crops.shape[axis]
        padded = F.pad(crops, padding, mode="replicate")
        crops = padded.narrow(axis, reach, side) * taps[:, reach]
        for tap in range(reach):
            pair = padded.narrow(axis, tap, side) + padded.narrow(axis, 2 * reach - tap, side)
            crops.addcmul_(pair, taps[:, tap])
    return crops.add_(0.5).floor_()
