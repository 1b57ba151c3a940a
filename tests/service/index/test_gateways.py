"""Two gateways over HTTP that share one index, and lose it."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from service.app import create_app
from service.bundle import Bundle
from service.settings import Settings
from tests.redis_servers import RedisServer
from tests.service.gateways import PNG, assert_problem, photograph, serving


@pytest.fixture
def gateways(
    bundle: Bundle, own_redis8: RedisServer, tmp_path: Path
) -> Iterator[list[httpx.Client]]:
    settings = Settings(
        model=bundle.path,
        data=tmp_path / "unused",
        index="redis",
        redis_url=SecretStr(own_redis8.url),
        index_timeout=60,
        threads=1,
    )
    with ExitStack() as stack:
        yield [stack.enter_context(serving(create_app(settings))) for _ in range(2)]
    assert not (tmp_path / "unused").exists()


def test_what_one_gateway_keeps_the_other_finds(gateways: list[httpx.Client]) -> None:
    one, other = gateways
    for seed in range(3):
        answer = one.put(f"/collections/c/items/{seed}", content=photograph(seed), headers=PNG)
        assert answer.status_code == 200, answer.text
    answer = other.post("/similar?collection=c&k=1", content=photograph(1), headers=PNG)
    (result,) = answer.json()["results"]
    assert result["id"] == "1"
    assert result["score"] == pytest.approx(1, abs=1e-5)
    assert other.delete("/collections/c").status_code == 204
    assert one.get("/collections").json() == {"collections": []}


def test_without_redis_the_index_is_503_and_all_else_works(
    gateways: list[httpx.Client], own_redis8: RedisServer
) -> None:
    gateway = gateways[0]
    own_redis8.kill()
    answer = gateway.get("/collections")
    assert_problem(answer, 503, "overloaded", "index cannot be reached")
    assert int(answer.headers["Retry-After"]) >= 1
    assert gateway.get("/readyz").status_code == 200
    assert gateway.post("/embed", content=photograph(), headers=PNG).status_code == 200
