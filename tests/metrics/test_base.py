"""Every metric declares what its scores mean, and an unknown one is refused with those there are."""

from __future__ import annotations

import subprocess
import sys

import pytest

from datapipe.errors import MetricError
from datapipe.metrics.base import METRICS, get_metric


def test_a_metric_is_found_by_its_name() -> None:
    metric = get_metric("prototypes")
    assert metric.higher == "harder"
    assert metric.needs == {"vectors"}
    assert "2206.14486" in metric.source


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(MetricError, match="There is no metric 'loss'; the metrics are: prototypes, random"):
        get_metric("loss")


def test_names_are_unique_and_every_declaration_is_complete() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.low < metric.high
        assert metric.source
        assert metric.summary.endswith(".")


@pytest.mark.parametrize("module", ["metrics.prototypes", "metrics.random", "metrics.kmeans", "selection.auto"])
def test_metrics_are_imported_without_torch_polars_or_a_model(module: str) -> None:
    code = (
        f"import sys, datapipe.{module}; "
        "print(sorted({'torch', 'polars', 'transformers', 'sklearn', 'ray', 'prefect'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
