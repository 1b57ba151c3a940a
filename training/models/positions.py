"""Bicubic interpolation of learnt positions, as matrices that an exported graph can compute.

Source: Keys, "Cubic Convolution Interpolation for Digital Image Processing" (1981).
"""

from __future__ import annotations

import torch
from torch import Tensor


def bicubic_weights(index: Tensor, source: int, off_grid: Tensor) -> Tensor:
    """Bicubic interpolation from `source` points as a matrix, [len(index), source].

    The kernel is Keys' with a = -0.75, edges are clamped, and the scale is (n + 0.1) / source,
    the form DINO was trained with and DINOv2 without registers. On the native grid the scale is 1
    and the matrix the identity.

    Args:
        index: The points to interpolate at, 0 .. n - 1.
        source: Number of points that there are.
        off_grid: Whether the grid is not the native one (a boolean scalar).
    """
    scale = (index[-1] + 1 + 0.1 * off_grid) / source
    position = (index + 0.5) / scale - 0.5
    base = position.floor()
    near = position - base
    taps = torch.arange(-1, 3, dtype=index.dtype, device=index.device)
    weights = bicubic_kernel((near[:, None] - taps).abs(), a=-0.75)
    columns = (base[:, None] + taps).clamp(0, source - 1)
    targets = torch.arange(source, dtype=index.dtype, device=index.device)
    return (weights[:, :, None] * (columns[:, :, None] == targets)).sum(dim=1)


def antialiased_weights(index: Tensor, source: int) -> Tensor:
    """Bicubic interpolation that filters when it shrinks, as a matrix [len(index), source].

    Keys' kernel with a = -0.5 is stretched by the reduction, points beyond an edge are left out,
    and the scale is n / source: the form DINOv2 with registers was published with. On the native
    grid the matrix is the identity.

    Args:
        index: The points to interpolate at, 0 .. n - 1.
        source: Number of points that there are.
    """
    reduction = source / (index[-1] + 1)
    points = torch.arange(source, dtype=index.dtype, device=index.device)
    distance = (points + 0.5 - (index[:, None] + 0.5) * reduction).abs()
    weights = bicubic_kernel((distance / reduction.clamp(min=1)).clamp(max=2), a=-0.5)
    return weights / weights.sum(dim=1, keepdim=True)


def bicubic_kernel(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel (1981) for distances from 0 to 2, where it ends at 0."""
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return torch.where(distance <= 1, inner, outer)
