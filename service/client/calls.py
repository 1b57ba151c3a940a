"""Each call to the server: the request that it sends and how the answer is read.

Both clients share everything here; they differ only in how they send.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, Unpack
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import ArrayLike

from service import __version__
from service.client.bodies import form, vector_field
from service.client.errors import ClientError, Refused, from_problem, from_response
from service.client.options import (
    AttentionOptions,
    EmbedOptions,
    ImageOptions,
    PictureOptions,
    RankOptions,
    SearchOptions,
)
from service.client.results import (
    Attention,
    Collection,
    Correspondence,
    Embedding,
    Item,
    Match,
    Ranked,
    Vector,
    decode_mask,
)
from service.client.sources import Image, as_list, load, load_each

T = TypeVar("T")

# An only image that is refused so is itself at fault; of several, each has its own error.
IMAGE_STATUSES = frozenset({413, 415, 422})


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, as the arguments of httpx's `request`, and what reads its answer."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """What a call gives where nothing is left to ask."""

    answer: T


def headers(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    agent = {"User-Agent": f"foveal/{__version__}"}
    return agent if api_key is None else agent | {"Authorization": f"Bearer {api_key}"}


def embed(
    images: Image | Iterable[Image], **options: Unpack[EmbedOptions]
) -> Call[list[Embedding | ClientError]] | Known[list[Embedding | ClientError]]:
    """`POST /embed`; vectors travel as base64, bit by bit."""
    loaded = load_each(as_list(images))
    if not loaded.sent:
        return Known(loaded.merge([]))

    def read(response: httpx.Response) -> list[Embedding | ClientError]:
        try:
            answer = _success(response)
        except Refused as error:
            return loaded.merge(_of_each(error, len(loaded.sent)))
        model, digest = answer["model"], answer["digest"]
        return loaded.merge(
            from_problem(entry["error"])
            if "error" in entry
            else Embedding(_vectors(answer["dim"], entry), model, digest)
            for entry in answer["embeddings"]
        )

    return Call("POST", "/embed", read, form(loaded.sent, {**options, "encoding": "base64"}))


def attention(image: Image, **options: Unpack[AttentionOptions]) -> Call[Attention]:
    """`POST /attention` of one image."""

    def read(response: httpx.Response) -> Attention:
        answer = _success(response)
        found = answer["images"][0]
        masks = found.get("masks")
        return Attention(
            maps=np.array(found["attention"], np.float32),
            heads=found["heads"],
            masks=None if masks is None else np.stack([decode_mask(**mask) for mask in masks]),
            query=found["query"],
            model=answer["model"],
            digest=answer["digest"],
        )

    return Call("POST", "/attention", read, form([load(image)], options))


def attention_picture(image: Image, **options: Unpack[PictureOptions]) -> Call[bytes]:
    """`POST /attention` for a PNG."""
    return Call("POST", "/attention", _content, form([load(image)], {**options, "output": "png"}))


def correspond(
    first: Image, second: Image, **options: Unpack[ImageOptions]
) -> Call[Correspondence]:
    """`POST /correspond`."""

    def read(response: httpx.Response) -> Correspondence:
        answer = _success(response)
        return Correspondence(
            grids=(tuple(answer["grids"][0]), tuple(answer["grids"][1])),
            matches=np.array(answer["matches"], np.intp),
            scores=np.array(answer["scores"], np.float32),
            mutual=np.array(answer["mutual"], np.bool_),
            model=answer["model"],
            digest=answer["digest"],
        )

    return Call("POST", "/correspond", read, form([load(first), load(second)], options))


def similar(
    image: Image | None = None,
    *,
    embedding: ArrayLike | None = None,
    id: str | None = None,  # noqa: A002
    **options: Unpack[SearchOptions],
) -> Call[list[Match]]:
    """`POST /similar` in a collection, to an image, a vector or an item."""

    def read(response: httpx.Response) -> list[Match]:
        return [Match(**result) for result in _success(response)["results"]]

    query = {**options, **vector_field(embedding), **({} if id is None else {"id": id})}
    payloads = [] if image is None else [load(image)]
    return Call("POST", "/similar", read, form(payloads, query))


def rank(
    image: Image, candidates: Iterable[Image], **options: Unpack[RankOptions]
) -> Call[list[Ranked]]:
    """`POST /similar` among candidates."""

    def read(response: httpx.Response) -> list[Ranked]:
        return [
            Ranked(
                result["index"],
                from_problem(result["error"]) if "error" in result else result["score"],
            )
            for result in _success(response)["results"]
        ]

    others = [load(candidate) for candidate in as_list(candidates)]
    return Call("POST", "/similar", read, form([load(image)], options, others))


def put_item(
    collection: str,
    id: str,  # noqa: A002
    image: Image | None = None,
    *,
    embedding: ArrayLike | None = None,
    metadata: Mapping[str, Any] | None = None,
    **options: Unpack[ImageOptions],
) -> Call[Item]:
    """`PUT /collections/{collection}/items/{id}` with an image or a vector."""
    fields = {**options, "metadata": metadata or {}, **vector_field(embedding)}
    payloads = [] if image is None else [load(image)]
    return Call("PUT", _item_path(collection, id), _item, form(payloads, fields))


def add_items(
    collection: str,
    images: Iterable[Image],
    *,
    ids: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    **options: Unpack[ImageOptions],
) -> Call[list[str | ClientError]] | Known[list[str | ClientError]]:
    """`POST /collections/{collection}/items`."""
    loaded = load_each(as_list(images))
    if not loaded.sent:
        return Known(loaded.merge([]))

    def read(response: httpx.Response) -> list[str | ClientError]:
        try:
            answer = _success(response)
        except Refused as error:
            return loaded.merge(_of_each(error, len(loaded.sent)))
        return loaded.merge(
            from_problem(entry["error"]) if "error" in entry else entry["id"]
            for entry in answer["items"]
        )

    kept = metadata or {}
    if not isinstance(kept, Mapping):
        kept = loaded.of_sent(kept)
    named = {} if ids is None else {"ids": loaded.of_sent(ids)}
    fields = {**options, "metadata": kept, **named}
    path = f"/collections/{quote(collection, safe='')}/items"
    return Call("POST", path, read, form(loaded.sent, fields))


def get_item(collection: str, id: str) -> Call[Item]:  # noqa: A002
    """`GET /collections/{collection}/items/{id}`."""
    return Call("GET", _item_path(collection, id), _item, {})


def delete_item(collection: str, id: str) -> Call[None]:  # noqa: A002
    """`DELETE /collections/{collection}/items/{id}`."""
    return Call("DELETE", _item_path(collection, id), _nothing, {})


def collections() -> Call[list[Collection]]:
    """`GET /collections`."""

    def read(response: httpx.Response) -> list[Collection]:
        return [Collection(**entry) for entry in _success(response)["collections"]]

    return Call("GET", "/collections", read, {})


def drop_collection(collection: str) -> Call[None]:
    """`DELETE /collections/{collection}`."""
    return Call("DELETE", f"/collections/{quote(collection, safe='')}", _nothing, {})


def _success(response: httpx.Response) -> Any:
    """The JSON of a success.

    Raises:
        Refused: The answer is none.
    """
    if not response.is_success:
        raise from_response(response)
    return response.json()


def _content(response: httpx.Response) -> bytes:
    if not response.is_success:
        raise from_response(response)
    return response.content


def _nothing(response: httpx.Response) -> None:
    _content(response)


def _item(response: httpx.Response) -> Item:
    answer = _success(response)
    vector = np.array(answer["embedding"], np.float32)
    return Item(answer["collection"], answer["id"], vector, answer["metadata"])


def _of_each(error: Refused, count: int) -> list[Any]:
    """The error of each image of a request that was refused because of its images.

    Raises:
        Refused: It was not because of them.
    """
    if error.errors:
        return [error.errors[index] for index in range(count)]
    if count == 1 and error.status in IMAGE_STATUSES:
        return [error]
    raise error


def _vectors(dim: int, entry: Mapping[str, Any]) -> Vector:
    numbers = np.frombuffer(base64.b64decode(entry["embedding"]), "<f4").astype(np.float32)
    return numbers.reshape(*entry.get("grid", ()), dim)


def _item_path(collection: str, id: str) -> str:  # noqa: A002
    return f"/collections/{quote(collection, safe='')}/items/{quote(id, safe='')}"
