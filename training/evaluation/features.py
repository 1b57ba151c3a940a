"""Features of a set of images: embeddings, and raw pixels as their floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.bundle import InputSpec
from service.images import Limits, View, fit
from training.data.pixels import normalise
from training.data.sources import Source
from training.models.backbone import Backbone

BATCH = 64
PIXELS = 32
# Curated data: the source bounds the pixels that it decodes.
LIMITS = Limits(bytes=2**30, pixels=2**28, patches=2**16)

Report = Callable[[int], None]


def embed(
    backbone: Backbone,
    source: Source,
    indices: Sequence[int],
    spec: InputSpec,
    report: Report = lambda count: None,
) -> NDArray[np.float32]:
    """Embed images by the bundle's evaluation rule, resized and cropped as the gateway does.

    Args:
        backbone: In evaluation mode.
        source: The images.
        indices: Which of them.
        spec: How a photograph becomes the model's input.
        report: Told how many more images are done.

    Returns:
        [images, dim], in the order of `indices`.
    """
    device = next(backbone.parameters()).device
    chunks = []
    with torch.inference_mode():
        for pixels in batches(source, indices, spec):
            images = normalise(torch.from_numpy(pixels).to(device), spec.mean, spec.std)
            embedding: Tensor = backbone(images)
            chunks.append(embedding.float().cpu().numpy())
            report(len(pixels))
    return np.concatenate(chunks)


def batches(source: Source, indices: Sequence[int], spec: InputSpec) -> Iterator[NDArray[np.uint8]]:
    """Images as the model takes them in, uint8 [batch, height, width, channels]."""

    def prepare(index: int) -> NDArray[np.uint8]:
        pixels = np.asarray(fit(source.image(index), spec, View(), LIMITS))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), BATCH):
            yield np.stack(list(pool.map(prepare, indices[start : start + BATCH])))


def raw_pixels(source: Source, report: Report = lambda count: None) -> NDArray[np.float32]:
    """The pixels themselves, reduced to 32 x 32: what any model has to beat.

    Args:
        source: The images.
        report: Told how many more images are done.

    Returns:
        [images, 1024 x channels], in the source's order.
    """
    rows = []
    for index in range(len(source)):
        small = source.image(index).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC)
        rows.append(np.asarray(small, np.float32).ravel())
        report(1)
    return np.stack(rows)
