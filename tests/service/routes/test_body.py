import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from service.bundle import Bundle
from service.errors import InvalidOption
from service.routes.body import deadline, while_connected
from service.settings import Settings


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
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    answer = asyncio.create_task(while_connected(request(asyncio.Queue()), work()))
    await started.wait()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    await cancelled.wait()


@pytest.mark.parametrize(("asked", "seconds"), [(None, 30), (b"250", 0.25), (b"99999999", 30)])
async def test_the_deadline_is_the_shorter_of_the_clients_and_the_servers(
    bundle: Bundle, asked: bytes | None, seconds: float
) -> None:
    headers = [] if asked is None else [(b"x-request-timeout-ms", asked)]
    came = Request({"type": "http", "headers": headers})
    settings = Settings(model=bundle.path, request_timeout=30)
    clock = asyncio.get_running_loop().time
    before = clock()
    until = deadline(came, settings)
    assert before + seconds <= until <= clock() + seconds
    await asyncio.sleep(0.01)
    assert deadline(came, settings) == until


async def test_a_deadline_of_too_many_digits_is_refused(bundle: Bundle) -> None:
    came = Request({"type": "http", "headers": [(b"x-request-timeout-ms", b"9" * 5000)]})
    with pytest.raises(InvalidOption, match="X-Request-Timeout-Ms"):
        deadline(came, Settings(model=bundle.path))
