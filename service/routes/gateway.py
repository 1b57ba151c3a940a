"""What the routes work with: the models, the index and what fetches images by URL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from service.errors import Overloaded
from service.fetch import Fetcher
from service.index.base import Index
from service.models import Model, Models
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that `create_app` wires together."""

    settings: Settings
    models: Models
    index: Index
    fetcher: Fetcher | None = None
    draining: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    def of(cls, request: Request) -> Gateway:
        """The gateway that this request came to."""
        gateway: Gateway = request.app.state.gateway
        return gateway

    def model(self, name: str | None = None) -> Model:
        """The model that a request names, or the default.

        Raises:
            NotFound: There is no model `name`.
        """
        return self.models[name or self.models.default]

    def require_ready(self) -> None:
        """Return if new requests are welcome: every model is warm, and the server is to stay.

        Raises:
            Overloaded: They are not.
        """
        if not self.models.ready or self.draining.is_set():
            raise Overloaded(
                "The server is starting or draining, or what runs the model is gone.", retry_after=1
            )
