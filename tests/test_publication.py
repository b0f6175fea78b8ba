"""What was proved of a run stands on its page, goes with another choice of rows, and is verified like the rest."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.errors import SourceError
from datapipe.publication import publish_proof
from datapipe.runs import open_run
from tests.runs import contents

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS: dict[str, Any] = {"embedding_column": "vector", "label_column": "label", "keep": 0.5}


def rows(count: int, *, seed: int) -> pl.DataFrame:
    codes = np.arange(count) % 3
    vectors = np.eye(8)[codes] + np.random.default_rng(seed).normal(0, 0.4, (count, 8))
    return pl.DataFrame({"vector": vectors.astype(np.float32), "label": [f"c{code}" for code in codes]})


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proved")
    rows(120, seed=0).write_parquet(folder / "rows.parquet")
    rows(60, seed=1).write_parquet(folder / "test.parquet")
    datapipe.curate(folder / "rows.parquet", out=folder / "run", **OPTIONS)
    datapipe.prove(folder / "run", folder / "test.parquet", seeds=2, steps=20)
    return folder


@pytest.fixture
def run(proved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(proved / "run", tmp_path / "run", symlinks=True)


def test_the_verdicts_and_intervals_stand_on_the_page_of_the_run(run: Path) -> None:
    page, found = (run / "report.html").read_text(), json.loads((run / "proof.json").read_text())
    assert f"Kept rows against all rows: {found['against_full']['verdict']}" in page
    assert '<section id="proof"' in page
    low = 100 * found["arms"][0]["accuracy"]["low"]
    assert f"{low:.1f} to " in page
    assert open_run(run).manifest["proof"]["against_full"] == found["against_full"]["verdict"]


def test_the_proof_is_verified_with_the_run(run: Path) -> None:
    assert datapipe.verify(run).ok
    assert {"proof.json", "proof.html"} <= {output["name"] for output in open_run(run).manifest["outputs"]}
    (run / "proof.json").resolve().write_text("{}")
    assert any("proof.json" in problem for problem in datapipe.verify(run).problems)


def test_a_run_that_is_run_again_keeps_its_proof_and_its_bytes(run: Path, proved: Path) -> None:
    before = contents(run)
    datapipe.curate(proved / "rows.parquet", out=run, **OPTIONS)
    assert contents(run) == before


def test_another_choice_of_rows_in_the_same_folder_has_no_proof(run: Path, proved: Path) -> None:
    result = datapipe.curate(proved / "rows.parquet", out=run, **(OPTIONS | {"keep": 0.4}))
    assert "proof" not in result.manifest
    assert not (run / "proof.json").exists()
    assert "Kept rows against" not in (run / "report.html").read_text()
    assert datapipe.verify(run).ok


def test_a_proof_of_what_the_folder_held_before_is_not_published(run: Path, proved: Path) -> None:
    before = open_run(run).manifest
    datapipe.curate(proved / "rows.parquet", out=run, **(OPTIONS | {"keep": 0.4}))
    (run / "proof.json").write_bytes((proved / "run" / "proof.json").read_bytes())
    (run / "proof.html").write_bytes(b"<p>")
    assert publish_proof(run, of=before) is False
    assert "Kept rows against" not in (run / "report.html").read_text()


def test_without_a_proof_there_is_none_to_publish(tmp_path: Path) -> None:
    result = datapipe.curate(rows(60, seed=2), out=tmp_path / "run", **OPTIONS)
    with pytest.raises(SourceError, match=r"proof.json is missing: run datapipe prove"):
        publish_proof(tmp_path / "run", of=result.manifest)
