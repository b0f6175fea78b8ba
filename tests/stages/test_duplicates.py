"""Rows that say the same go out of a run, each with the row that stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.config import CurateConfig
from datapipe.errors import ColumnError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

GIVEN: dict[str, Any] = {"embedding_column": "vector", "text_column": "text", "metric": "random", "keep": 1.0}


def pairs() -> pl.DataFrame:
    """Twenty pairs of rows that say the same, the second of a longer text, and twenty rows alone."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 16))
    both = np.concatenate([vectors, vectors[:20] + 0.02 * rng.normal(size=(20, 16))]).astype(np.float32)
    unit = both / np.linalg.norm(both, axis=1, keepdims=True)
    pair = np.append(np.arange(40), np.arange(20))
    texts = [f"row {n}" for n in range(40)] + [f"the same as what row {n} says" for n in range(20)]
    return pl.DataFrame({"vector": both, "text": texts, "pair": pair, "to_mean": unit @ unit.mean(axis=0)})


def test_rows_near_another_by_their_vectors_go_and_no_text_is_needed(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 16))
    both = np.concatenate([vectors, vectors[:30] + 1e-3]).astype(np.float32)
    source = pl.DataFrame({"vector": both})
    options: dict[str, Any] = {"embedding_column": "vector", "metric": "random", "keep": 1.0}
    runs = [
        datapipe.curate(source, out=tmp_path / f"{n}", dedup="semantic", shard_rows=n, **options) for n in (32, 500)
    ]
    assert runs[0].counts == {"kept": 100, "duplicate": 30}
    assert runs[0].kept.collect()["row_id"].to_list() == runs[1].kept.collect()["row_id"].to_list()
    found = pl.concat([pl.read_parquet(path) for path in (tmp_path / "32").glob("stages/screen-*/excluded-*.parquet")])
    assert set(found["rule"]) == {"semantic"}
    assert (found["similarity"] > 0.99).all()


def test_repeats_of_a_text_go_first_and_texts_are_embedded(tmp_path: Path, data: Path) -> None:
    rows = pl.read_parquet(data / "banking77.parquet").select("text").unique(maintain_order=True).head(80)
    more = pl.DataFrame({"text": [rows["text"][3].upper(), rows["text"][9].replace("card", "cards")]})
    result = datapipe.curate(
        pl.concat([rows, more]), out=tmp_path / "run", dedup="semantic", text_column="text", metric="random", keep=1.0
    )
    found = pl.concat([pl.read_parquet(path) for path in (tmp_path / "run").glob("stages/screen-*/excluded-*.parquet")])
    assert "exact" in set(found["rule"])
    assert result.counts["duplicate"] == found.height


@pytest.mark.parametrize(("keep", "stays"), [("first", 1), ("longest", 1), ("hardest", 1), ("easiest", 1)])
def test_of_two_rows_that_say_the_same_one_stays(tmp_path: Path, keep: Any, stays: int) -> None:
    result = datapipe.curate(pairs(), out=tmp_path / keep, dedup="semantic", dedup_keep=keep, **GIVEN)
    assert result.counts == {"kept": 40, "duplicate": 20}
    kept = result.kept.collect()
    assert (kept.group_by("pair").len()["len"] == stays).all()
    if keep == "longest":
        assert (kept.filter(pl.col("pair") < 20)["text"].str.len_chars() > 20).all()


def test_the_hardest_of_two_is_further_from_the_centre_than_the_easiest(tmp_path: Path) -> None:
    cosine = {}
    for keep in ("hardest", "easiest"):
        result = datapipe.curate(pairs(), out=tmp_path / keep, dedup="semantic", dedup_keep=keep, **GIVEN)
        cosine[keep] = result.kept.collect().filter(pl.col("pair") < 20).sort("pair")["to_mean"].to_numpy()
    assert (cosine["hardest"] < cosine["easiest"]).all()


def test_where_nearly_all_rows_say_the_same_some_stay_and_a_warning_says_how_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors = np.ones((300, 16)) + 1e-3 * np.random.default_rng(0).normal(size=(300, 16))
    source = pl.DataFrame({"vector": vectors.astype(np.float32)})
    options: dict[str, Any] = {"embedding_column": "vector", "metric": "prototypes", "keep": 0.3}
    result = datapipe.curate(source, out=tmp_path / "run", dedup="semantic", **options)
    assert result.counts == {"kept": 1, "duplicate": 299}
    assert "299 of 300 rows say the same as another at a cosine of 0.95 or more; 1 stay" in caplog.text


def test_the_longest_needs_texts(tmp_path: Path) -> None:
    with pytest.raises(ColumnError, match="compares lengths of texts: name the text_column"):
        datapipe.curate(
            pairs().drop("text"),
            out=tmp_path / "run",
            embedding_column="vector",
            metric="random",
            dedup="semantic",
            dedup_keep="longest",
        )


def test_which_stays_is_no_question_without_semantic_dedup() -> None:
    with pytest.raises(ConfigError, match="needs dedup='semantic'"):
        CurateConfig(dedup="exact", dedup_keep="longest")
