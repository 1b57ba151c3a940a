"""The metrics, in Prometheus' base units; `GET /metrics` shows them.

With several workers `foveal serve` sets `PROMETHEUS_MULTIPROC_DIR`: each worker then writes its
values to a file there, and whichever is asked adds up the files of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.engines.base import ServerStatistics

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
# OpenTelemetry's advice for http.server.request.duration.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
FINE_SECONDS = (0.0005, 0.001, 0.0025, *SECONDS)

REQUESTS = Histogram(
    "http_server_request_duration_seconds",
    "Time from a request's headers to the end of its answer.",
    ("http_request_method", "http_route", "http_response_status_code"),
    buckets=SECONDS,
)
QUEUE_DEPTH = Gauge(
    "foveal_queue_depth", "Images that wait for the model.", multiprocess_mode="livesum"
)
QUEUE_SECONDS = Histogram(
    "foveal_queue_duration_seconds", "Time that an image waited for a run.", buckets=FINE_SECONDS
)
PREPROCESS_SECONDS = Histogram(
    "foveal_preprocess_duration_seconds",
    "Time to decode and fit an image, with its wait for a decoding thread.",
    buckets=FINE_SECONDS,
)
INFERENCE_SECONDS = Histogram(
    "foveal_inference_duration_seconds", "Time of a run of the model.", buckets=FINE_SECONDS
)
BATCH_SIZE = Histogram(
    "foveal_batch_size", "Images in a run.", buckets=(1, 2, 4, 8, 16, 32, 64, 128)
)
SHED = Counter("foveal_requests_shed", "Images refused, by reason.", ("reason",))
UNREAD = Counter("foveal_unread_answers", "Connections reset because the client read nothing.")
CACHE = Counter("foveal_cache_requests", "Images by how the cache answered.", ("result",))


def exposition(
    served: Iterable[tuple[str, str, bool]],
    servers: Iterable[tuple[str, ServerStatistics]] = (),
) -> bytes:
    """All metrics in Prometheus' text format.

    Args:
        served: Name and digest of each model in service, and whether it would accept a photograph.
        servers: Each server that runs a model, with the model's name.
    """
    registry = REGISTRY
    if MULTIPROCESS in os.environ:
        registry = CollectorRegistry()
        registry.register(_AllWorkers(Path(os.environ[MULTIPROCESS])))
    models = CollectorRegistry()
    models.register(_Models(served))
    models.register(_Triton(servers))
    return generate_latest(registry) + generate_latest(models)


class _AllWorkers(Collector):
    """The sum over the files of all workers, those that died included."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # A worker that starts makes a file and then its header; until then there is nothing to add.
        files = [str(file) for file in self._folder.glob("*.db") if _has_header(file)]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _has_header(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # it was of a worker that has just died
        return False


class _Models(Collector):
    """The models in service: no metrics of their own, because models come and go."""

    def __init__(self, served: Iterable[tuple[str, str, bool]]) -> None:
        self._served = tuple(served)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        info = GaugeMetricFamily(
            "foveal_model_info", "The models in service.", labels=("model", "digest")
        )
        ready = GaugeMetricFamily(
            "foveal_model_ready", "Whether a photograph would be accepted.", labels=("model",)
        )
        for model, digest, accepts in self._served:
            info.add_metric((model, digest), 1)
            ready.add_metric((model,), accepts)
        yield from (info, ready)


class _Triton(Collector):
    """What Triton's servers count, all gateways' requests together."""

    def __init__(self, servers: Iterable[tuple[str, ServerStatistics]]) -> None:
        self._servers = tuple(servers)

    def collect(self) -> Iterator[Metric]:
        if not self._servers:
            return
        labels = ("model", "server")
        ready = GaugeMetricFamily(
            "foveal_triton_ready", "Whether the server is sent images.", labels=labels
        )
        for model, found in self._servers:
            ready.add_metric((model, found.server), found.ready)
        yield ready
        for name, text in (
            ("images", "Images that were run."),
            ("failed", "Requests that were refused or failed."),
            ("queue_seconds", "Time that requests waited for a run."),
            ("compute_seconds", "Time that requests were run."),
        ):
            counter = CounterMetricFamily(f"foveal_triton_{name}", text, labels=labels)
            for model, found in self._servers:
                if found.ready:
                    counter.add_metric((model, found.server), getattr(found, name))
            yield counter
        runs = CounterMetricFamily(
            "foveal_triton_runs", "Runs by their images.", labels=(*labels, "batch_size")
        )
        for model, found in self._servers:
            for size, count in sorted(found.batches.items()):
                runs.add_metric((model, found.server, str(size)), count)
        yield runs
