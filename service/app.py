"""The gateway: wiring and lifespan, nothing else."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from service import __version__
from service.index.local import LocalIndex
from service.models import Models
from service.routes import attention, collections, embed, ops, page, problems, similar
from service.routes.gateway import Gateway
from service.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """Load the models, open the index and build the application.

    The lifespan warms the models up before the first request is taken, and on shutdown answers
    what is in flight before it closes both.

    Raises:
        BundleError: A bundle is missing or damaged, or its graph is not the contract's.
        IndexUnavailable: The index's folder is in use or cannot be opened.
    """
    gateway = Gateway(settings, Models(settings), LocalIndex(settings.data))

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

    app = FastAPI(
        title="Foveal",
        version=__version__,
        description="Serves what self-supervised vision transformers see.",
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.gateway = gateway
    problems.install(app)
    for module in (embed, attention, similar, collections, ops, page):
        app.include_router(module.router)
    app.mount("/web", page.PageFiles())
    return app
