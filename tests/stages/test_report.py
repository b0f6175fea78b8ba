"""The page stands for all rows of a run, not for those that the choice keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.report.facts import facts_from_json
from datapipe.stages import report

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.report.facts import RunFacts

ROWS, DIM = 900, 8


def frame(rows: int = ROWS) -> pl.DataFrame:
    generator = np.random.default_rng(4)
    return pl.DataFrame(
        {
            "text": [f"text number {i}" for i in range(rows)],
            "label": [f"class {i % 3}" for i in range(rows)],
            "vector": generator.normal(size=(rows, DIM)).astype(np.float32),
        }
    )


def facts_of(source: pl.DataFrame, out: Path, **options: Any) -> RunFacts:
    datapipe.curate(source, out=out, text_column="text", embedding_column="vector", **options)
    return facts_from_json(next((out / "stages").glob("report-*/facts.json")).read_bytes())


def test_map_and_examples_show_kept_and_dropped_rows_as_the_run_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SAMPLE_ROWS", 300)
    facts = facts_of(frame(), tmp_path / "run", keep=0.3, label_column="label")
    assert facts.map is not None
    assert len(facts.map.points) == 300
    # Five standard deviations of a draw of 300: a sample in the order of the choice would be all kept.
    assert sum(point.kept for point in facts.map.points) / 300 == pytest.approx(0.3, abs=0.13)
    assert [(len(group.kept), len(group.dropped)) for group in facts.examples] == [(3, 3)] * 3


def test_the_matches_shown_are_those_of_the_weakest_evidence_and_the_page_counts_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "SHOWN_MATCHES", 4)
    source = frame(60)
    nearly = source["vector"].to_numpy()[:10] + np.float32(0.01)
    nearly[3] += np.float32(0.1)
    pl.DataFrame({"text": [f"question {i}" for i in range(10)], "vector": nearly}).write_parquet(tmp_path / "e.parquet")
    facts = facts_of(source, tmp_path / "run", metric="random", protect=str(tmp_path / "e.parquet"), shard_rows=16)
    similarities = [match.similarity for match in facts.matches]
    assert facts.matches[0].other == "question 3"
    assert similarities == sorted(similarities)
    assert facts.matched == facts.counts.dropped["protected"] == 10
    assert "and 6 more rows taken out" in (tmp_path / "run" / "report.html").read_text()
