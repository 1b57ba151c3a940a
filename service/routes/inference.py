"""`/v2`: the Open Inference Protocol, so that Triton's clients and tools work against the gateway.

A model's one version is its digest: a client that names it never gets another model's numbers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service import __version__
from service.bundle import Manifest
from service.engines.base import Outputs
from service.errors import FovealError, NotFound, Overloaded, TooLarge
from service.images import View
from service.models import Model
from service.routes import tensors
from service.routes.answers import json_response, run_each
from service.routes.body import deadline, off_loop_if_large, while_connected
from service.routes.gateway import Gateway
from service.routes.inputs import arrived
from service.routes.json_body import json_input, read_plain
from service.routes.v2 import (
    ERRORS,
    NOTHING,
    InferenceAnswer,
    ModelConfig,
    ModelMetadata,
    ServerMetadata,
)
from service.settings import Settings

router = APIRouter(tags=["inference"], prefix="/v2")

INPUTS = (("images", "TYPE_UINT8", [-1, -1, 3]), ("bytes", "TYPE_STRING", [1]))
EXTENSIONS = ["binary_tensor_data", "model_configuration", "model_repository"]


@router.get("", response_model=None, responses={200: {"model": ServerMetadata}})
async def server() -> Response:
    """Name the server, its version and what it understands beyond the protocol."""
    return json_response({"name": "foveal", "version": __version__, "extensions": EXTENSIONS})


@router.get("/health/live", response_class=Response, responses=NOTHING)
async def live() -> Response:
    """Whether the process turns."""
    return Response()


@router.get("/health/ready", response_class=Response, responses=NOTHING | ERRORS)
async def ready(request: Request) -> Response:
    """Whether every model would answer now."""
    Gateway.of(request).require_ready()
    return Response()


@router.get(
    "/models/{name}", response_model=None, responses={200: {"model": ModelMetadata}, **ERRORS}
)
@router.get(
    "/models/{name}/versions/{version}",
    response_model=None,
    responses={200: {"model": ModelMetadata}, **ERRORS},
)
async def metadata(request: Request, name: str, version: str | None = None) -> Response:
    """Describe a model's inputs and outputs; a request sends one of the two inputs."""
    model = _model(request, name, version)
    return json_response(
        {
            "name": name,
            "versions": [model.digest],
            "platform": "foveal",
            "inputs": [
                {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
                {"name": "bytes", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": output, "datatype": "FP32", "shape": [-1, *shape]}
                for output, shape in _shapes(model.manifest).items()
            ],
        }
    )


@router.get(
    "/models/{name}/config", response_model=None, responses={200: {"model": ModelConfig}, **ERRORS}
)
@router.get(
    "/models/{name}/versions/{version}/config",
    response_model=None,
    responses={200: {"model": ModelConfig}, **ERRORS},
)
async def config(request: Request, name: str, version: str | None = None) -> Response:
    """Describe a model in the form of Triton's `config.pbtxt`, which its tools ask for."""
    model = _model(request, name, version)
    return json_response(
        {
            "name": name,
            "platform": "foveal",
            "backend": "foveal",
            "max_batch_size": Gateway.of(request).settings.max_images,
            "input": [
                {"name": tensor, "data_type": kind, "dims": dims, "optional": True}
                for tensor, kind, dims in INPUTS
            ],
            "output": [
                {"name": output, "data_type": "TYPE_FP32", "dims": shape}
                for output, shape in _shapes(model.manifest).items()
            ],
        }
    )


@router.get("/models/{name}/ready", response_class=Response, responses=NOTHING | ERRORS)
@router.get(
    "/models/{name}/versions/{version}/ready", response_class=Response, responses=NOTHING | ERRORS
)
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """Whether this model would answer now."""
    if not _model(request, name, version).pipeline.ready:
        raise Overloaded(f"{name} is starting or draining, or what runs it is gone.", retry_after=1)
    return Response()


INFER: dict[str, Any] = {
    "response_model": None,
    "responses": {
        200: {"model": InferenceAnswer, "content": {"application/octet-stream": {}}},
        **ERRORS,
    },
    "openapi_extra": json_input(tensors.InferenceRequest),
}


@router.post("/models/{name}/infer", **INFER)
@router.post("/models/{name}/versions/{version}/infer", **INFER)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Run a model on fitted pixels or on encoded images; the first that fails fails the request.

    Outputs are those of the model itself: an embedding is not scaled to unit length.
    """
    gateway = Gateway.of(request)
    until = deadline(request, gateway.settings)
    body = await read_plain(request)
    model = _model(request, name, version)
    header_length = request.headers.get(tensors.HEADER_LENGTH)
    known, max_images = model.manifest.outputs, gateway.settings.max_images
    asked = await off_loop_if_large(
        len(body), tensors.parse, body, header_length, known, max_images
    )
    _check_size(asked, model.manifest, gateway.settings)
    outputs = tuple(asked.outputs)
    results: list[Outputs | FovealError]
    if asked.pixels is None:
        images = await arrived(request, asked.encoded)
        results = await run_each(request, model, images, View(), outputs)
    else:
        runs = [_caught(model.pipeline.infer(image, outputs, until)) for image in asked.pixels]
        results = await while_connected(request, asyncio.gather(*runs))
    rows = [_answered(result, f"{asked.input}[{i}]") for i, result in enumerate(results)]
    arrays = {output: np.stack([row[output] for row in rows]) for output in outputs}
    head = {"model_name": name, "model_version": model.digest}
    if asked.id is not None:
        head["id"] = asked.id
    size = sum(array.nbytes for array in arrays.values())
    return await off_loop_if_large(size, tensors.render, head, arrays, asked.outputs)


def _model(request: Request, name: str, version: str | None) -> Model:
    model = Gateway.of(request).model(name)
    if version not in (None, model.digest):
        raise NotFound(f"{name} has no version {version!r}; its one version is {model.digest}.")
    return model


def _shapes(manifest: Manifest) -> dict[str, list[int]]:
    """The shape of each output of one image."""
    shapes = {
        "embedding": [manifest.dim],
        "patches": [-1, -1, manifest.dim],
        "attention": [manifest.heads, -1, -1],
    }
    return {output: shapes[output] for output in manifest.outputs}


def _check_size(asked: tensors.Asked, manifest: Manifest, settings: Settings) -> None:
    side = manifest.input.crop
    area = side * side if asked.pixels is None else asked.pixels[0, :, :, 0].size
    patches = area // manifest.input.multiple**2
    numbers = {
        "embedding": manifest.dim,
        "patches": patches * manifest.dim,
        "attention": patches * manifest.heads,
    }
    size = 4 * asked.count * sum(numbers[output] for output in asked.outputs)
    if size > settings.max_answer_bytes:
        raise TooLarge(
            f"The outputs take {size} bytes; the limit is {settings.max_answer_bytes}. Send fewer "
            "images at once, or ask for fewer outputs."
        )


async def _caught(run: Awaitable[Outputs]) -> Outputs | FovealError:
    try:
        return await run
    except FovealError as error:
        return error


def _answered(result: Outputs | FovealError, where: str) -> Outputs:
    if isinstance(result, FovealError):
        raise result.of(where) if result.status < 500 else result
    return result
