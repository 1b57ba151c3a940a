"""Embeddings of a folder of photographs, preprocessed exactly as the gateway does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from service.bundle import InputSpec
from service.images import Limits, View, prepare
from training.data.pixels import normalise
from training.data.sources import ImageFolder

BATCH = 64
# Curated data: bound the pixels, not the bytes.
LIMITS = Limits(bytes=2**30, pixels=2**28, patches=2**16)

Item = TypeVar("Item")


def embed_folder(
    backbone: nn.Module,
    source: ImageFolder,
    spec: InputSpec,
    report: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float32]:
    """Embed every image of a folder by the bundle's evaluation rule (resize, centre crop).

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


def batched(items: tuple[Item, ...], size: int) -> Iterator[tuple[Item, ...]]:
    """Consecutive slices of `size` items, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
