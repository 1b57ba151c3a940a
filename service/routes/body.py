"""The request on the wire: its bytes within their limits, its deadline, a client that may leave."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.errors import BodyTimeout, InvalidOption, TooLarge
from service.settings import Settings

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

LINGER = 2.0  # seconds
LARGE = 250_000  # bytes; parsing more would hold the other requests up
DEADLINE_HEADER = "X-Request-Timeout-Ms"
MILLISECONDS = re.compile("[1-9][0-9]{0,8}")


class BodyTooLarge(TooLarge):
    """The body is over its limit, and the rest of it may still be on its way."""


def deadline(request: Request, settings: Settings) -> float:
    """When the answer is of no more use, in the event loop's time.

    The time runs from the first call, and is the client's own `X-Request-Timeout-Ms` where that is
    shorter than `request_timeout`.

    Raises:
        InvalidOption: The header is no whole number of milliseconds.
    """
    known: float | None = request.scope.get("foveal.deadline")
    if known is not None:
        return known
    seconds = settings.request_timeout
    asked = request.headers.get(DEADLINE_HEADER)
    if asked is not None:
        if not MILLISECONDS.fullmatch(asked):
            raise InvalidOption(
                f"{DEADLINE_HEADER}: must be a whole number of milliseconds, from 1 to "
                f"{1000 * seconds:.0f}, after which this server gives up by itself."
            )
        seconds = min(seconds, int(asked) / 1000)
    until = asyncio.get_running_loop().time() + seconds
    request.scope["foveal.deadline"] = until
    return until


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


async def off_loop_if_large(size: int, parse: Callable[[*Ts], T], *arguments: *Ts) -> T:
    """Call what takes its time in proportion to `size` bytes: in a thread where they are many."""
    if size > LARGE:
        return await asyncio.to_thread(parse, *arguments)
    return parse(*arguments)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work, and cancel it when the client goes away. The body must have been read.

    Raises:
        ClientDisconnect: Nobody waits for the answer any more.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    gone.add_done_callback(lambda _: task.cancel())
    try:
        return await task
    except asyncio.CancelledError:
        if gone.done() and not gone.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
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
