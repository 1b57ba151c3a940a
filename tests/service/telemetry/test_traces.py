"""Spans, as an exporter in memory and as a collector behind a whole process see them."""

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from service.app import create_app
from service.bundle import Bundle
from service.settings import Settings
from service.telemetry.traces import Traces, TracesUnavailable, configured
from tests.service import processes
from tests.service.gateways import PNG, photograph, serving
from tests.waiting import wait_until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def client(
    exporter: InMemorySpanExporter, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    app = create_app(Settings(model=bundle.path, data=tmp_path_factory.mktemp("data")))
    app.state.traces = Traces(SimpleSpanProcessor(exporter))
    with serving(app) as started:
        yield started


@pytest.fixture(autouse=True)
def _nothing_before(exporter: InMemorySpanExporter) -> None:
    exporter.clear()


def finished(exporter: InMemorySpanExporter, count: int) -> tuple[ReadableSpan, ...]:
    """The spans, of which there are so many; a request's end just after its answer."""
    wait_until(lambda: len(exporter.get_finished_spans()) >= count)
    spans = exporter.get_finished_spans()
    assert len(spans) == count
    return spans


def test_a_request_is_a_span_under_the_callers_with_its_stages_inside(
    client: httpx.Client, exporter: InMemorySpanExporter
) -> None:
    traceparent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = client.post("/embed", content=photograph(), headers=PNG | traceparent)
    *stages, server = finished(exporter, 4)
    assert server.name == "POST /embed"
    assert server.kind is SpanKind.SERVER
    assert f"{server.context.trace_id:032x}" == TRACE
    assert f"{server.parent.span_id:016x}" == PARENT
    assert server.attributes["http.request.method"] == "POST"
    assert server.attributes["http.route"] == "/embed"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["foveal.request_id"] == answer.headers["x-request-id"]
    assert [span.name for span in stages] == ["decode", "queue", "infer"]
    ends = [server.start_time]
    for span in stages:
        assert span.parent.span_id == server.context.span_id
        assert ends[-1] - 1e6 <= span.start_time <= span.end_time <= server.end_time + 1e6
        ends.append(span.end_time)


@pytest.mark.parametrize("header", ["", "00-nonsense", f"00-{'0' * 32}-{PARENT}-01"])
def test_without_a_sane_traceparent_a_trace_begins_here(
    client: httpx.Client, exporter: InMemorySpanExporter, header: str
) -> None:
    client.get("/livez", headers={"traceparent": header})
    (span,) = finished(exporter, 1)
    assert span.parent is None
    assert span.context.trace_id


def test_a_trace_not_sampled_by_the_caller_is_not_recorded(
    client: httpx.Client, exporter: InMemorySpanExporter
) -> None:
    client.get("/livez", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    client.get("/nothing")
    (other,) = finished(exporter, 1)
    assert other.name == "GET unknown"


def test_our_faults_are_errors_and_those_of_clients_are_not(
    client: httpx.Client, exporter: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("service.index.local.LocalIndex.collections", fail)
    client.get("/collections")
    client.get("/nothing")
    ours, theirs = finished(exporter, 2)
    assert ours.status.status_code is StatusCode.ERROR
    assert theirs.status.status_code is StatusCode.UNSET
    assert theirs.name == "GET unknown"


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TracesUnavailable, match=r"the checkout, pip install -e '\.\[traces\]'"):
        configured()


@contextmanager
def collector() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP collector: its address, and what it was sent."""
    received: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/v1/traces"
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_the_standard_environment_sends_them_to_a_collector(bundle: Bundle, tmp_path: Path) -> None:
    arguments = ("--model", bundle.path, "--data", tmp_path)
    with collector() as (endpoint, received):
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment=test",
            "FOVEAL_LOG_FORMAT": "json",
            "FOVEAL_ACCESS_LOG": "true",
        }
        with processes.serving(*arguments, **environment) as server:
            url = f"{server.address}/embed"
            httpx.post(url, content=photograph(), headers=PNG, timeout=60)
            assert server.end() == 0
            log = server.log
        resources = [entry for request in received for entry in request.resource_spans]
    named = {a.key: a.value.string_value for r in resources for a in r.resource.attributes}
    assert named["service.name"] == "foveal"
    assert named["deployment.environment"] == "test"
    spans = [span for r in resources for scope in r.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {"POST /embed", "decode", "queue", "infer"}
    (trace,) = {span.trace_id.hex() for span in spans}
    assert re.search(rf'"trace_id":"{trace}"', log)
