"""What every answer bears, and what the log tells of it."""

import json
import logging
import re
from collections.abc import Iterator

import httpx
import pytest

from tests.service.gateways import PNG, Serve, photograph
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[httpx.Client]:
    with serve(access_log=True) as started:
        yield started


def timings(answer: httpx.Response) -> dict[str, float]:
    entries = answer.headers["server-timing"].split(", ")
    matches = [re.fullmatch(r"(\w+);dur=(\d+\.\d{3})", entry) for entry in entries]
    return {match[1]: float(match[2]) for match in matches}


def lines(caplog: pytest.LogCaptureFixture, *paths: str) -> list[logging.LogRecord]:
    """Those of the access log of these paths."""
    told = (record for record in caplog.records if record.name == "foveal.access")
    return [record for record in told if record.fields["path"] in paths]


def test_the_stages_of_an_image_add_up_to_no_more_than_the_whole(client: httpx.Client) -> None:
    photo = photograph(77)
    found = timings(client.post("/embed", content=photo, headers=PNG))
    assert list(found) == ["decode", "queue", "infer", "total"]
    assert found["decode"] > 0
    assert found["infer"] > 0
    assert found["decode"] + found["queue"] + found["infer"] <= found["total"]
    assert list(timings(client.post("/embed", content=photo, headers=PNG))) == ["total"]
    assert list(timings(client.get("/nothing"))) == ["total"]


@pytest.mark.parametrize("given", ["abc-123", "01J:x/y+z=", "a" * 128])
def test_a_sane_request_id_comes_back(client: httpx.Client, given: str) -> None:
    for path in ("/livez", "/nothing"):
        assert client.get(path, headers={"X-Request-Id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, 'x"y', "a b", "é".encode("latin-1")])
def test_any_other_is_replaced(client: httpx.Client, given: str | bytes) -> None:
    ids = {client.get("/livez", headers={"X-Request-Id": given}).headers["x-request-id"]}
    ids.add(client.get("/livez").headers["x-request-id"])
    assert len(ids) == 2
    assert all(re.fullmatch(r"[0-9a-f]{32}", made) for made in ids)


def test_a_line_a_request_names_it_and_its_outcome(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    paths = ("/embed", "/new%0aline")
    with caplog.at_level(logging.INFO, "foveal.access"):
        client.post("/embed?size=64", files=[("images", photograph(78))] * 2)
        client.get("/new%0aline")
        # A line is written just after its answer.
        wait_until(lambda: len(lines(caplog, *paths)) >= 2)
    first, second = lines(caplog, *paths)
    fields = first.fields
    assert fields["method"], fields["status"] == ("POST", 200)
    assert (fields["route"], fields["path"], fields["images"]) == ("/embed", "/embed", 2)
    assert fields["client"] == "127.0.0.1"
    assert set(fields["stages"]) == {"decode", "queue", "infer"}
    assert json.dumps(fields)
    assert second.getMessage().startswith("GET /new%0aline 404 in ")


def test_without_an_access_log_nothing_is_told(
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve() as client, caplog.at_level(logging.INFO, "foveal.access"):
        client.get("/livez")
    assert not [record for record in caplog.records if record.name == "foveal.access"]


def test_a_defect_is_told_once_with_its_id_and_keeps_nothing_from_the_next_request(
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr("service.index.local.LocalIndex.collections", fail)
    with serve() as client:
        answer = client.get("/collections", headers={"X-Request-Id": "abc"})
        assert client.get("/livez").status_code == 200
    assert answer.status_code == 500
    assert answer.headers["x-request-id"] == "abc"
    assert "secret" not in answer.text
    (told,) = [record for record in caplog.records if record.exc_info]
    assert told.getMessage() == "GET /collections failed"
