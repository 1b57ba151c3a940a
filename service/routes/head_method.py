"""HEAD: what GET would answer, without its body (RFC 9110, 9.1 and 9.3.2)."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadMethod:
    """Answers HEAD wherever GET is answered.

    For all around it the request stays a HEAD: it is counted as one, and the server, which knows
    that headers alone answer it, sends no body.

    Args:
        app: What answers; it need not know of HEAD.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a HEAD as a GET."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send)
        finally:
            # With the route that was found, by which the request is counted.
            scope.update(inner, method="HEAD")
