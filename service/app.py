"""The gateway: wiring and lifespan, nothing else."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service import __version__
from service.fetch import Fetcher
from service.guards.documented import require_keys
from service.guards.keys import KeyRing
from service.guards.limiters import Limiter, limiter_of
from service.guards.middleware import Guards
from service.index.choose import open_index
from service.models import Models
from service.routes import (
    attention,
    collections,
    correspond,
    embed,
    inference,
    openai,
    ops,
    page,
    problems,
    repository,
    similar,
)
from service.routes.bodies import Bodies
from service.routes.body import DEADLINE_HEADER
from service.routes.direct import Direct
from service.routes.gateway import Gateway
from service.routes.head_method import HeadMethod
from service.routes.tensors import HEADER_LENGTH
from service.settings import Settings
from service.telemetry.middleware import Telemetry
from service.telemetry.traces import configured


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        made = self.openapi_schema is not None
        document = super().openapi()
        settings: Settings = self.state.gateway.settings
        if settings.keys_file and not made:
            require_keys(document, open_metrics=settings.open_metrics)
        return document

    def build_middleware_stack(self) -> ASGIApp:
        # Around all that Starlette adds: the answer to a defect is also counted and has its id.
        gateway: Gateway = self.state.gateway
        return Telemetry(
            super().build_middleware_stack(),
            access_log=gateway.settings.access_log,
            traces=self.state.traces,
        )


def create_app(settings: Settings) -> FastAPI:
    """Load the models, open the index and build the application.

    The lifespan warms the models up before the first request is taken, and on shutdown answers
    what is in flight before it closes both.

    Raises:
        BundleError: A bundle is missing or damaged, or its graph is not the contract's.
        IndexUnavailable: The index cannot be opened.
        KeysError: The keys file cannot be used.
        TracesUnavailable: Traces are asked for, and what makes them is not installed.
    """
    traces = configured()
    limiter = limiter_of(settings)
    fetcher = Fetcher(settings) if settings.url_fetch else None
    gateway = Gateway(settings, Models(settings), open_index(settings), fetcher)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await gateway.models.start()
        # What start-up made lives as long as the process: the collector need not look at it again.
        gc.freeze()
        try:
            yield
        finally:
            await gateway.models.close()
            await gateway.index.close()
            if fetcher:
                await fetcher.close()
            if limiter is not None:
                await limiter.close()
            if traces:
                await asyncio.to_thread(traces.close)

    app = _Application(
        title="Foveal",
        version=__version__,
        description="Serves what self-supervised vision transformers see.",
        docs_url=None,  # FastAPI's own page loads its script from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    app.state.traces = traces
    problems.install(app)
    app.add_middleware(HeadMethod)
    busiest = (embed.router, attention.router, correspond.router, similar.router)
    app.add_middleware(Direct, routes=[route for router in busiest for route in router.routes])
    app.add_middleware(Bodies, most=settings.max_bodies_bytes)
    _guard(app, settings, limiter)
    for module in (embed, attention, correspond, similar, collections, openai, inference):
        app.include_router(module.router)
    for module in (repository, ops, page):
        app.include_router(module.router)
    app.mount("/web", page.PageFiles())
    return app


def _guard(app: FastAPI, settings: Settings, limiter: Limiter | None) -> None:
    """Add what is asked for, and nothing that every request would pass in vain."""
    keys = KeyRing(settings.keys_file) if settings.keys_file else None
    if keys is not None or limiter is not None:
        app.add_middleware(Guards, keys=keys, limiter=limiter, open_metrics=settings.open_metrics)
    if settings.cors_origins:
        # Outside of the guards: a browser asks for leave without a key.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "DELETE"),
            allow_headers=(
                "Authorization",
                "Content-Type",
                "X-API-Key",
                "X-Request-Id",
                DEADLINE_HEADER,
                HEADER_LENGTH,
                "traceparent",
                "tracestate",
            ),
            expose_headers=(
                "X-Request-Id",
                "Server-Timing",
                "Retry-After",
                "RateLimit",
                "RateLimit-Policy",
                HEADER_LENGTH,
            ),
        )
