"""Both clients under one interface, so that every test holds for both."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.client import AsyncFoveal, Foveal

Connect = Callable[..., Any]


class Awaited:
    """An `AsyncFoveal` whose methods are awaited, and whose generators are run to their end."""

    def __init__(self, runner: asyncio.Runner, client: AsyncFoveal) -> None:
        self._runner = runner
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            answer = method(*arguments, **options)
            if inspect.isasyncgen(answer):
                return [entry async for entry in answer]
            return await answer

        return lambda *arguments, **options: self._runner.run(call(*arguments, **options))


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Make a client for an address; what it would sleep is appended to `slept`."""
    made: list[Any] = []
    with asyncio.Runner() as runner:

        def start(url: str, *, slept: list[float] | None = None, **arguments: Any) -> Any:
            slept = [] if slept is None else slept

            async def sleep(seconds: float) -> None:
                slept.append(seconds)

            if request.param == "sync":
                client: Any = Foveal(url, sleep=slept.append, **arguments)
            else:
                client = Awaited(runner, AsyncFoveal(url, sleep=sleep, **arguments))
            made.append(client)
            return client

        yield start
        for client in made:
            client.close()


@pytest.fixture
def foveal(connect: Connect, client: httpx.Client) -> Any:
    """A client of the real application."""
    return connect(str(client.base_url))
