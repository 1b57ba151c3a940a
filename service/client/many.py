"""Many images: grouped into requests, a few of them in flight, answered in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

from service.client.errors import ClientError, Refused
from service.client.results import Embedding

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Batching:
    """How many images are grouped into one request, and how many requests are in flight.

    The defaults stay well below the server's, 64 images and 64 MB a request.

    Attributes:
        images: The most images in a request.
        size: The most bytes in a request, unless one image alone has more.
        in_flight: Requests at a time; each holds its images in memory.
    """

    images: int = 32
    size: int = 32_000_000
    in_flight: int = 4


def turned_away(answers: Sequence[Embedding | ClientError]) -> list[int]:
    """Indices of the images that found the server's queue full while others found room.

    Sent again by themselves, either one of them at least is answered, or the whole request is
    turned away and the client's retries wait.
    """
    return [
        index
        for index, answer in enumerate(answers)
        if isinstance(answer, Refused) and answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    ]


def in_order(work: Callable[[T], R], entries: Iterable[T], at_once: int) -> Iterator[R]:
    """`work` on each entry in threads, `at_once` of them; results in the order of the entries."""
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(at_once)
    try:
        for entry in entries:
            waiting.append(pool.submit(work, entry))
            if len(waiting) == at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


async def in_order_async(
    work: Callable[[T], Awaitable[R]], entries: Iterable[T], at_once: int
) -> AsyncGenerator[R, None]:
    """`work` on each entry in tasks, `at_once` of them; results in the order of the entries."""
    waiting: deque[asyncio.Future[R]] = deque()
    try:
        for entry in entries:
            waiting.append(asyncio.ensure_future(work(entry)))
            if len(waiting) == at_once:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


@contextmanager
def bar(total: int, *, shown: bool = True) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error; what it gives is called after each image."""
    with Progress(console=Console(stderr=True), disable=not shown) as progress:
        task = progress.add_task("Embedding", total=total)
        yield lambda: progress.advance(task)
