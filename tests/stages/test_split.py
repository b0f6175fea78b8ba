"""Only one part of a source is chosen from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.config import CurateConfig
from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_of_other_parts_and_of_none_go_out_with_that_reason(tmp_path: Path) -> None:
    parts = ["train"] * 6 + ["test"] * 3 + [None]
    source = pl.DataFrame({"text": [f"text {i}" for i in range(10)], "part": parts})
    result = datapipe.curate(
        source, out=tmp_path / "run", metric="random", keep=1.0, text_column="text", split_column="part"
    )
    assert result.counts == {"kept": 6, "other_split": 4}
    assert set(result.kept.collect()["part"]) == {"train"}


def test_a_row_of_another_part_takes_none_out_for_saying_the_same(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 16))
    near = np.concatenate([vectors, vectors[:39] + 1e-3, vectors[39:]]).astype(np.float32)
    source = pl.DataFrame({"vector": near, "part": ["train"] * 40 + ["test"] * 40})
    result = datapipe.curate(
        source,
        out=tmp_path / "run",
        dedup="semantic",
        embedding_column="vector",
        metric="random",
        keep=1.0,
        split_column="part",
    )
    assert result.counts == {"kept": 39, "leak": 1, "other_split": 40}, "equal vectors are equal rows"


def test_rows_that_equal_a_row_of_another_part_go_too(tmp_path: Path) -> None:
    source = pl.DataFrame({"text": ["one", "two", "Two!", "three"], "part": ["train", "train", "test", "train"]})
    result = datapipe.curate(
        source, out=tmp_path / "run", metric="random", keep=1.0, text_column="text", split_column="part"
    )
    assert result.counts == {"kept": 2, "leak": 1, "other_split": 1}


def test_rows_that_quote_or_nearly_match_a_row_of_another_part_go_when_asked_for(tmp_path: Path) -> None:
    long = "please tell me in which of the countries that you support I can use a card that was issued to me abroad"
    texts = [*(f"text number {i}" for i in range(8)), f"A customer wrote: {long}, and nobody answered.", long.upper()]
    tests = [long, "a text like the fourth one", "nothing like the others"]
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(13, 16))
    vectors[11] = vectors[3] + 1e-2
    source = pl.DataFrame(
        {"text": [*texts, *tests], "part": ["train"] * 10 + ["test"] * 2 + [None], "vector": vectors.astype(np.float32)}
    )
    options: dict[str, Any] = {"text_column": "text", "split_column": "part", "metric": "random", "keep": 1.0}
    both: dict[str, Any] = {"embedding_column": "vector"}
    equal = datapipe.curate(source, out=tmp_path / "exact", **options, **both)
    assert equal.counts == {"kept": 9, "leak": 1, "other_split": 3}
    near = datapipe.curate(source, out=tmp_path / "near", leaks="near", **options, **both)
    assert near.counts == {"kept": 7, "leak": 3, "other_split": 3}
    found = pl.concat(
        [pl.read_parquet(path) for path in (tmp_path / "near").glob("stages/screen-*/excluded-*.parquet")]
    )
    assert dict(found.filter(pl.col("reason") == "leak").select("rule", "match").iter_rows()) == {
        "exact": tests[0],
        "contained": tests[0],
        "near": tests[1],
    }
    words = datapipe.curate(source.drop("vector"), out=tmp_path / "words", leaks="near", **options)
    assert words.counts == {"kept": 8, "leak": 2, "other_split": 3}, "without vectors none is near"
    vector = datapipe.curate(
        source.drop("text"), out=tmp_path / "vector", leaks="near", **(options | {"text_column": None} | both)
    )
    assert vector.counts == {"kept": 9, "leak": 1, "other_split": 3}


def test_leaks_are_looked_for_between_parts_only() -> None:
    with pytest.raises(ConfigError, match="leaks='near' compares the parts of a source: name their column"):
        CurateConfig(leaks="near")
    with pytest.raises(ConfigError, match="leaks must be one of exact, near; got 'all'"):
        CurateConfig.from_mapping({"leaks": "all", "split_column": "part"})
