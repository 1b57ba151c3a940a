"""The request options and the answers, as clients see them in /docs.

Options are validated by these models. Answers are written straight from arrays, which validating
float by float would slow down many times over: their models document what is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from service.images import Fit
from service.index.base import Scalar
from service.json_text import load
from service.pooling import Dtype, Pooling

MAX_METADATA_BYTES = 16_384
MAX_METADATA_DEPTH = 32  # orjson reads deeper than it writes
MAX_ENTRIES = 10_000  # of a list; counted before one is looked at
MAX_HEADS_LENGTH = 1000


def _from_json(value: Any) -> Any:
    """Read the JSON that a query string or a form field carries as text."""
    if not isinstance(value, str):
        return _few(value)
    try:
        return _few(load(value))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"must be JSON: {error}") from None


def _from_commas(value: Any) -> Any:
    if not isinstance(value, str) or value.startswith("["):
        return _from_json(value)
    return _few(value.split(",", MAX_ENTRIES))


def _few(value: Any) -> Any:
    if isinstance(value, list) and len(value) > MAX_ENTRIES:
        raise ValueError(f"has more than {MAX_ENTRIES} entries, the limit")
    return value


def _within_limits(value: Any) -> Any:
    """Metadata, or a filter of it, that is neither too deep nor too long."""
    level = _nested([value])
    for _ in range(MAX_METADATA_DEPTH):
        level = _nested(chain.from_iterable(map(_children, level)))
    if level:
        raise ValueError(f"is nested deeper than {MAX_METADATA_DEPTH} levels, the limit")
    size = len(orjson.dumps(value))
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"takes {size} bytes as JSON; the limit is {MAX_METADATA_BYTES}")
    return value


def _nested(values: Iterable[Any]) -> list[dict[str, Any] | list[Any]]:
    return [value for value in values if isinstance(value, dict | list)]


def _children(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


CollectionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ItemId = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,256}$")]
Metadata = Annotated[dict[str, Any], AfterValidator(_within_limits)]
Pair = Annotated[list[int], Field(min_length=2, max_length=2)]
Embedding = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=1, fail_fast=True)
]


class Options(BaseModel):
    """What every route that takes images understands."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="Name of the model; the one served by default.")
    size: int | None = Field(
        None, gt=0, description="Side in pixels, a multiple of the patch; larger shows more detail."
    )
    fit: Fit = Field(
        "crop",
        description="crop: the centre square. whole: all of the photograph, its aspect kept.",
    )


class EmbedOptions(Options):
    """Options of `POST /embed`."""

    pooling: Pooling = Field(
        "default",
        description="default: the model's own embedding. cls: the CLS token. mean, gem: the mean "
        "of the patch tokens, or their generalised mean of power 3. cls_mean: CLS, then the mean. "
        "patches: every patch token [row][column].",
    )
    normalize: bool = Field(True, description="Scale each vector to unit length.")
    dtype: Dtype = Field(
        "float32", description="float16 and int8 take a half and a quarter of the bytes."
    )
    encoding: Literal["float", "base64"] = Field(
        "float", description="float: numbers in JSON. base64: their little-endian bytes."
    )


class AttentionOptions(Options):
    """Options of `POST /attention`."""

    fit: Fit = Field(
        "whole",
        description="whole: all of the photograph, its aspect kept. crop: the centre square.",
    )
    heads: str = Field(
        "all",
        max_length=MAX_HEADS_LENGTH,
        description="all, mean, or the numbers of some heads: 0,3",
    )
    mass: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Also the smallest set of patches with this share of each map; png draws 0.6.",
    )
    output: Literal["json", "npy", "png"] = Field("json", description="Form of the answer.")
    view: Literal["heatmap", "overlay", "mask", "heads"] = Field(
        "overlay", description="What a png shows."
    )


class CorrespondOptions(Options):
    """Options of `POST /correspond`."""

    fit: Fit = Field(
        "whole",
        description="whole: all of the photograph, its aspect kept. crop: the centre square.",
    )


class SimilarOptions(Options):
    """Options of `POST /similar`."""

    collection: CollectionName = Field("default", description="Where to look.")
    k: int | None = Field(
        None, ge=1, le=1000, description="How many results: 10 by default, all with candidates."
    )
    min_score: float | None = Field(
        None, ge=-1, le=1, description="Leave out what has a smaller cosine."
    )
    filter: Annotated[
        dict[str, Scalar] | None, BeforeValidator(_within_limits), BeforeValidator(_from_json)
    ] = Field(
        None, description="Metadata keys and the value that each must equal, as a JSON object."
    )
    embedding: Annotated[Embedding | None, BeforeValidator(_from_json)] = Field(
        None, description="Search with this vector instead of an image."
    )
    id: ItemId | None = Field(
        None, description="Search with this item's vector; the item itself comes first."
    )


