"""What the routes work with: one model, its pipeline and the index."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from service.bundle import Manifest
from service.errors import InvalidOption, NotFound
from service.images import View
from service.index.base import Index
from service.pipeline import Pipeline
from service.schemas import Options
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that `create_app` wires together."""

    settings: Settings
    manifest: Manifest
    pipeline: Pipeline
    index: Index

    @classmethod
    def of(cls, request: Request) -> Gateway:
        """The gateway that this request came to."""
        gateway: Gateway = request.app.state.gateway
        return gateway

    @property
    def served(self) -> dict[str, str]:
        """How every answer names the model."""
        return {"model": self.manifest.name, "digest": self.manifest.digest}

    def view(self, options: Options) -> View:
        """Check the options that every image route shares, and give the view they ask for.

        Raises:
            NotFound: `model` is not the one served.
            InvalidOption: `size` is no multiple of the patch.
        """
        if options.model not in (None, self.manifest.name):
            raise NotFound(
                f"There is no model {options.model!r}; this server serves {self.manifest.name!r}."
            )
        multiple = self.manifest.input.multiple
        if options.size is not None and options.size % multiple:
            raise InvalidOption(f"size: {options.size} is not a multiple of the patch, {multiple}.")
        return View(fit=options.fit, size=options.size)
