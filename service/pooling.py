"""Tokens -> the vectors that a client asked for: pooled, of unit length, in fewer bytes."""

from __future__ import annotations

from typing import Any, Literal, assert_never

import numpy as np
from numpy.typing import NDArray

from service.bundle import Manifest
from service.engines.base import Outputs
from service.errors import InvalidOption

Pooling = Literal["default", "cls", "mean", "gem", "cls_mean", "patches"]
Dtype = Literal["float32", "float16", "int8"]
Floats = NDArray[np.float32]

GEM_POWER = 3
GEM_LEAST = 1e-6
SMALLEST = np.finfo(np.float32).tiny


def outputs_for(pooling: Pooling, manifest: Manifest) -> tuple[str, ...]:
    """Name the model's outputs that a pooling needs, and no others.

    Raises:
        InvalidOption: The model has no CLS token, or not the output that is needed.
    """
    if pooling in ("cls", "cls_mean") and manifest.attention.query != "cls":
        raise InvalidOption(
            f"pooling: {pooling} needs a CLS token, which {manifest.architecture} has not; ask for "
            "default, mean, gem or patches."
        )
    match pooling:
        case "default" | "cls":
            return ("embedding",)
        case "mean" | "gem" | "patches":
            return ("patches",)
        case "cls_mean":
            return ("embedding", "patches")
    assert_never(pooling)


def pool(outputs: Outputs, pooling: Pooling) -> Floats:
    """Pool the tokens of one image after the model's last norm.

    - `default`: the bundle's embedding: CLS of a ViT, the mean of the tokens of a Swin or ResNet.
    - `cls`: the CLS token, as in DINO's k-NN classification and image retrieval.
    - `mean`: the mean of the patch tokens.
    - `gem`: their generalised mean of power 3, values below 1e-6 clamped (Radenovic, Tolias and
      Chum, 2018, equation 3); DINO's copy detection joins it to CLS.
    - `cls_mean`: CLS, then the mean: twice as wide, as in DINO's linear probe of ViT-B.
    - `patches`: every patch token.

    Returns:
        [dim], or [2 dim] for `cls_mean`, or [rows, columns, dim] for `patches`.
    """
    match pooling:
        case "default" | "cls":
            return outputs["embedding"]
        case "patches":
            return outputs["patches"]
        case "mean":
            return _mean(outputs["patches"])
        case "gem":
            values = np.maximum(outputs["patches"], np.float32(GEM_LEAST))
            return np.asarray(_mean(values * values * values) ** (1 / GEM_POWER), np.float32)
        case "cls_mean":
            return np.concatenate([outputs["embedding"], _mean(outputs["patches"])])
    assert_never(pooling)


def unit(vectors: Floats) -> Floats:
    """Scale each vector, along the last axis, to unit length; zero stays zero."""
    lengths = np.sqrt(np.einsum("...i,...i->...", vectors, vectors))
    scaled: Floats = vectors / np.maximum(lengths, SMALLEST)[..., None]
    return scaled


def cast(vectors: Floats, dtype: Dtype) -> tuple[NDArray[Any], float | None]:
    """Round vectors to fewer bytes.

    int8 is symmetric: the greatest magnitude becomes 127, and `scale` times the integers gives the
    vectors back. Unit vectors come back without it: divide the integers by their length.

    Returns:
        The vectors, and the scale of int8.
    """
    match dtype:
        case "float32":
            return vectors, None
        case "float16":
            return vectors.astype(np.float16), None
        case "int8":
            scale = float(np.abs(vectors).max()) / 127
            if scale < SMALLEST:  # float32 has few digits or none for it
                scale = 1.0
            return np.rint(vectors / np.float32(scale)).astype(np.int8), scale
    assert_never(dtype)


def _mean(patches: Floats) -> Floats:
    mean: Floats = np.mean(patches, axis=(0, 1), dtype=np.float32)
    return mean
