"""`/v2/repository`: which bundles there are, and loading and unloading them while serving."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from service.errors import InvalidOption
from service.models import Models
from service.routes.gateway import Gateway
from service.routes.json_body import json_input, read_json
from service.routes.v2 import ERRORS, NOTHING, RepositoryEntry

router = APIRouter(tags=["repository"], prefix="/v2/repository")


class IndexRequest(BaseModel):
    """Body of `POST /v2/repository/index`."""

    ready: bool = False


class LoadParameters(BaseModel):
    """None: a bundle is read from the repository as it is."""

    model_config = ConfigDict(extra="forbid")


class LoadRequest(BaseModel):
    """Body of `POST /v2/repository/models/{name}/load`."""

    parameters: LoadParameters = LoadParameters()


class UnloadParameters(BaseModel):
    """What Triton's clients send; no model depends on another here."""

    unload_dependents: bool = False


class UnloadRequest(BaseModel):
    """Body of `POST /v2/repository/models/{name}/unload`."""

    parameters: UnloadParameters = UnloadParameters()


@router.post(
    "/index",
    response_model=None,
    responses={200: {"model": list[RepositoryEntry]}, **ERRORS},
    openapi_extra=json_input(IndexRequest),
)
async def index(request: Request) -> Response:
    """List the models in service and, unless only the ready are asked for, those that could be."""
    asked = await read_json(request, IndexRequest)
    models = Gateway.of(request).models
    entries = [
        {"name": model.manifest.name, "version": model.digest, "state": "READY", "reason": ""}
        for model in models
        if model.pipeline.ready
    ]
    ready = {entry["name"] for entry in entries}
    if not asked.ready:
        entries += [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "not loaded"}
            for name in models.stored()
            if name not in ready
        ]
    return Response(orjson.dumps(entries), media_type="application/json")


@router.post(
    "/models/{name}/load",
    response_class=Response,
    responses=NOTHING | ERRORS,
    openapi_extra=json_input(LoadRequest),
)
async def load(request: Request, name: str) -> Response:
    """Serve a bundle of the repository, in place of what was served under its name.

    Requests go on meanwhile; a bundle that cannot be used leaves what was served in place.
    """
    await read_json(request, LoadRequest)
    await _models(request).load(name)
    return Response()


@router.post(
    "/models/{name}/unload",
    response_class=Response,
    responses=NOTHING | ERRORS,
    openapi_extra=json_input(UnloadRequest),
)
async def unload(request: Request, name: str) -> Response:
    """Serve a model no longer; requests that have begun are answered."""
    await read_json(request, UnloadRequest)
    await _models(request).unload(name)
    return Response()


def _models(request: Request) -> Models:
    gateway = Gateway.of(request)
    if gateway.settings.workers > 1:
        raise InvalidOption(
            f"This server runs {gateway.settings.workers} processes, and a request reaches one of "
            "them. Restart it to load the repository anew, or run it with --workers 1."
        )
    return gateway.models
