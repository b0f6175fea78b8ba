"""The flow writes the same recovery data as the function, and refuses what it does not know before any task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from prefect.client.orchestration import get_client

import datapipe
from datapipe.errors import ConfigError
from datapipe.paser.damage import drop_blocks
from flows.paser import paser_flow
from tests.paser.conftest import small_llama
from tests.runs import contents

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {"clusters": 2, "device": "cpu", "prior": {"1": 2.0}}


@pytest.fixture
def asked(tmp_path: Path, data: Path) -> dict[str, Any]:
    """Pool and models."""
    short = pl.col("output").str.len_chars().is_between(5, 60)
    pl.read_parquet(data / "dolly_3k.parquet").filter(short).head(24).write_parquet(tmp_path / "pool.parquet")
    original = small_llama(tmp_path / "original")
    drop_blocks(original, tmp_path / "pruned", keep=2, texts=["Name three tools of a carpenter."])
    names = {"pool": "pool.parquet", "original": "original", "pruned": "pruned"}
    return {name: str(tmp_path / file) for name, file in names.items()}


def test_the_flow_chooses_with_the_same_bytes_as_python(asked: dict[str, Any], tmp_path: Path) -> None:
    counts = paser_flow(**asked, out=str(tmp_path / "flow"), keep=0.25, options=OPTIONS)
    found = datapipe.select_recovery(
        asked.pop("pool"), **asked, out=tmp_path / "python", keep=0.25, **{**OPTIONS, "prior": {1: 2.0}}
    )
    assert counts == found.counts
    assert counts["kept"] == 6
    assert contents(tmp_path / "flow") == contents(tmp_path / "python")
    with get_client(sync_client=True) as client:
        shown = {artifact["key"]: artifact["data"] for artifact in client.request("POST", "/artifacts/filter").json()}
    assert "**6 of 24 rows kept (25.0 %)**" in shown["paser-summary"]


def test_what_the_flow_does_not_know_is_refused_before_any_task(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option 'kep'; did you mean 'keep'"):
        paser_flow(**asked, out=str(tmp_path / "run"), options={"kep": 3})
    assert not (tmp_path / "run").exists()
