"""The client for ordinary programs; it may be used from several threads at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx
from numpy.typing import ArrayLike

from service.client import calls
from service.client.calls import Call, Known
from service.client.errors import ClientError
from service.client.many import Batching, bar, in_order, turned_away
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
)
from service.client.retries import Attempts, Outcome, Retries
from service.client.sources import Image, batches, image_files

T = TypeVar("T")


class Foveal:
    """A Foveal server.

    An image is a path, a URL (where the server fetches any), encoded bytes or a Pillow image. What
    concerns the whole of a call is raised; what concerns one of several images is that image's
    result. Close the client after use, or use it in a `with` statement.

    Args:
        base_url: Address of the server, such as `http://127.0.0.1:8000`.
        api_key: Sent as a bearer token, where the server asks for keys.
        timeout: Seconds to wait for a connection, and between any two bytes of an answer.
        retries: When to try again after 429, 503, 504 or a broken connection.
        batching: How `embed_many` groups images.
        sleep: Passes the time before another attempt.

    Raises:
        Refused: By every method: the server answered with a problem.
        Unreachable: By every method: no answer came.
        UnreadableFile: By every method that takes one image, by `rank` and by `embed_folder`: a
            path cannot be read.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008
        batching: Batching = Batching(),  # noqa: B008
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._http = httpx.Client(
            base_url=base_url, headers=calls.headers(api_key), timeout=timeout
        )
        self._retries = retries
        self._batching = batching
        self._sleep = sleep

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def embed(
        self, images: Image | Iterable[Image], **options: Unpack[EmbedOptions]
    ) -> list[Embedding | ClientError]:
        """Embed the images in one request; `stack` makes an array of the answers.

        Where none of them can be read, nothing is sent.

        Returns:
            For each image in order its embedding, or its own error as a value.
        """
        return self._run(calls.embed(images, **options))

    def embed_many(
        self, images: Iterable[Image], **options: Unpack[EmbedOptions]
    ) -> Iterator[tuple[Image, Embedding | ClientError]]:
        """Embed any number of images in several requests, some at a time.

        A file that cannot be read or embedded is a result like the others. Results come in the
        order of the images.
        """

        def embed(group: list[Image]) -> list[tuple[Image, Embedding | ClientError]]:
            answers = self.embed(group, **options)
            while again := turned_away(answers):
                later = self.embed([group[index] for index in again], **options)
                for index, answer in zip(again, later, strict=True):
                    answers[index] = answer
            return list(zip(group, answers, strict=True))

        limits = self._batching
        groups = batches(images, limits.images, limits.size)
        for answered in in_order(embed, groups, limits.in_flight):
            yield from answered

    def embed_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        progress: bool = True,
        **options: Unpack[EmbedOptions],
    ) -> Iterator[tuple[Image, Embedding | ClientError]]:
        """Embed the images under a folder, sorted by path, as `embed_many` does.

        Args:
            folder: Searched with its sub-folders.
            progress: Whether to draw a bar.
            options: As for `embed`.
        """
        files = image_files(Path(folder))
        with bar(len(files), shown=progress) as advance:
            for answered in self.embed_many(files, **options):
                yield answered
                advance()

    def attention(self, image: Image, **options: Unpack[AttentionOptions]) -> Attention:
        """Where the model looks in an image; by default in all of it, its aspect kept."""
        return self._run(calls.attention(image, **options))

    def attention_picture(self, image: Image, **options: Unpack[PictureOptions]) -> bytes:
        """The attention drawn as a PNG."""
        return self._run(calls.attention_picture(image, **options))

    def correspond(
        self, first: Image, second: Image, **options: Unpack[ImageOptions]
    ) -> Correspondence:
        """Match each patch of the first image with its best one in the second."""
        return self._run(calls.correspond(first, second, **options))

    def similar(
        self,
        image: Image | None = None,
        *,
        embedding: ArrayLike | None = None,
        id: str | None = None,  # noqa: A002
        **options: Unpack[SearchOptions],
    ) -> list[Match]:
        """The nearest items of a collection to an image, to a vector or to an item, best first."""
        return self._run(calls.similar(image, embedding=embedding, id=id, **options))

    def rank(
        self, image: Image, candidates: Iterable[Image], **options: Unpack[RankOptions]
    ) -> list[Ranked]:
        """Candidates by their cosine to an image, best first and failures last."""
        return self._run(calls.rank(image, candidates, **options))

    def put_item(
        self,
        collection: str,
        id: str,  # noqa: A002
        image: Image | None = None,
        *,
        embedding: ArrayLike | None = None,
        metadata: Mapping[str, Any] | None = None,
        **options: Unpack[ImageOptions],
    ) -> Item:
        """Keep an image or a vector under an id, in place of what was there."""
        call = calls.put_item(
            collection, id, image, embedding=embedding, metadata=metadata, **options
        )
        return self._run(call)

    def add_items(
        self,
        collection: str,
        images: Iterable[Image],
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[ImageOptions],
    ) -> list[str | ClientError]:
        """Embed images and keep them; gives for each its id, by default from its bytes, or error.

        `metadata` is one mapping for all, or one for each.
        """
        call = calls.add_items(collection, images, ids=ids, metadata=metadata, **options)
        return self._run(call)

    def get_item(self, collection: str, id: str) -> Item:  # noqa: A002
        """An item with its unit vector."""
        return self._run(calls.get_item(collection, id))

    def delete_item(self, collection: str, id: str) -> None:  # noqa: A002
        """Delete an item."""
        self._run(calls.delete_item(collection, id))

    def collections(self) -> list[Collection]:
        """The collections by name."""
        return self._run(calls.collections())

    def drop_collection(self, collection: str) -> None:
        """Delete a collection and all its items."""
        self._run(calls.drop_collection(collection))

    def _run(self, call: Call[T] | Known[T]) -> T:
        if isinstance(call, Known):
            return call.answer
        attempts = Attempts(self._retries)
        while True:
            outcome: Outcome
            try:
                outcome = self._http.request(call.method, call.path, **call.body)
            except httpx.TransportError as error:
                outcome = error
            verdict = attempts.judge(outcome)
            if isinstance(verdict, httpx.Response):
                return call.read(verdict)
            self._sleep(verdict)
