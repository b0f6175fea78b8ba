"""What Prometheus reads from `/metrics`: the queue, batches, four durations a call, failures by reason, and requests.

    worker -> Metrics (an `Observer`) -> registry of this server -> text

Labels are names that the server knows (tasks, served models, routes), so a client cannot make series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.workers.observe import FailureReason
    from datapipe.workers.protocol import Priority

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
_WORK = ("task", "model", "priority")


class Metrics:
    """Counters of one server, in a registry of their own, and the `Observer` of its worker; usable from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._queue = self._gauge("datapipe_queue_items", "Items that wait for a device.")
        self._batch_items = self._histogram("datapipe_batch_items", "Items of a batch.", _ITEMS)
        self._batch_tokens = self._histogram("datapipe_batch_tokens", "Tokens of a batch, without padding.", _TOKENS)
        self._batch_cost = self._histogram(
            "datapipe_batch_cost_tokens", "Tokens of a batch, padding included.", _TOKENS
        )
        self._tokenize = self._histogram("datapipe_tokenize_seconds", "Preparing the items of a call.")
        self._wait = self._histogram("datapipe_queue_seconds", "From prepared to the first batch of a call.")
        self._inference = self._histogram("datapipe_inference_seconds", "From the first to the last batch of a call.")
        self._total = self._histogram("datapipe_call_seconds", "A call of the worker as a whole.")
        self._failures = Counter(
            "datapipe_failed_items", "Items that got no result, by reason.", ("reason",), registry=self._registry
        )
        self._requests = Counter(
            "datapipe_http_requests", "Requests answered; 499: the client was gone.", ("route", "status"),
            registry=self._registry,
        )  # fmt: skip
        self._request_seconds = Histogram(
            "datapipe_http_request_seconds", "From request line to answer.", ("route",), buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._in_progress = self._gauge("datapipe_http_requests_in_progress", "Requests that have no answer yet.")

    def render(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def queue(self, items: int) -> None:
        """So many items wait for a device now."""
        self._queue.set(items)

    def batch(self, *, task: str, model: str, priority: Priority, items: int, tokens: int, cost: int) -> None:
        """A batch begins."""
        labels = (task, model, priority.name.lower())
        self._batch_items.labels(*labels).observe(items)
        self._batch_tokens.labels(*labels).observe(tokens)
        self._batch_cost.labels(*labels).observe(cost)

    def request(
        self,
        *,
        task: str,
        model: str,
        priority: Priority,
        tokenize: float,
        queue: float,
        inference: float,
        total: float,
    ) -> None:
        """A call of the worker was answered; all in seconds."""
        labels = (task, model, priority.name.lower())
        self._tokenize.labels(*labels).observe(tokenize)
        self._wait.labels(*labels).observe(queue)
        self._inference.labels(*labels).observe(inference)
        self._total.labels(*labels).observe(total)

    def failed(self, reason: FailureReason, items: int) -> None:
        """So many items of one call got no result."""
        self._failures.labels(reason).inc(items)

    def begun(self) -> None:
        """A request came in."""
        self._in_progress.inc()

    def answered(self, *, route: str, status: int, seconds: float) -> None:
        """It was answered, or its client has gone."""
        self._in_progress.dec()
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float] = _SECONDS) -> Histogram:
        return Histogram(name, text, _WORK, buckets=buckets, registry=self._registry)