class ItemOptions(Options):
    """Options of `PUT /collections/{collection}/items/{id}`."""

    metadata: Annotated[Metadata, BeforeValidator(_from_json)] = Field(
        default_factory=dict, description="Kept beside the vector, as a JSON object."
    )
    embedding: Annotated[Embedding | None, BeforeValidator(_from_json)] = Field(
        None, description="Keep this vector instead of an image's."
    )


class ItemsOptions(Options):
    """Options of `POST /collections/{collection}/items`."""

    ids: Annotated[
        Annotated[list[ItemId], Field(fail_fast=True)] | None, BeforeValidator(_from_commas)
    ] = Field(
        None,
        description="One id an image, a list or joined by commas; by default from the bytes.",
    )
    metadata: Annotated[
        Metadata | Annotated[list[Metadata], Field(fail_fast=True)], BeforeValidator(_from_json)
    ] = Field(
        default_factory=dict, description="One JSON object for all images, or a list with one each."
    )


class Problem(BaseModel):
    """What went wrong and what to do about it (RFC 9457)."""

    type: str
    title: str
    status: int
    code: str
    detail: str


class Served(BaseModel):
    """The model that gave the answer."""

    model: str
    digest: str


class ImageEmbedding(BaseModel):
    """One image's embedding, or why there is none.

    `grid` is there for patches, [row][column][dim]; `scale` for int8, whose integers it multiplies.
    """

    index: int
    embedding: list[float] | list[list[list[float]]] | str | None = None
    grid: tuple[int, int] | None = None
    scale: float | None = None
    error: Problem | None = None


class EmbedAnswer(Served):
    """Answer of `POST /embed`."""

    dim: int
    embeddings: list[ImageEmbedding]


class RunLengths(BaseModel):
    """A mask over the grid, compressed as COCO does."""

    size: tuple[int, int]
    counts: str


class ImageAttention(BaseModel):
    """One image's attention maps [head][row][column], or why there are none."""

    index: int
    grid: tuple[int, int] | None = None
    query: Literal["cls", "mean"] | None = None
    heads: list[int | str] | None = None
    attention: list[list[list[float]]] | None = None
    masks: list[RunLengths] | None = None
    error: Problem | None = None


class AttentionAnswer(Served):
    """Answer of `POST /attention`."""

    images: list[ImageAttention]


class CorrespondAnswer(Served):
    """Answer of `POST /correspond`: row and column of each patch's match, and its cosine.

    `mutual` says whether the match's own best match is the patch.
    """

    grids: list[Pair]
    matches: list[list[Pair]]
    scores: list[list[float]]
    mutual: list[list[bool]]


class Neighbour(BaseModel):
    """An item of a collection and its cosine to the query."""

    id: str
    score: float
    metadata: dict[str, Any]


class SimilarAnswer(Served):
    """Answer of `POST /similar` in a collection."""

    collection: str
    results: list[Neighbour]


class RankedCandidate(BaseModel):
    """A candidate and its cosine to the first image, or why it has none."""

    index: int
    score: float | None = None
    error: Problem | None = None


class CandidatesAnswer(Served):
    """Answer of `POST /similar` among candidates: best first, failures last."""

    results: list[RankedCandidate]


class ItemAnswer(BaseModel):
    """An item; `embedding` has unit length."""

    collection: str
    id: str
    metadata: dict[str, Any]
    embedding: list[float]


class StoredImage(BaseModel):
    """The item made of one image, or why there is none."""

    index: int
    id: str | None = None
    error: Problem | None = None


class ItemsAnswer(Served):
    """Answer of `POST /collections/{collection}/items`."""

    collection: str
    items: list[StoredImage]


class CollectionAnswer(BaseModel):
    """A collection and the model whose vectors it holds."""

    name: str
    digest: str
    dim: int
    items: int


class CollectionsAnswer(BaseModel):
    """Answer of `GET /collections`."""

    collections: list[CollectionAnswer]


class Status(BaseModel):
    """Answer of the probes."""

    status: str
