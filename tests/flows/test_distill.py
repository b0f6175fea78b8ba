"""The flow writes the same soft labels as the function, and refuses what it does not know before any task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from prefect.client.orchestration import get_client

import datapipe
from datapipe.errors import ConfigError
from flows.distill import distill_flow
from tests.runs import contents

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {"strategy": "random", "text_column": "text", "label_column": "label_name"}


@pytest.fixture
def source(tmp_path: Path, data: Path) -> str:
    rows = pl.read_parquet(data / "banking77.parquet").filter(pl.col("label") < 4).head(200)
    rows.write_parquet(tmp_path / "rows.parquet")
    return str(tmp_path / "rows.parquet")


def test_the_flow_curates_and_labels_with_the_same_bytes_as_python(source: str, tmp_path: Path) -> None:
    facts = distill_flow(
        str(tmp_path / "flow"), source=source, keep=0.5, curate_options=OPTIONS, options={"seed": 1, "top_k": 1}
    )
    datapipe.curate(source, out=tmp_path / "python", keep=0.5, **OPTIONS)
    found = datapipe.soft_labels(tmp_path / "python", teacher="head", seed=1, top_k=1)
    assert facts == found.facts
    assert contents(tmp_path / "flow") == contents(tmp_path / "python")
    with get_client(sync_client=True) as client:
        shown = {artifact["key"]: artifact["data"] for artifact in client.request("POST", "/artifacts/filter").json()}
    assert "100 rows (kept) by head: topk of" in shown["distill"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"options": {"topk": 3}}, "unknown option 'topk'; there are top_k, dense"),
        ({"keep": 0.5}, "keep and curate_options are for a source"),
    ],
)
def test_what_the_flow_does_not_know_is_refused_before_any_task(
    tmp_path: Path, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        distill_flow(str(tmp_path / "run"), **given)
    assert not (tmp_path / "run").exists()
