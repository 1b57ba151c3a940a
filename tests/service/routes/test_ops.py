from pathlib import Path

import httpx

from service.app import create_app
from service.bundle import Bundle
from service.settings import Settings
from tests.service.gateways import PNG, assert_problem, photograph


def test_a_started_server_is_alive_and_ready(client: httpx.Client, bundle: Bundle) -> None:
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "model": "tiny", "digest": bundle.digest}


async def test_before_its_model_is_warm_a_server_is_alive_but_not_ready(
    tmp_path: Path, bundle: Bundle
) -> None:
    app = create_app(Settings(model=bundle.path, data=tmp_path))
    transport = httpx.ASGITransport(app)  # which runs no lifespan
    async with httpx.AsyncClient(transport=transport, base_url="http://foveal") as client:
        assert (await client.get("/livez")).status_code == 200
        for answer in (
            await client.get("/readyz"),
            await client.post("/embed", content=photograph(), headers=PNG),
        ):
            assert_problem(answer, 503, "overloaded")
            assert answer.headers["retry-after"] == "1"
    await app.state.gateway.index.close()
