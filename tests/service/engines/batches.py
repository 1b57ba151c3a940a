"""Batches for engines: random pixels, and photographs as the default model takes them in."""

from functools import cache

import numpy as np

from service.bundle import DEFAULT, Bundle
from service.images import Limits, View, prepare
from tests.data import dataset

OUTPUTS = ("embedding", "patches", "attention")
LIMITS = Limits(bytes=2**24, pixels=2**24, patches=2**12)


def images(batch: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)


@cache
def photographs(count: int) -> np.ndarray:
    """So many, spread over the classes: uint8 [count, 128, 128, 3]."""
    files = sorted((dataset("imagenette128") / "val").rglob("*.jpg"))
    chosen = files[:: len(files) // count][:count]
    spec = Bundle.load(DEFAULT).manifest.input
    return np.stack([prepare(file.read_bytes(), spec, View(), LIMITS) for file in chosen])


def cosines(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of each row with its partner."""
    dots = (some.astype(np.float64) * others).sum(1)
    return dots / (np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1))
