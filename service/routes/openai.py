"""`/v1`: embeddings and models as OpenAI's API has them, so that its clients work unchanged."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from service.bundle import DEFAULT
from service.errors import (
    FovealError,
    InvalidOption,
    MalformedRequest,
    TooLarge,
    UnsupportedMediaType,
)
from service.images import View
from service.models import Model
from service.pooling import unit
from service.routes.answers import base64_numbers, json_response, run_each
from service.routes.body import off_loop_if_large
from service.routes.documented import ENCODED
from service.routes.gateway import Gateway
from service.routes.inputs import Link, Source, arrived
from service.routes.json_body import PIXEL, json_input, parse_json, read_json_body, source_of

router = APIRouter(tags=["openai"], prefix="/v1")

IMAGES_ONLY = (
    "This model embeds images, not text: an input is an image as a data URI "
    "(data:image/png;base64,…), as bare base64 or as an https URL."
)
TEXTS = ({"type": "string", "format": "byte"}, {"type": "string", "format": "uri"})
IMAGE = {"anyOf": [*TEXTS, *ENCODED["anyOf"]]}


class EmbeddingsRequest(BaseModel):
    """Body of `POST /v1/embeddings`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"model": DEFAULT.name, "input": f"data:image/png;base64,{PIXEL}"}
        },
    )

    model: str = Field(description="Name of the model; GET /v1/models lists them.")
    input: Annotated[
        Any,
        Field(
            description="One image or a list: data URIs, base64, https URLs.",
            json_schema_extra={"anyOf": [IMAGE, {"type": "array", "items": IMAGE, "minItems": 1}]},
        ),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, gt=0, description="The model's own width, if given.")
    user: str | None = Field(None, description="Ignored.")


class EmbeddingObject(BaseModel):
    """One image's embedding, of unit length."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """What was computed: an image counts as many tokens as the model sees patches."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Answer of `POST /v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingObject]
    model: str
    digest: str
    usage: Usage


class ModelObject(BaseModel):
    """A model in service."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    digest: str


class ModelsAnswer(BaseModel):
    """Answer of `GET /v1/models`."""

    object: Literal["list"]
    data: list[ModelObject]


class OpenAIError(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """Every refusal under `/v1`."""

    error: OpenAIError


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": "Refused", "model": ErrorAnswer} for status in ("4XX", "5XX")
}


@router.post(
    "/embeddings",
    response_model=None,
    responses={200: {"model": EmbeddingsAnswer}, **ERRORS},
    openapi_extra=json_input(EmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """Embed images; the first that fails fails the request, which names its index."""
    gateway = Gateway.of(request)
    body = await read_json_body(request)
    asked, sources = await off_loop_if_large(len(body), _parse, body, gateway.settings.max_images)
    model = gateway.model(asked.model)
    dim = model.manifest.dim
    if asked.dimensions not in (None, dim):
        raise InvalidOption(
            f"this model's embeddings have {dim} numbers and cannot be shortened; leave "
            f"dimensions out, or say {dim}."
        ).of("dimensions")
    images = await arrived(request, sources)
    results = await run_each(request, model, images, View(), ("embedding",))
    data = []
    for index, result in enumerate(results):
        if isinstance(result, FovealError):
            raise _about(result, index)
        vector = unit(result["embedding"])
        embedding = base64_numbers(vector) if asked.encoding_format == "base64" else vector
        data.append({"object": "embedding", "index": index, "embedding": embedding})
    tokens = len(data) * _tokens(model)
    return json_response(
        {
            "object": "list",
            "data": data,
            **model.served,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


@router.get("/models", response_model=None, responses={200: {"model": ModelsAnswer}, **ERRORS})
async def models(request: Request) -> Response:
    """List the models in service."""
    served = Gateway.of(request).models
    return json_response({"object": "list", "data": [_describe(model) for model in served]})


@router.get(
    "/models/{model}", response_model=None, responses={200: {"model": ModelObject}, **ERRORS}
)
async def model(request: Request, model: str) -> Response:
    """Describe a model in service."""
    return json_response(_describe(Gateway.of(request).model(model)))


def _parse(body: bytes, max_images: int) -> tuple[EmbeddingsRequest, list[Source | Link]]:
    asked = parse_json(body or b"{}", EmbeddingsRequest)
    entries = asked.input if isinstance(asked.input, list) else [asked.input]
    if not entries:
        raise InvalidOption("the list is empty; send at least one image.").of("input")
    if len(entries) > max_images:
        raise TooLarge(
            f"there are {len(entries)} images; the limit is {max_images}. "
            "Send them in several requests."
        ).of("input")
    return asked, list(map(source_of, entries))


def _about(error: FovealError, index: int) -> FovealError:
    """Say which input failed, and where it may be text, what is expected."""
    if error.status >= 500:
        return error
    if isinstance(error, MalformedRequest | UnsupportedMediaType):
        error = InvalidOption(f"{error.detail} {IMAGES_ONLY}")
    return error.of(f"input[{index}]")


def _tokens(model: Model) -> int:
    manifest = model.manifest
    return (manifest.input.crop // manifest.input.multiple) ** 2 + manifest.prefix_tokens


def _describe(model: Model) -> dict[str, Any]:
    return {
        "id": model.manifest.name,
        "object": "model",
        "created": model.since,
        "owned_by": "foveal",
        "digest": model.digest,
    }
