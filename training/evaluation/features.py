"""Features of a folder of photographs: embeddings, and raw pixels as their floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from service.bundle import InputSpec
from service.images import Limits, View, prepare
from training.data.pixels import normalise
from training.data.sources import ImageFolder

BATCH = 64
PIXELS = 32
# Curated data: bound the pixels, not the bytes.
LIMITS = Limits(bytes=2**30, pixels=2**28, patches=2**16)

Item = TypeVar("Item")


def embed_folder(
    backbone: nn.Module,
    source: ImageFolder,
    spec: InputSpec,
    report: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float32]:
    """Embed every image by the bundle's evaluation rule, decoded and cropped as the gateway does.

    Args:
        backbone: Normalised images -> embedding [batch, dim].
        source: The images.
        spec: How a photograph becomes the model's input.
        report: Told how many more images are done.

    Returns:
        [images, dim], in the source's order.
    """
    backbone.eval()
    with ThreadPoolExecutor() as pool, torch.inference_mode():
        chunks = []
        for paths in batched(source.paths, BATCH):
            pixels = pool.map(lambda path: prepare(path.read_bytes(), spec, View(), LIMITS), paths)
            images = normalise(torch.from_numpy(np.stack(list(pixels))))
            chunks.append(backbone(images).numpy())
            report(len(paths))
    return np.concatenate(chunks)


def raw_pixels(
    source: ImageFolder, report: Callable[[int], None] = lambda count: None
) -> NDArray[np.float32]:
    """The pixels themselves, reduced to 32 x 32: what any model has to beat.

    Args:
        source: The images.
        report: Told how many more images are done.

    Returns:
        [images, 3072], in the source's order.
    """
    rows = []
    for index in range(len(source)):
        small = source.image(index).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        rows.append(np.asarray(small, np.float32).ravel())
        report(1)
    return np.stack(rows)


def batched(items: tuple[Item, ...], size: int) -> Iterator[tuple[Item, ...]]:
    """Consecutive slices of `size` items, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
