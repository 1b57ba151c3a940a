"""The probes: two questions that an orchestrator asks, kept apart on purpose."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import Overloaded
from service.routes.answers import json_response
from service.routes.documented import ERRORS
from service.routes.gateway import Gateway
from service.schemas import Status

router = APIRouter(tags=["probes"])


@router.get("/livez", response_model=None, responses={200: {"model": Status}})
async def livez() -> Response:
    """Whether the process turns; a restart is the cure if not, so nothing else is asked here."""
    return json_response({"status": "alive"})


@router.get(
    "/readyz", response_model=None, responses={200: {"model": Status}, "5XX": ERRORS["4XX"]}
)
async def readyz(request: Request) -> Response:
    """Whether a photograph would be answered now: the model is warm and not draining."""
    gateway = Gateway.of(request)
    if not gateway.models.ready:
        raise Overloaded("The server is starting or draining.", retry_after=1)
    return json_response({"status": "ready", **gateway.model().served})
