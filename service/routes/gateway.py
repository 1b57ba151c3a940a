"""What the routes work with: the models and the index."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from service.index.base import Index
from service.models import Model, Models
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that `create_app` wires together."""

    settings: Settings
    models: Models
    index: Index

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
