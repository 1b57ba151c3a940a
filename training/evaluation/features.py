"""Features of a set of images: embeddings, and raw pixels as their floor."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from service.bundle import InputSpec
from service.errors import UndecodableImage
from service.images import Limits, View, fit
from training.data.pixels import normalise
from training.data.sources import DataError, Source, Unreadable
from training.models.backbone import Backbone
from training.stopping import heed

BATCH = 64
PIXELS = 32
# Curated data: the source bounds the pixels that it decodes.
LIMITS = Limits(bytes=2**30, pixels=2**28, patches=2**16)

Report = Callable[[int], None]
T = TypeVar("T")
log = logging.getLogger(__name__)


class Embedded(NamedTuple):
    """Features and the images that they are of.

    Attributes:
        features: [images, dim].
        indices: Of the images in their source; what cannot be read is left out.
    """

    features: NDArray[np.float32]
    indices: list[int]


def embed(
    backbone: Backbone,
    source: Source,
    indices: Sequence[int],
    spec: InputSpec,
    report: Report = lambda count: None,
) -> Embedded:
    """Embed images by the bundle's evaluation rule, resized and cropped as the gateway does.

    Args:
        backbone: In evaluation mode.
        source: The images.
        indices: Which of them.
        spec: How a photograph becomes the model's input.
        report: Told how many more images are done.

    Raises:
        DataError: None of them can be read.
        Interrupted: The run is asked to stop.
    """
    device = next(backbone.parameters()).device
    chunks: list[NDArray[np.float32]] = []
    kept: list[int] = []
    with torch.inference_mode():
        for chosen, pixels in batches(source, indices, spec):
            heed()
            images = normalise(torch.from_numpy(pixels).to(device), spec.mean, spec.std)
            embedding: Tensor = backbone(images)
            chunks.append(embedding.float().cpu().numpy())
            kept.extend(chosen)
            report(len(chosen))
    return Embedded(np.concatenate(chunks), kept)


def batches(
    source: Source, indices: Sequence[int], spec: InputSpec
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """Images as the model takes them in, without those that cannot be read.

    Yields:
        Their indices, and uint8 [batch, height, width, channels].

    Raises:
        DataError: None of them can be read.
    """

    def prepare(planes: list[Image.Image]) -> NDArray[np.uint8]:
        return np.dstack([np.asarray(fit(plane, spec, View(), LIMITS)) for plane in planes])

    load = partial(readable, source, make=prepare)
    some = False
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(indices), BATCH):
            chosen = indices[start : start + BATCH]
            prepared = zip(chosen, pool.map(load, chosen), strict=True)
            found = [(index, pixels) for index, pixels in prepared if pixels is not None]
            if found:
                some = True
                yield [index for index, _ in found], np.stack([pixels for _, pixels in found])
    if not some:
        raise DataError(f"none of {len(indices)} images of {source.name} can be read")


def raw_pixels(source: Source, report: Report = lambda count: None) -> Embedded:
    """The pixels themselves, reduced to 32 x 32: what any model has to beat.

    Args:
        source: The images; what cannot be read is left out.
        report: Told how many more images are done.

    Returns:
        Rows of 1024 x channels.
    """

    def reduce(planes: list[Image.Image]) -> NDArray[np.float32]:
        small = (plane.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC) for plane in planes)
        return np.concatenate([np.asarray(plane, np.float32).ravel() for plane in small])

    rows: list[NDArray[np.float32]] = []
    kept: list[int] = []
    for index in range(len(source)):
        row = readable(source, index, reduce)
        if row is None:
            continue
        rows.append(row)
        kept.append(index)
        report(1)
    return Embedded(np.stack(rows), kept)


def readable(source: Source, index: int, make: Callable[[list[Image.Image]], T]) -> T | None:
    """What is made of an image, or a warning and None."""
    try:
        return make(source.planes(index))
    # The second is of an image too narrow for the model.
    except (Unreadable, UndecodableImage) as error:
        log.warning("%s is left out: %s", source.title(index), error)
        return None
