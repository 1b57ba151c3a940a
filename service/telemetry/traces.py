"""OpenTelemetry traces: a span for each request, and in it one for each stage of its images.

The SDK and its exporter are imported only when the standard environment variables ask for them.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from starlette.types import Scope

from service import __version__
from service.telemetry.record import Record

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class TracesUnavailable(Exception):
    """Traces are asked for, and the packages that make them are not installed."""


def configured() -> Traces | None:
    """Traces that go where the environment says by OTLP over HTTP, or None if it does not.

    Raises:
        TracesUnavailable: OpenTelemetry's packages are not installed.
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracesUnavailable(
            f"{ENDPOINTS[0]} asks for traces, and what makes them is not installed: in the "
            "checkout, pip install -e '.[traces]'"
        ) from error
    return Traces(BatchSpanProcessor(OTLPSpanExporter()))


class Traces:
    """Makes the spans of requests, under the caller's own where a `traceparent` names it.

    Args:
        processor: Takes the spans that have ended.
    """

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        service = Resource({"service.name": "foveal", "service.version": __version__})
        self._provider = TracerProvider(resource=service.merge(OTELResourceDetector().detect()))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("foveal", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def start(self, scope: Scope, record: Record) -> Span:
        """Open the span of a request, and note its trace on the request's record."""
        from opentelemetry.trace import SpanKind, format_trace_id

        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        span = self._tracer.start_span(
            scope["method"], self._propagator.extract(carrier), SpanKind.SERVER
        )
        record.trace = format_trace_id(span.get_span_context().trace_id)
        return span

    def end(self, span: Span, record: Record, method: str, route: str, status: int) -> None:
        """Close the span of a request, with a child for each stage."""
        from opentelemetry.trace import StatusCode, set_span_in_context

        inside = set_span_in_context(span)
        # The stages were measured by a clock that only tells differences.
        epoch = time.time_ns() - time.perf_counter_ns()
        for name, started, ended in record.stages:
            child = self._tracer.start_span(name, inside, start_time=epoch + round(started * 1e9))
            child.end(epoch + round(ended * 1e9))
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "foveal.request_id": record.id,
                "foveal.images": record.images,
            }
        )
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what has ended and stop."""
        self._provider.shutdown()
