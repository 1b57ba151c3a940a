"""The options of each call, which type checkers and editors then know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

from service.images import Fit
from service.pooling import Pooling


class ImageOptions(TypedDict, total=False):
    """What every call with images understands.

    Attributes:
        model: Name of the model; the server's default one.
        size: Side in pixels, a multiple of the patch; larger shows more detail.
        fit: `crop`, the centre square, or `whole`, all of the photograph.
    """

    model: str
    size: int
    fit: Fit


class EmbedOptions(ImageOptions, total=False):
    """Options of `embed`: how tokens become a vector, and whether it gets unit length (it does)."""

    pooling: Pooling
    normalize: bool


class AttentionOptions(ImageOptions, total=False):
    """Options of `attention`: `all`, `mean` or some heads (`0,3`), and the masks' share."""

    heads: str
    mass: float


class PictureOptions(AttentionOptions, total=False):
    """Options of `attention_picture`: what it shows."""

    view: Literal["heatmap", "overlay", "mask", "heads"]


class SearchOptions(ImageOptions, total=False):
    """Options of `similar`: where to look, how many to give, and what to leave out."""

    collection: str
    k: int
    min_score: float
    filter: Mapping[str, str | int | float | bool | None]


class RankOptions(ImageOptions, total=False):
    """Options of `rank`: how many to give, and the least cosine."""

    k: int
    min_score: float
