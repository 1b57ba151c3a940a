"""Fixtures that several folders share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.bundle import Bundle
from service.settings import Settings
from tests.redis_servers import own_redis8, redis8, redis8_session, redis_server
from tests.service.gateways import Serve, serving

__all__ = ["own_redis8", "redis8", "redis8_session", "redis_server"]


@pytest.fixture(scope="module")
def serve(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Serve the tiny bundle with the given settings and an empty index: a context manager."""

    def start(**settings: Any) -> Any:
        data: Path = tmp_path_factory.mktemp("data")
        return serving(create_app(Settings(model=bundle.path, data=data, threads=2, **settings)))

    return start


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[httpx.Client]:
    with serve() as started:
        yield started
