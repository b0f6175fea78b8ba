"""`/metrics`: what Prometheus reads, counted where it happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from datapipe.errors import OverloadedError
from datapipe.workers.http.app import create_app
from datapipe.workers.http.metrics import Metrics
from datapipe.workers.protocol import Priority
from datapipe.workers.tasks.embed import TextItem
from datapipe.workers.worker import LocalWorker
from tests.workers.http.conftest import PRECISE
from tests.workers.http.servers import client_of

if TYPE_CHECKING:
    from datapipe.workers.observe import Observer


def samples(text: str) -> dict[str, float]:
    """Value of each series, named as `name{label=value,…}`."""
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_requests_batches_and_durations_are_counted() -> None:
    metrics = Metrics()
    with LocalWorker([PRECISE], device="cpu", observer=metrics) as worker:
        app = create_app(worker, models=[PRECISE], metrics=metrics)
        async with client_of(app) as client:
            await asyncio.gather(*(client.post("/v1/embeddings", json={"input": ["a b", "c"]}) for _ in range(8)))
            await client.post("/v1/embeddings", json={"input": []})
            await client.get("/some/secret")
            found = samples((await client.get("/metrics")).text)
    work = "model=all-MiniLM-L6-v2,priority=online,task=embed"
    assert found["datapipe_http_requests_total{route=/v1/embeddings,status=200}"] == 8
    assert found["datapipe_http_requests_total{route=/v1/embeddings,status=422}"] == 1
    assert found["datapipe_http_requests_total{route=other,status=404}"] == 1
    assert found["datapipe_http_request_seconds_count{route=/v1/embeddings}"] == 9
    assert found["datapipe_http_requests_in_progress{}"] == 1
    assert found["datapipe_queue_items{}"] == 0
    assert found[f"datapipe_batch_items_sum{{{work}}}"] == 16
    assert found[f"datapipe_batch_items_count{{{work}}}"] <= 8
    assert found[f"datapipe_batch_tokens_sum{{{work}}}"] == 8 * (4 + 3)
    assert found[f"datapipe_batch_cost_tokens_sum{{{work}}}"] >= 8 * (4 + 3)
    for name in ("tokenize", "queue", "inference", "call"):
        assert found[f"datapipe_{name}_seconds_count{{{work}}}"] == 8
    assert found[f"datapipe_call_seconds_sum{{{work}}}"] > found[f"datapipe_tokenize_seconds_sum{{{work}}}"] > 0
    assert not any("secret" in series for series in found)


async def test_failures_are_counted_by_reason() -> None:
    metrics = Metrics()
    with LocalWorker([PRECISE], device="cpu", observer=metrics, queue_items=1) as worker:
        worker.load(PRECISE.name)
        first = asyncio.create_task(
            worker.arun("embed", [TextItem("a")] * 50, model=PRECISE.name, priority=Priority.ONLINE)
        )
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await worker.arun("embed", [TextItem("a")] * 3, model=PRECISE.name, priority=Priority.ONLINE)
        await first
    assert samples(metrics.render().decode())["datapipe_failed_items_total{reason=overloaded}"] == 3


def test_each_server_counts_for_itself() -> None:
    one, other = Metrics(), Metrics()
    one.failed("item", 2)
    assert "datapipe_failed_items_total{reason=item}" in samples(one.render().decode())
    assert "datapipe_failed_items_total{reason=item}" not in samples(other.render().decode())


def test_metrics_are_an_observer() -> None:
    observer: Observer = Metrics()
    observer.queue(3)
    observer.batch(task="t", model="m", priority=Priority.BULK, items=2, tokens=9, cost=10)
    observer.request(
        task="t", model="m", priority=Priority.BULK, tokenize=0.1, queue=0.2, inference=0.3, total=0.6
    )  # fmt: skip
