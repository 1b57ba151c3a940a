"""A client for a Foveal server: `Foveal`, and `AsyncFoveal` for asyncio."""

from service.client.aio import AsyncFoveal
from service.client.errors import (
    ClientError,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    RateLimited,
    Refused,
    ServerFailure,
    Unavailable,
    Unreachable,
    UnreadableFile,
)
from service.client.many import Batching
from service.client.results import (
    Attention,
    Collection,
    Correspondence,
    Embedding,
    Item,
    Match,
    Ranked,
    stack,
)
from service.client.retries import Retries
from service.client.sources import image_files
from service.client.sync import Foveal

__all__ = [
    "AsyncFoveal",
    "Attention",
    "Batching",
    "ClientError",
    "Collection",
    "Conflict",
    "Correspondence",
    "Embedding",
    "Forbidden",
    "Foveal",
    "InvalidInput",
    "Item",
    "Match",
    "NotFound",
    "Ranked",
    "RateLimited",
    "Refused",
    "Retries",
    "ServerFailure",
    "Unavailable",
    "Unreachable",
    "UnreadableFile",
    "image_files",
    "stack",
]
