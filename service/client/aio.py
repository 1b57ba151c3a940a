"""The client for asyncio."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import httpx
from numpy.typing import ArrayLike

from service.client import calls
from service.client.calls import Call, Known
from service.client.errors import ClientError
from service.client.many import Batching, bar, in_order_async, turned_away
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


class AsyncFoveal:
    """`service.client.Foveal` for asyncio: the same arguments, methods and errors, awaited.

    Files are read and pictures encoded in a thread, so that the event loop goes on.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: Retries = Retries(),  # noqa: B008
        batching: Batching = Batching(),  # noqa: B008
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url, headers=calls.headers(api_key), timeout=timeout
        )
        self._retries = retries
        self._batching = batching
        self._sleep = sleep

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def embed(
        self, images: Image | Iterable[Image], **options: Unpack[EmbedOptions]
    ) -> list[Embedding | ClientError]:
        """As `Foveal.embed`."""
        return await self._run(lambda: calls.embed(images, **options))

    async def embed_many(
        self, images: Iterable[Image], **options: Unpack[EmbedOptions]
    ) -> AsyncGenerator[tuple[Image, Embedding | ClientError], None]:
        """As `Foveal.embed_many`."""

        async def embed(group: list[Image]) -> list[tuple[Image, Embedding | ClientError]]:
            answers = await self.embed(group, **options)
            while again := turned_away(answers):
                later = await self.embed([group[index] for index in again], **options)
                for index, answer in zip(again, later, strict=True):
                    answers[index] = answer
            return list(zip(group, answers, strict=True))

        limits = self._batching
        groups = batches(images, limits.images, limits.size)
        async with aclosing(in_order_async(embed, groups, limits.in_flight)) as results:
            async for answered in results:
                for one in answered:
                    yield one

    async def embed_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        progress: bool = True,
        **options: Unpack[EmbedOptions],
    ) -> AsyncGenerator[tuple[Image, Embedding | ClientError], None]:
        """As `Foveal.embed_folder`."""
        files = await asyncio.to_thread(image_files, Path(folder))
        with bar(len(files), shown=progress) as advance:
            async with aclosing(self.embed_many(files, **options)) as results:
                async for answered in results:
                    yield answered
                    advance()

    async def attention(self, image: Image, **options: Unpack[AttentionOptions]) -> Attention:
        """As `Foveal.attention`."""
        return await self._run(lambda: calls.attention(image, **options))

    async def attention_picture(self, image: Image, **options: Unpack[PictureOptions]) -> bytes:
        """As `Foveal.attention_picture`."""
        return await self._run(lambda: calls.attention_picture(image, **options))

    async def correspond(
        self, first: Image, second: Image, **options: Unpack[ImageOptions]
    ) -> Correspondence:
        """As `Foveal.correspond`."""
        return await self._run(lambda: calls.correspond(first, second, **options))

    async def similar(
        self,
        image: Image | None = None,
        *,
        embedding: ArrayLike | None = None,
        id: str | None = None,  # noqa: A002
        **options: Unpack[SearchOptions],
    ) -> list[Match]:
        """As `Foveal.similar`."""
        return await self._run(lambda: calls.similar(image, embedding=embedding, id=id, **options))

    async def rank(
        self, image: Image, candidates: Iterable[Image], **options: Unpack[RankOptions]
    ) -> list[Ranked]:
        """As `Foveal.rank`."""
        return await self._run(lambda: calls.rank(image, candidates, **options))

    async def put_item(
        self,
        collection: str,
        id: str,  # noqa: A002
        image: Image | None = None,
        *,
        embedding: ArrayLike | None = None,
        metadata: Mapping[str, Any] | None = None,
        **options: Unpack[ImageOptions],
    ) -> Item:
        """As `Foveal.put_item`."""
        return await self._run(
            lambda: calls.put_item(
                collection, id, image, embedding=embedding, metadata=metadata, **options
            )
        )

    async def add_items(
        self,
        collection: str,
        images: Iterable[Image],
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        **options: Unpack[ImageOptions],
    ) -> list[str | ClientError]:
        """As `Foveal.add_items`."""
        return await self._run(
            lambda: calls.add_items(collection, images, ids=ids, metadata=metadata, **options)
        )

    async def get_item(self, collection: str, id: str) -> Item:  # noqa: A002
        """As `Foveal.get_item`."""
        return await self._run(lambda: calls.get_item(collection, id))

    async def delete_item(self, collection: str, id: str) -> None:  # noqa: A002
        """As `Foveal.delete_item`."""
        await self._run(lambda: calls.delete_item(collection, id))

    async def collections(self) -> list[Collection]:
        """As `Foveal.collections`."""
        return await self._run(calls.collections)

    async def drop_collection(self, collection: str) -> None:
        """As `Foveal.drop_collection`."""
        await self._run(lambda: calls.drop_collection(collection))

    async def _run(self, build: Callable[[], Call[T] | Known[T]]) -> T:
        call = await asyncio.to_thread(build)
        if isinstance(call, Known):
            return call.answer
        attempts = Attempts(self._retries)
        while True:
            outcome: Outcome
            try:
                outcome = await self._http.request(call.method, call.path, **call.body)
            except httpx.TransportError as error:
                outcome = error
            verdict = attempts.judge(outcome)
            if isinstance(verdict, httpx.Response):
                return call.read(verdict)
            await self._sleep(verdict)
