"""The request on the wire: its bytes within their limits, and a client that may go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import BodyTimeout, TooLarge
from service.settings import Settings

T = TypeVar("T")

LINGER = 2.0  # seconds


class BodyTooLarge(TooLarge):
    """The body is over its limit, and the rest of it may still be on its way."""


async def read_body(request: Request, settings: Settings) -> bytes:
    """Read the body, and stop as soon as it is known to be too much.

    Raises:
        BodyTooLarge: It announces or has more than `max_body_bytes`.
        BodyTimeout: It is not complete after `body_timeout` seconds.
        ClientDisconnect: The client went away.
    """
    limit = settings.max_body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLarge(
            f"The body has {announced} bytes; the limit is {limit}. Send fewer images at once."
        )
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise BodyTooLarge(
                        f"The body has more than {limit} bytes, the limit. "
                        "Send fewer images at once."
                    )
                chunks.append(chunk)
    except TimeoutError:
        raise BodyTimeout(
            f"{size} bytes of the body arrived in {settings.body_timeout:g} s, the limit; "
            "send smaller images or fewer at once."
        ) from None
    return b"".join(chunks)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work, and cancel it when the client goes away. The body must have been read.

    Raises:
        ClientDisconnect: Nobody waits for the answer any more.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


class LingeringResponse(Response):
    """An answer to a request whose body is still on its way; the connection closes after it.

    Closing while bytes arrive resets the connection, and the client may lose the answer; so what
    arrives is read and dropped for a moment, as nginx's `lingering_close` does.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer, wait for the client to hear it, then end."""
        self.headers["Connection"] = "close"
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b""})
