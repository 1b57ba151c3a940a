import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from service.routes.body import while_connected


def request(messages: asyncio.Queue) -> Request:
    return Request({"type": "http"}, messages.get)


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    messages: asyncio.Queue = asyncio.Queue()
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    answer = asyncio.create_task(while_connected(request(messages), work()))
    await started.wait()
    messages.put_nowait({"type": "http.disconnect"})
    with pytest.raises(ClientDisconnect):
        await answer
    await cancelled.wait()


async def test_work_gives_its_result_and_its_error_while_the_client_stays() -> None:
    async def fail() -> None:
        raise KeyError("x")

    messages: asyncio.Queue = asyncio.Queue()
    assert await while_connected(request(messages), asyncio.sleep(0, "done")) == "done"
    with pytest.raises(KeyError):
        await while_connected(request(messages), fail())


async def test_work_is_cancelled_with_its_request() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    answer = asyncio.create_task(while_connected(request(asyncio.Queue()), work()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    await cancelled.wait()
