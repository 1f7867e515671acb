"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..service.requests import Answered
from ..service.service import Service

PATHS = frozenset(
    {
        *("/", "/sample.png", "/health", "/metrics", "/openapi.json"),
        *("/v1/chat/completions", "/v1/responses", "/v1/models", "/v1/regions"),
    }
)
"""Paths that are counted by name; all others count as one, since clients may invent any number of them."""

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server."""

    def __init__(self, service: Service):
        self._registry = CollectorRegistry()
        make: Any = dict(registry=self._registry)
        self._requests = Counter("pg_mlx_http_requests", "Requests by path and status", ["path", "status"], **make)
        self._seconds = Histogram("pg_mlx_http_seconds", "Time of requests", ["path"], buckets=_SECONDS, **make)
        self._first = Histogram(
            "pg_mlx_time_to_first_token_seconds", "From submission to first token", buckets=_SECONDS, **make
        )
        self._queued = Histogram("pg_mlx_queue_seconds", "From submission until begun", buckets=_SECONDS, **make)
        self._tokens = Counter("pg_mlx_tokens", "Tokens read and written", ["kind"], **make)
        self._registry.register(_OfService(service))

    def request(self, path: str, status: int, seconds: float) -> str:
        """Count a request. Returns the path that it was counted under."""
        path = path if path in PATHS else "/v1/models" if path.startswith("/v1/models/") else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        return path

    def answer(self, done: Answered) -> None:
        """Count an answer."""
        stats = done.generation.stats
        self._first.observe(stats.time_to_first_token_s)
        self._queued.observe(done.queue_s)
        self._tokens.labels("prompt").inc(stats.prompt_tokens)
        self._tokens.labels("completion").inc(stats.decode_tokens)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfService:
    """The service's own figures, as of the moment when they are read."""

    def __init__(self, service: Service):
        self._service = service

    def collect(self) -> Iterator[Metric]:
        stats = self._service.stats()
        yield GaugeMetricFamily("pg_mlx_ready", "1 if a model is loaded and answers", value=stats["state"] == "ready")
        for name, about in (
            ("running", "Answers being computed"),
            ("waiting", "Requests that wait"),
            ("active_bytes", "Memory that MLX holds"),
            ("peak_bytes", "The most that MLX has held"),
            ("feature_bytes", "Encoded pictures kept"),
        ):
            yield GaugeMetricFamily(f"pg_mlx_{name}", about, value=stats[name])
        yield CounterMetricFamily("pg_mlx_answers", "Requests answered", value=stats["answered"])
        failed = CounterMetricFamily("pg_mlx_failures", "Requests not answered, by code", labels=["code"])
        for code, count in stats["failed"].items():
            failed.add_metric([code], count)
        yield failed
