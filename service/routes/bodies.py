"""A bound on what the bodies of all requests hold in memory together."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Overloaded
from service.telemetry import metrics


class BodiesTooLarge(Overloaded):
    """There is no room for the body, and the rest of it may still be on its way."""


class Bodies:
    """Counts the bytes that arrive, and those of a request no longer once it is answered.

    Args:
        app: What reads the bodies.
        most: Bytes of all together.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self._most = most
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; a body that there is no room for is refused where it is read.

        Raises:
            BodiesTooLarge: From `receive`, once; what arrives after that is not kept, so it is not
                counted.
        """
        held = 0
        refused = False

        async def counted() -> Message:
            nonlocal held, refused
            message = await receive()
            size = len(message.get("body", b""))
            if refused or not size:
                return message
            if self._held + size > self._most:
                refused = True
                metrics.SHED.labels("bodies").inc()
                raise BodiesTooLarge(
                    f"The requests under way hold {self._held} bytes; the limit is {self._most}. "
                    "Try again later.",
                    retry_after=1,
                )
            held += size
            self._held += size
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= held
