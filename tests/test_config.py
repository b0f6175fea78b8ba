"""Options: one budget, known names, ranges, and files that say the same as the command line."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from datapipe.config import CurateConfig, CurateOptions, read_config_file
from datapipe.errors import BudgetError, ConfigError


def test_the_typed_keywords_are_exactly_the_fields_of_the_config() -> None:
    assert set(CurateOptions.__annotations__) == {each.name for each in fields(CurateConfig)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0.0}, "keep must be a fraction above 0 and at most 1, got 0.0"),
        ({"keep": 1.5}, "keep must be a fraction above 0 and at most 1, got 1.5"),
        ({"keep": float("nan")}, "keep must be a fraction"),
        ({"keep": "0.3"}, "keep must be a fraction above 0 and at most 1, got '0.3'"),
        ({"keep": True}, "keep must be a fraction"),
        ({"keep_rows": 0}, "keep_rows must be a whole number of at least 1, got 0"),
        ({"keep_rows": 2.5}, "keep_rows must be a whole number of at least 1, got 2.5"),
        ({"keep_tokens": -1}, "keep_tokens must be a whole number of at least 1, got -1"),
        ({"keep": 0.5, "keep_rows": 3}, "keep and keep_rows exclude each other"),
    ],
)
def test_budgets_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        CurateConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "el2m"}, "metric must be one of prototypes, random, prototypes_supervised, "),
        ({"strategy": "hardest"}, "strategy must be one of auto, hard, easy, random, strata; got 'hardest'"),
        ({"dedup": "fuzzy"}, "dedup must be one of none, exact, semantic; got 'fuzzy'"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": True}, "seed must be a whole number"),
        ({"prototypes": 0}, "prototypes must be a whole number from 1"),
        ({"shard_rows": 0}, "shard_rows must be a whole number from 1"),
        ({"max_rejected": -1}, "max_rejected must be a whole number from 0"),
        ({"protect_threshold": 0.0}, "protect_threshold must be above 0"),
        ({"protect_threshold": "high"}, "protect_threshold must be above 0"),
        ({"text_column": 7}, "text_column must be a string, got 7"),
        ({"model": None}, "model must be a string, got None"),
        ({"embedding_column": "v", "keep_tokens": 9}, "keep_tokens needs text_column"),
        ({"embedding_column": "v", "dedup": "exact"}, "dedup='exact' compares texts"),
    ],
)
def test_options_that_mean_nothing_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CurateConfig(**options)


def test_an_unknown_option_names_its_origin_and_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"run\.toml: unknown option 'kepe', did you mean 'keep'\?"):
        CurateConfig.from_mapping({"kepe": 0.3}, origin="run.toml")


def test_a_path_stands_for_its_string() -> None:
    config = CurateConfig.from_mapping({"protect": Path("held/out.jsonl"), "model": Path("model")})
    assert (config.protect, config.model) == ("held/out.jsonl", "model")


def test_a_toml_file_may_write_names_with_dashes(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('source = "x.parquet"\nkeep-rows = 10\n')
    assert read_config_file(path) == {"source": "x.parquet", "keep_rows": 10}


def test_a_config_file_may_list_sources(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('source = ["a.parquet", "b.csv"]\n')
    assert read_config_file(path) == {"source": ["a.parquet", "b.csv"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("keep = ", "is not TOML"),
        ("keeep = 0.3", r"run\.toml: unknown option 'keeep', did you mean 'keep'\?"),
        ("[curate]\nkeep = 0.3", r"run\.toml: unknown option 'curate'"),
        ("out = 3", r"run\.toml: out must be a string, got 3"),
        ("source = [1]", r"run\.toml: source must be a string or a list of strings, got \[1\]"),
    ],
)
def test_a_config_file_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config_file(path)


def test_a_window_that_is_too_small_for_what_is_to_be_kept_is_refused_before_a_row_is_read() -> None:
    CurateConfig(preset="bws", window_start=0.7, keep=0.3)
    CurateConfig(preset="bws", window_start=0.9, keep_rows=10)
    with pytest.raises(ConfigError, match=r"a window from 0\.9 on holds 0\.1 of the rows, and 0\.3 are to be kept"):
        CurateConfig(preset="bws", window_start=0.9)
