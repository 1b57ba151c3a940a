"""The probes, two questions that an orchestrator asks, kept apart on purpose; and the metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.routes.answers import json_response
from service.routes.documented import ERRORS
from service.routes.gateway import Gateway
from service.schemas import Status
from service.telemetry import metrics

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
    gateway.require_ready()
    return json_response({"status": "ready", **gateway.model().served})


@router.get(
    "/metrics",
    response_model=None,
    responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}},
)
async def show_metrics(request: Request) -> Response:
    """What this server, with all its workers, has done and does."""
    models = Gateway.of(request).models
    served = [(m.manifest.name, m.digest, m.pipeline.ready) for m in models]
    servers = await models.statistics()
    # Not in the event loop: the files of many workers take a while to read.
    text = await asyncio.to_thread(metrics.exposition, served, servers)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
