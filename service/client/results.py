"""What the server answers, as values; numbers are arrays."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.client.errors import ClientError

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One image's vector, float32 [dim], and the model whose it is.

    With `pooling=patches` it is [rows, columns, dim]. Vectors of different digests cannot be
    compared.
    """

    vector: Vector
    model: str
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """Where the model looks in one image.

    Attributes:
        maps: float32 [heads, rows, columns]; each sums to 1 over the patches.
        heads: The number of each map's head, or `mean`.
        masks: bool [heads, rows, columns], the smallest sets of patches with the share of
            attention that `mass` asked for; None without it.
        query: Whose view of the patches it is: `cls` or `mean`.
        model: Name of the model.
        digest: The model's numbers.
    """

    maps: NDArray[np.float32]
    heads: list[int | str]
    masks: NDArray[np.bool_] | None
    query: str
    model: str
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Correspondence:
    """Which patch of the second image each patch of the first is most like.

    Attributes:
        grids: Rows and columns of the first image and of the second.
        matches: Row and column in the second, int [rows, columns, 2].
        scores: The cosine to it, float32 [rows, columns].
        mutual: Whether the match's own best match is the patch, bool [rows, columns].
        model: Name of the model.
        digest: The model's numbers.
    """

    grids: tuple[tuple[int, int], tuple[int, int]]
    matches: NDArray[np.intp]
    scores: NDArray[np.float32]
    mutual: NDArray[np.bool_]
    model: str
    digest: str


@dataclass(frozen=True, slots=True)
class Match:
    """An item of a collection; `score` is its cosine to the query."""

    id: str
    score: float
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate by its index, and its cosine to the first image or why it has none."""

    index: int
    score: float | ClientError


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """An item of a collection; `vector` is float32 [dim] of unit length."""

    collection: str
    id: str
    vector: Vector
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection, the digest and dimension it is bound to, and how many items it has."""

    name: str
    digest: str
    dim: int
    items: int


def stack(embeddings: Iterable[Embedding | ClientError]) -> NDArray[np.float32]:
    """The vectors as one array, float32 [images, dim].

    Raises:
        ClientError: That of the first image that has none.
    """
    vectors = []
    for embedding in embeddings:
        if isinstance(embedding, ClientError):
            raise embedding
        vectors.append(embedding.vector)
    return np.stack(vectors)


def decode_mask(size: tuple[int, int], counts: str) -> NDArray[np.bool_]:
    """Decode COCO's compressed run lengths to [rows, columns], as `pycocotools.mask.decode` does.

    Each character carries five bits of a run, least first, and whether more follow; from the
    fourth on, a run is the difference from the run two before it. Runs go down the columns and
    begin with zeros.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        group = ord(character) - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size, order="F")
