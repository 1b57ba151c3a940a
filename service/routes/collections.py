"""Collections and their items: what `/similar` searches."""

from __future__ import annotations

import hashlib
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.errors import FovealError, InvalidOption
from service.index.base import Item
from service.pooling import unit
from service.routes.answers import each, json_response, require_one, run_each
from service.routes.body import deadline
from service.routes.documented import ERRORS, image_input
from service.routes.gateway import Gateway
from service.routes.inputs import Source, receive
from service.routes.vectors import given_vector, image_vector
from service.schemas import (
    CollectionName,
    CollectionsAnswer,
    ItemAnswer,
    ItemId,
    ItemOptions,
    ItemsAnswer,
    ItemsOptions,
)

router = APIRouter(tags=["collections"])

ID_DIGITS = 32


@router.get("/collections", response_model=None, responses={200: {"model": CollectionsAnswer}})
async def collections(request: Request) -> Response:
    """List the collections, the model of each and how many items it has."""
    gateway = Gateway.of(request)
    listed = await gateway.index.collections(deadline(request, gateway.settings))
    return json_response(
        {
            "collections": [
                {"name": c.name, "digest": c.digest, "dim": c.dim, "items": c.items} for c in listed
            ]
        }
    )


@router.delete("/collections/{collection}", status_code=204, responses=ERRORS)
async def drop(request: Request, collection: CollectionName) -> Response:
    """Delete a collection and all its items."""
    gateway = Gateway.of(request)
    await gateway.index.drop(collection, deadline(request, gateway.settings))
    return Response(status_code=204)


@router.post(
    "/collections/{collection}/items",
    response_model=None,
    responses={200: {"model": ItemsAnswer}, **ERRORS},
    openapi_extra=image_input(ItemsOptions),
)
async def add(request: Request, collection: CollectionName) -> Response:
    """Embed many images and keep them; an image that fails is reported and the others are kept."""
    asked = await receive(request, ItemsOptions)
    gateway = Gateway.of(request)
    model = gateway.model(asked.options.model)
    ids = _ids(asked.images, asked.options.ids)
    metadata = _metadata(asked.options.metadata, len(ids))
    results = require_one(
        await run_each(request, model, asked.images, model.view(asked.options), ("embedding",))
    )
    items = [
        result if isinstance(result, FovealError) else Item(item, result["embedding"], beside)
        for item, beside, result in zip(ids, metadata, results, strict=True)
    ]
    kept = [item for item in items if isinstance(item, Item)]
    await gateway.index.put(collection, kept, model.digest, deadline(request, gateway.settings))
    stored = each(items, lambda item: {"id": item.id})
    return json_response({**model.served, "collection": collection, "items": stored})


@router.put(
    "/collections/{collection}/items/{item:path}",
    response_model=None,
    responses={200: {"model": ItemAnswer}, **ERRORS},
    openapi_extra=image_input(ItemOptions),
)
async def put(request: Request, collection: CollectionName, item: ItemId) -> Response:
    """Keep one image or embedding under an id, in place of what was there."""
    asked = await receive(request, ItemOptions)
    gateway, options = Gateway.of(request), asked.options
    model = gateway.model(options.model)
    view = model.view(options)
    if (options.embedding is not None) == bool(asked.images):
        raise InvalidOption("Send one of these: an image or an embedding.")
    if options.embedding is not None:
        vector = given_vector(options.embedding, model.manifest.dim)
    else:
        vector = await image_vector(request, model, asked.only_image(), view)
    kept = Item(item, vector, options.metadata)
    await gateway.index.put(collection, [kept], model.digest, deadline(request, gateway.settings))
    # Not read back: meanwhile others may have replaced or deleted it.
    return _item(collection, Item(item, unit(vector), options.metadata))


@router.get(
    "/collections/{collection}/items/{item:path}",
    response_model=None,
    responses={200: {"model": ItemAnswer}, **ERRORS},
)
async def get(request: Request, collection: CollectionName, item: ItemId) -> Response:
    """Give an item with its unit vector."""
    gateway = Gateway.of(request)
    found = await gateway.index.get(collection, item, deadline(request, gateway.settings))
    return _item(collection, found)


@router.delete("/collections/{collection}/items/{item:path}", status_code=204, responses=ERRORS)
async def delete(request: Request, collection: CollectionName, item: ItemId) -> Response:
    """Delete an item."""
    gateway = Gateway.of(request)
    await gateway.index.delete(collection, item, deadline(request, gateway.settings))
    return Response(status_code=204)


def _ids(images: list[Source], given: list[str] | None) -> list[str]:
    if given is None:
        # An image that cannot be read gets no id: it is reported under its index alone.
        return [
            "" if isinstance(image, FovealError) else hashlib.sha256(image).hexdigest()[:ID_DIGITS]
            for image in images
        ]
    if len(given) != len(images):
        raise InvalidOption(f"ids: there are {len(given)} for {len(images)} images.")
    if len(set(given)) < len(given):
        raise InvalidOption("ids: each must be given once.")
    return given


def _metadata(given: dict[str, Any] | list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    if isinstance(given, dict):
        return [given] * count
    if len(given) != count:
        raise InvalidOption(f"metadata: there are {len(given)} objects for {count} images.")
    return given


def _item(collection: str, item: Item) -> Response:
    return json_response(
        {
            "collection": collection,
            "id": item.id,
            "metadata": item.metadata,
            "embedding": item.vector,
        }
    )
