import json
import socket
from pathlib import Path

import httpx
import pytest

from service.bundle import Bundle
from tests.service.exposition import samples
from tests.service.gateways import PNG, photograph
from tests.service.processes import serving
from tests.service.wire import read_all

CHANGING = {"date", "server-timing", "x-request-id"}


def test_whatever_answers_get_answers_head_with_the_same_headers(
    client: httpx.Client, bundle: Bundle
) -> None:
    values = {"collection": "seen", "item": "a", "model": "tiny", "name": "tiny"}
    values["version"] = bundle.digest
    put = client.put("/collections/seen/items/a", content=photograph(), headers=PNG)
    assert put.status_code == 200
    documented = client.get("/openapi.json").json()["paths"]
    paths = [path.format(**values) for path, methods in documented.items() if "get" in methods]
    paths.remove("/metrics")  # longer each time
    assert {"/livez", "/collections", "/v1/models", "/v2/health/live"} < set(paths)
    for path in (*paths, "/", "/docs", "/openapi.json", "/web/app.js"):
        get, head = client.get(path), client.head(path)
        assert get.status_code == head.status_code == 200, path
        assert head.content == b""
        for name in get.headers.keys() | head.headers.keys():
            assert name in CHANGING or head.headers[name] == get.headers[name], path
        assert "content-length" in head.headers


@pytest.mark.parametrize("path", ["/embed", "/nothing", "/web/nothing.js"])
def test_whatever_refuses_get_refuses_head(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert head.status_code == get.status_code
    assert head.status_code in {404, 405}
    assert head.headers["content-length"] == get.headers["content-length"]


def test_a_head_has_no_body_and_is_told_of_as_a_head(bundle: Bundle, tmp_path: Path) -> None:
    paths = ("/livez", "/metrics", "/web/style.css", "/embed")
    lines = [f"HEAD {path} HTTP/1.1\r\nHost: x\r\n" for path in paths]
    settings = {"FOVEAL_ACCESS_LOG": "true", "FOVEAL_LOG_FORMAT": "json"}
    with serving("--model", bundle.path, "--data", tmp_path, **settings) as server:
        url = httpx.URL(server.address)
        with socket.create_connection((url.host, url.port), timeout=60) as connection:
            connection.sendall(("\r\n".join(lines) + "Connection: close\r\n\r\n").encode())
            answers = read_all(connection)
        text = httpx.get(url.join("/metrics"), timeout=60).text
        told = [json.loads(line) for line in server.log.splitlines()]
    *heads, rest = answers.split(b"\r\n\r\n")
    assert rest == b""
    assert [head[:12] for head in heads] == 3 * [b"HTTP/1.1 200"] + [b"HTTP/1.1 405"]
    seen = {
        (line["method"], str(line["status"]), line["route"])
        for line in told
        if line["logger"] == "foveal.access"
    }
    expected = {
        ("HEAD", "200", "/livez"),
        ("HEAD", "200", "/metrics"),
        ("HEAD", "200", "/web/{path}"),
        ("HEAD", "405", "/embed"),
    }
    assert expected <= seen
    assert samples(text, "http_server_request_duration_seconds_count") == dict.fromkeys(expected, 1)
