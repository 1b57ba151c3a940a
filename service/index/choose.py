"""Which index the settings ask for."""

from __future__ import annotations

from service.index.base import Index
from service.index.local import LocalIndex
from service.index.redis import RedisIndex
from service.settings import Settings


def open_index(settings: Settings) -> Index:
    """Open the index of this machine, or the one that gateways share.

    Raises:
        IndexUnavailable: It cannot be opened; the message says why and what to do.
    """
    if settings.index == "local":
        return LocalIndex(settings.data)
    assert settings.redis_url is not None
    return RedisIndex(settings.redis_url.get_secret_value(), settings.index_timeout)
