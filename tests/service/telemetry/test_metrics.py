"""The metrics of a whole gateway, read as Prometheus reads them."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.bundle import Bundle
from service.engines.base import ServerStatistics
from service.telemetry.metrics import MULTIPROCESS, SECONDS, exposition
from tests.service.gateways import PNG, Serve, photograph

NAMES = {
    "http_server_request_duration_seconds": "histogram",
    "foveal_queue_depth": "gauge",
    "foveal_queue_duration_seconds": "histogram",
    "foveal_preprocess_duration_seconds": "histogram",
    "foveal_inference_duration_seconds": "histogram",
    "foveal_batch_size": "histogram",
    "foveal_requests_shed": "counter",
    "foveal_unread_answers": "counter",
    "foveal_cache_requests": "counter",
    "foveal_model_info": "gauge",
}
HTTP = "http_server_request_duration_seconds_count"


@pytest.fixture
def client(serve: Serve) -> Iterator[httpx.Client]:
    with serve() as started:
        yield started


def scrape(client: httpx.Client) -> dict[tuple, float]:
    """Every sample by its name and labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def grown(before: dict[tuple, float], after: dict[tuple, float], name: str) -> dict[tuple, float]:
    """By how much the samples of a name have grown, by the values of their labels."""
    grown = {
        tuple(value for _, value in key[1:]): value - before.get(key, 0)
        for key, value in after.items()
        if key[0] == name
    }
    return {labels: by for labels, by in grown.items() if by}


def test_names_and_kinds_are_those_that_dashboards_expect(client: httpx.Client) -> None:
    families = text_string_to_metric_families(client.get("/metrics").text)
    kinds = {family.name: family.type for family in families}
    assert NAMES.items() <= kinds.items()


def test_the_model_is_named_with_its_digest(client: httpx.Client, bundle: Bundle) -> None:
    labels = (("digest", bundle.digest), ("model", "tiny"))
    assert scrape(client)["foveal_model_info", *labels] == 1


def test_requests_are_counted_by_template_never_by_path(client: httpx.Client) -> None:
    before = scrape(client)
    client.post("/embed", content=photograph(), headers=PNG)
    client.post("/embed", content=b"text", headers=PNG)
    client.get("/embed")
    client.get("/collections/one/items/a/b")
    client.get("/collections/two/items/c")
    client.get("/web/app.js")
    client.get("/random/1")
    client.get("/random/2")
    client.request("PROPFIND", "/random/3")
    after = scrape(client)
    assert grown(before, after, HTTP) == {
        ("POST", "200", "/embed"): 1,
        ("POST", "415", "/embed"): 1,
        ("GET", "405", "/embed"): 1,
        ("GET", "404", "/collections/{collection}/items/{item:path}"): 2,
        ("GET", "200", "/web/{path}"): 1,
        ("GET", "404", "unknown"): 2,
        ("_OTHER", "404", "unknown"): 1,
        ("GET", "200", "/metrics"): 1,
    }
    bounds = {float(dict(key[1:])["le"]) for key in after if key[0] == HTTP[:-5] + "bucket"}
    assert bounds == {*SECONDS, float("inf")}


def test_images_are_counted_on_their_way_through(client: httpx.Client) -> None:
    before = scrape(client)
    client.post("/embed", content=photograph(), headers=PNG)
    client.post("/embed", content=photograph(), headers=PNG)
    client.post("/embed", files=[("images", photograph(1))] * 3)
    after = scrape(client)
    cache = grown(before, after, "foveal_cache_requests_total")
    assert cache == {("miss",): 2, ("hit",): 1, ("coalesced",): 2}
    for stage in ("queue", "preprocess", "inference"):
        assert grown(before, after, f"foveal_{stage}_duration_seconds_count") == {(): 2}
        assert grown(before, after, f"foveal_{stage}_duration_seconds_sum")[()] > 0
    assert grown(before, after, "foveal_batch_size_sum") == {(): 2}
    assert after["foveal_queue_depth",] == 0


def test_what_is_refused_is_counted_by_reason(serve: Serve) -> None:
    with serve(max_queue=1) as client:
        before = scrape(client)
        files = [("images", photograph(seed)) for seed in range(2, 10)]
        answer = client.post("/embed", files=files).json()
        refused = sum(entry.get("error", {}).get("status") == 503 for entry in answer["embeddings"])
        assert refused
        assert grown(before, scrape(client), "foveal_requests_shed_total") == {("full",): refused}


def test_a_scrape_while_a_worker_starts_leaves_that_worker_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MULTIPROCESS, str(tmp_path))
    code = "from service.telemetry.metrics import CACHE; CACHE.labels('hit').inc(3)"
    subprocess.run([sys.executable, "-c", code], check=True)
    (tmp_path / "counter_7.db").touch()  # made, and not yet filled
    assert b'foveal_cache_requests_total{result="hit"} 3.0' in exposition([])


def test_what_servers_of_models_count_is_shown_with_the_servers_address() -> None:
    busy = ServerStatistics(
        "10.0.0.1:8001",
        ready=True,
        images=12,
        batches={4: 2, 1: 4},
        failed=3,
        queue_seconds=0.5,
        compute_seconds=1.5,
    )
    gone = ServerStatistics("10.0.0.2:8001", ready=False)
    text = exposition([("tiny", "abc", True)], [("tiny", busy), ("tiny", gone)]).decode()
    found = {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("foveal_triton_")
    }
    one, other = ("tiny", "10.0.0.1:8001"), ("tiny", "10.0.0.2:8001")
    assert found == {
        ("foveal_triton_ready", *one): 1,
        ("foveal_triton_ready", *other): 0,
        ("foveal_triton_images_total", *one): 12,
        ("foveal_triton_failed_total", *one): 3,
        ("foveal_triton_queue_seconds_total", *one): 0.5,
        ("foveal_triton_compute_seconds_total", *one): 1.5,
        ("foveal_triton_runs_total", "1", *one): 4,
        ("foveal_triton_runs_total", "4", *one): 2,
    }


def test_without_such_servers_there_is_nothing_of_them() -> None:
    assert b"foveal_triton" not in exposition([("tiny", "abc", True)])


def test_a_model_that_would_refuse_a_photograph_shows_even_where_no_server_of_it_is_known() -> None:
    text = exposition([("tiny", "abc", True), ("other", "def", False)]).decode()
    assert 'foveal_model_ready{model="tiny"} 1.0' in text
    assert 'foveal_model_ready{model="other"} 0.0' in text
