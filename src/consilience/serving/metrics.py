"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counts of one server.

    >>> metrics = Metrics()
    >>> metrics.answered("GET", "/health", 200, 0.001)
    >>> 'consilience_requests_total{method="GET",route="/health",status="200"} 1.0' in metrics.text()
    True
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "consilience_requests", "Requests answered.", ("method", "route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "consilience_request_seconds",
            "Time from a request to its answer.",
            ("route",),
            registry=self._registry,
            buckets=_SECONDS,
        )
        self._batch = Histogram(
            "consilience_search_batch_queries",
            "Queries that were searched in one call.",
            registry=self._registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )
        self.in_flight = Gauge(
            "consilience_requests_in_flight", "Requests that are being answered.", registry=self._registry
        )

    def watch(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a number that is asked for when the metrics are read."""
        Gauge(name, help_text, registry=self._registry).set_function(value)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request. `route` is of the API, never a path as it came: those are without number."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def searched(self, queries: int) -> None:
        """Count a call of the Searcher."""
        self._batch.observe(queries)

    def text(self) -> str:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry).decode()
