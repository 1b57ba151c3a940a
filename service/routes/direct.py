"""The busiest routes, reached without the layers that FastAPI lays around every endpoint.

Their endpoints take the request and give the response: there are no dependencies to solve, no
model to serialise and no files to close. FastAPI still holds the same routes, for its document and
for every other method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.routes import problems

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """Calls the endpoint of a route by its path.

    Args:
        app: Answers everything else.
        routes: Those to call; none has a parameter in its path.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._endpoints: dict[tuple[str, str], Endpoint] = {
            (method, route.path): route.endpoint
            for route in routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by the endpoint, or pass the request on."""
        endpoint = (
            self._endpoints.get((scope["method"], scope["path"]))
            if scope["type"] == "http"
            else None
        )
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["endpoint"] = endpoint
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except problems.EXPECTED as error:
            response = await problems.answer(request, error)
        await response(scope, receive, send)
