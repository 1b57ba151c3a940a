"""`POST /similar`: the nearest items of a collection, or candidates ranked against an image."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.engines.base import Outputs
from service.errors import FovealError, InvalidOption
from service.index.base import Vector
from service.models import Model
from service.pooling import unit
from service.routes.answers import each, json_response, require_one, run_each
from service.routes.body import deadline
from service.routes.documented import ERRORS, image_input
from service.routes.gateway import Gateway
from service.routes.inputs import Asked, receive
from service.routes.vectors import given_vector, image_vector
from service.schemas import CandidatesAnswer, SimilarAnswer, SimilarOptions

router = APIRouter(tags=["images"])

DEFAULT_K = 10


@router.post(
    "/similar",
    response_model=None,
    responses={200: {"model": SimilarAnswer | CandidatesAnswer}, **ERRORS},
    openapi_extra=image_input(SimilarOptions, candidates=True),
)
async def similar(request: Request) -> Response:
    """Find what is most similar to an image, an embedding or an item; scores are cosines.

    With candidates the first image is ranked against them and no collection is used.
    """
    asked = await receive(request, SimilarOptions, candidates=True)
    gateway, options = Gateway.of(request), asked.options
    model = gateway.model(options.model)
    if asked.candidates:
        return json_response({**model.served, "results": await _rank(request, model, asked)})
    matches = await gateway.index.search(
        options.collection,
        await _query(request, model, asked),
        model.digest,
        options.k or DEFAULT_K,
        options.filter,
        options.min_score,
        deadline(request, gateway.settings),
    )
    results = [{"id": m.id, "score": m.score, "metadata": m.metadata} for m in matches]
    return json_response({**model.served, "collection": options.collection, "results": results})


async def _query(request: Request, model: Model, asked: Asked[SimilarOptions]) -> Vector:
    options = asked.options
    view = model.view(options)
    given = [bool(asked.images), options.embedding is not None, options.id is not None]
    if sum(given) != 1:
        raise InvalidOption("Search with one of these: an image, an embedding, or an id.")
    if options.embedding is not None:
        return given_vector(options.embedding, model.manifest.dim)
    if options.id is not None:
        gateway = Gateway.of(request)
        until = deadline(request, gateway.settings)
        return (await gateway.index.get(options.collection, options.id, until)).vector
    return await image_vector(request, model, asked.only_image(), view)


async def _rank(
    request: Request, model: Model, asked: Asked[SimilarOptions]
) -> list[dict[str, Any]]:
    options = asked.options
    if options.model_fields_set & {"collection", "filter", "embedding", "id"}:
        raise InvalidOption(
            "candidates: ranked against one image, without collection, filter, embedding or id."
        )
    first = asked.only_image()
    view = model.view(options)
    query, *found = await run_each(request, model, [first, *asked.candidates], view, ("embedding",))
    if isinstance(query, FovealError):
        raise query
    direction = unit(query["embedding"])

    def score(candidate: Outputs) -> dict[str, Any]:
        return {"score": float(direction @ unit(candidate["embedding"]))}

    ranked = sorted(each(require_one(found), score), key=lambda entry: -entry.get("score", -2))
    least = -1 if options.min_score is None else options.min_score
    kept = [entry for entry in ranked if entry.get("score", least) >= least]
    return kept[: options.k]
