"""The door of a whole gateway."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from service.guards.keys import make
from service.guards.middleware import _network
from tests.redis_servers import RedisServer
from tests.service.gateways import PNG, Serve, assert_problem, photograph

READ, WRITE = (make(scope, scope) for scope in ("read", "write"))


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{READ[1].line()}\n{WRITE[1].line()}\n")
    return file


@pytest.fixture(scope="module")
def client(serve: Serve, keys_file: Path) -> Iterator[httpx.Client]:
    with serve(keys_file=keys_file) as started:
        yield started


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/web/app.js"]
)
def test_probes_metrics_page_and_documentation_are_open(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/embed"),
        ("POST", "/attention"),
        ("POST", "/similar"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/collections"),
        ("DELETE", "/collections/default"),
        ("PUT", "/collections/default/items/a"),
        ("POST", "/v2/repository/models/tiny/load"),
        ("GET", "/nothing"),
        ("POST", "/livez/../embed"),
    ],
)
def test_everything_else_needs_a_key(client: httpx.Client, method: str, path: str) -> None:
    for headers in ({}, bearer("foveal_wrong"), {"X-API-Key": ""}, {"Authorization": "Basic eA=="}):
        answer = client.request(method, path, headers=headers)
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "Traceback" not in answer.text


@pytest.mark.parametrize("header", ["Authorization", "X-API-Key"])
def test_a_key_opens_in_either_header(client: httpx.Client, header: str) -> None:
    secret = READ[0]
    value = f"bearer {secret}" if header == "Authorization" else secret
    answer = client.post("/embed", content=photograph(), headers=PNG | {header: value})
    assert answer.status_code == 200


def test_scopes_part_asking_from_changing(client: httpx.Client) -> None:
    photo = photograph()
    read, write = bearer(READ[0]), bearer(WRITE[0])
    put = "/collections/scopes/items/a"
    assert_problem(client.put(put, content=photo, headers=PNG | read), 403, "forbidden", "write")
    assert client.put(put, content=photo, headers=PNG | write).status_code == 200
    assert client.get(put, headers=read).status_code == 200
    assert_problem(client.get(put, headers=write), 403, "forbidden", "read")
    similar = "/similar?collection=scopes"
    assert client.post(similar, content=photo, headers=PNG | read).status_code == 200
    assert_problem(client.delete("/collections/scopes", headers=read), 403, "forbidden")
    assert client.delete("/collections/scopes", headers=write).status_code == 204


def test_refusals_speak_the_protocol_of_their_route(client: httpx.Client) -> None:
    assert_problem(client.get("/collections"), 401, "unauthorized", "X-API-Key")
    assert client.get("/v1/models").json()["error"]["type"] == "authentication_error"
    assert "API key" in client.get("/v2/models/tiny").json()["error"]


def test_metrics_can_need_a_key_too(serve: Serve, keys_file: Path) -> None:
    with serve(keys_file=keys_file, open_metrics=False) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer(READ[0])).status_code == 200
        assert client.get("/livez").status_code == 200


def test_a_caller_over_its_rate_is_told_when_to_come_back(serve: Serve) -> None:
    photo = photograph()
    with serve(rate_limit="3/h") as client:
        first = client.post("/embed", content=photo, headers=PNG)
        assert first.status_code == 200
        assert first.headers["ratelimit-policy"] == '"images";q=3;w=3600'
        # Seconds are rounded up, and the clock is no whole number.
        assert first.headers["ratelimit"] in {'"images";r=2;t=1200', '"images";r=2;t=1201'}
        many = client.post("/embed", files=[("images", photo)] * 3)
        assert many.status_code == 200
        refused = client.post("/embed", content=photo, headers=PNG)
        assert_problem(refused, 429, "rate_limited", "3 images in 3600 s")
        # Four images were asked for and three are allowed: one of debt, then the next.
        assert 1200 < int(refused.headers["retry-after"]) <= 2400
        assert refused.headers["ratelimit"].startswith('"images";r=0;')
        assert client.get("/livez").status_code == 200


def test_fitted_images_count_like_encoded_ones(serve: Serve) -> None:
    tensor = {"name": "images", "shape": [4, 8, 8, 3], "datatype": "UINT8", "data": [0] * 4 * 192}
    with serve(rate_limit="3/h") as client:
        first = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
        assert first.status_code == 200
        refused = client.post("/v2/models/tiny/infer", json={"inputs": [tensor]})
        assert refused.status_code == 429
        assert 1200 < int(refused.headers["retry-after"]) <= 2400


def test_images_whose_address_leads_nowhere_count_as_well(serve: Serve) -> None:
    nowhere = {"images": [{"url": "http://127.0.0.1:1/a.png"}] * 3}
    with serve(rate_limit="3/h", url_fetch=True, url_allow=("127.0.0.1/32",)) as client:
        assert client.post("/embed", json=nowhere).status_code == 422
        assert client.post("/embed", json=nowhere).status_code == 429


def test_a_key_that_is_taken_back_opens_no_more(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.guards.keys.LOOK", 0)
    file = tmp_path / "keys"
    file.write_text(f"{READ[1].line()}\n{WRITE[1].line()}\n")
    with serve(keys_file=file) as client:
        assert client.get("/v1/models", headers=bearer(READ[0])).status_code == 200
        file.write_text(f"{WRITE[1].line()}\n")
        assert client.get("/v1/models", headers=bearer(READ[0])).status_code == 401
        assert client.delete("/collections/none", headers=bearer(WRITE[0])).status_code != 401


def test_each_key_has_a_rate_of_its_own(serve: Serve, keys_file: Path) -> None:
    with serve(keys_file=keys_file, rate_limit="1/h") as client:
        for secret in (READ[0], WRITE[0]):
            put = "/collections/rates/items/a" if secret is WRITE[0] else "/v1/models"
            method = "DELETE" if secret is WRITE[0] else "GET"
            statuses = [
                client.request(method, put, headers=bearer(secret)).status_code for _ in range(2)
            ]
            assert statuses[0] != 429
            assert statuses[1] == 429


def test_two_gateways_hold_one_rate_through_redis(
    serve: Serve,
    redis_server: RedisServer,
) -> None:
    photo = photograph()
    with ExitStack() as stack:
        shared = {"rate_limit": "6/h", "redis_url": redis_server.url, "cache_redis_timeout": 60}
        clients = [stack.enter_context(serve(**shared)) for _ in range(2)]
        statuses = [
            client.post("/embed", content=photo, headers=PNG).status_code
            for _ in range(5)
            for client in clients
        ]
    assert statuses == [200] * 6 + [429] * 4


def test_browsers_of_other_sites_are_let_in_only_where_named(
    serve: Serve,
    client: httpx.Client,
    keys_file: Path,
) -> None:
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    assert "access-control-allow-origin" not in client.options("/embed", headers=asked).headers
    with serve(keys_file=keys_file, cors_origins="https://app.example") as other:
        allowed = other.options("/embed", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        stranger = other.options("/embed", headers=asked | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:0db8:0001:0002"),
        ("fe80::1%eth0", "fe80:0000:0000:0000"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.4", "10.1.2.4"),
    ],
)
def test_an_address_of_ipv6_counts_as_its_network(address: str, network: str) -> None:
    assert _network({"client": (address, 1)}) == network
