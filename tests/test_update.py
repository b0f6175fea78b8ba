"""A run brought up to date: what stays, what is fitted again, and which rows changed side."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.curation import Curation
from datapipe.errors import ConfigError, IntegrityError
from datapipe.report import map2d
from tests.runs import contents, kept_ids
from tests.runs import datapipe as command

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPTIONS: dict[str, Any] = {"text_column": "text", "embedding_column": "vector", "shard_rows": 512}
CHANGES = {"row_id": pl.Binary, "before": pl.String, "after": pl.String, "reason": pl.String}


def rows(count: int, *, seed: int, kind: int = 0) -> pl.DataFrame:
    """Rows around twenty centres; those of another kind have other centres."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(100 + kind).normal(size=(20, 16))
    vectors = centres[rng.integers(0, 20, count)] + 0.5 * rng.normal(size=(count, 16))
    return pl.DataFrame({"text": [f"row {i} of {seed}" for i in range(count)], "vector": vectors.astype(np.float32)})


def stage(result: Any, name: str) -> dict[str, Any]:
    return next(dict(each) for each in result.manifest["stages"] if each["name"] == name)


@pytest.fixture(scope="module", autouse=True)
def plain_maps() -> Iterator[None]:
    """Pages of principal components: a UMAP a run would take most of the time, and nothing here looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(map2d, "LEAST_UMAP", 10**9)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    rows(2000, seed=1).write_parquet(folder / "first.parquet")
    rows(150, seed=2).write_parquet(folder / "alike.parquet")
    rows(150, seed=3, kind=1).write_parquet(folder / "other.parquet")
    return folder


@pytest.fixture(scope="module")
def first(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "first"
    datapipe.curate(files / "first.parquet", out=out, **OPTIONS)
    return out


@pytest.fixture
def run(first: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first, tmp_path / "run", symlinks=True)


def test_rows_of_the_same_kind_are_scored_against_the_centroids_that_are_there(run: Path, files: Path) -> None:
    before = datapipe.open_run(run)
    scores = before.scores.collect()
    after = datapipe.curate(files / "alike.parquet", out=run, update=True, **OPTIONS)
    assert after.update is not None
    assert after.update["refit"] is False
    assert after.update["drift"]["new_rows"] == 150
    assert after.update["drift"]["low"] <= 0.08
    assert after.counts == {"kept": 645, "over_budget": 1505}
    assert after.scores.filter(pl.col("row_id").is_in(scores["row_id"].implode())).collect().equals(scores)
    assert stage(after, "score")["key"] == stage(before, "score")["key"]


def test_rows_of_another_kind_have_the_centroids_fitted_again(run: Path, files: Path) -> None:
    before = stage(datapipe.open_run(run), "score")
    after = datapipe.curate(files / "other.parquet", out=run, update=True, **OPTIONS)
    assert after.update is not None
    assert after.update["refit"] is True
    assert after.update["drift"]["low"] > after.update["drift"]["threshold"]
    assert set(after.update["changes"]["left"]) <= {"score"}
    assert stage(after, "score")["key"] != before["key"]
    assert stage(after, "fit")["facts"]["rows"] == 2150


@pytest.mark.parametrize("name", ["alike", "other"])
def test_the_changes_are_the_difference_of_the_kept_sets(run: Path, files: Path, name: str) -> None:
    before = set(kept_ids(run))
    result = datapipe.curate(files / f"{name}.parquet", out=run, update=True, **OPTIONS)
    after = set(kept_ids(run))
    changes = pl.read_parquet(run / "changes.parquet")
    assert dict(changes.schema) == CHANGES
    assert changes["row_id"].is_sorted()
    assert set(changes.filter(pl.col("after") == "kept")["row_id"]) == after - before
    assert set(changes.filter(pl.col("before") == "kept")["row_id"]) == before - after
    counted = result.update["changes"] if result.update is not None else {}
    assert counted["rows_new"] == 150
    assert counted["rows_both"] == 2000
    assert sum(counted["entered"].values()) == len(after - before)
    assert sum(counted["left"].values()) == len(before - after)
    news = changes.filter(pl.col("reason") == "new")
    assert news["before"].null_count() == len(news) == counted["entered"]["new"]
    assert datapipe.verify(run).ok


def test_only_the_new_rows_are_read_and_scored(run: Path, files: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("stages/score-*/*.parquet")}
    (shards,) = {stage(datapipe.open_run(run), "ingest")["facts"]["shards"]}
    result = datapipe.curate(files / "alike.parquet", out=run, update=True, **OPTIONS)
    after = {path: path.stat().st_mtime_ns for path in run.glob("stages/score-*/*.parquet")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + shards
    facts = stage(result, "ingest")["facts"]
    assert (facts["generations"], facts["rows_in"], facts["accepted"]) == (2, 2150, 2150)


def test_the_same_history_gives_the_same_bytes_and_once_more_changes_nothing(
    run: Path, first: Path, files: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(first, tmp_path / "other", symlinks=True)
    for name in ("alike", "other"):
        datapipe.curate(files / f"{name}.parquet", out=run, update=True, workers=1, **OPTIONS)
        datapipe.curate(files / f"{name}.parquet", out=other, update=True, workers=3, **OPTIONS)
        assert contents(run) == contents(other)
    again = datapipe.curate(files / "other.parquet", out=run, update=True, **OPTIONS)
    assert all(timing.reused for timing in again.timings)
    assert contents(run) == contents(other)


def test_an_update_that_was_stopped_goes_on_where_it_stopped(
    run: Path, first: Path, files: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(first, tmp_path / "other", symlinks=True)
    before = {*run.glob("stages/*/manifest*.json")}
    Curation(files / "other.parquet", out=run, update=True, **OPTIONS).run_stage("score")
    ingest = next(path.parent for path in {*run.glob("stages/ingest-*/manifest.json")} - before)
    for name in ("rows-00001-1.parquet", "rows-00001-1.parquet.json", "manifest.json"):
        (ingest / name).unlink()
    (ingest / ".rows-00001-1.parquet.17.partial").write_bytes(b"half")
    datapipe.curate(files / "other.parquet", out=run, update=True, **OPTIONS)
    datapipe.curate(files / "other.parquet", out=other, update=True, **OPTIONS)
    assert contents(run) == contents(other)


def test_texts_that_are_there_are_not_embedded_again(data: Path, tmp_path: Path) -> None:
    texts = pl.read_parquet(data / "banking77.parquet").select("text").head(140)
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    texts.head(100).write_parquet(old)
    texts.tail(40).write_parquet(new)
    before = datapipe.curate(old, out=tmp_path / "run", shard_rows=64)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("stages/embed-*/*.parquet")}
    result = datapipe.curate(new, out=tmp_path / "run", update=True, shard_rows=64)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("stages/embed-*/*.parquet")}
    assert shards.items() <= after.items()
    assert stage(result, "embed")["key"] == stage(before, "embed")["key"]
    assert stage(result, "embed")["rows"] == 140
    assert result.counts == {"kept": 42, "over_budget": 98}
    assert datapipe.verify(tmp_path / "run").ok


def test_drift_adds_up_over_updates_until_it_is_certain(run: Path, tmp_path: Path) -> None:
    refits = []
    for part in range(3):
        path = tmp_path / f"few-{part}.parquet"
        rows(20, seed=10 + part, kind=1).write_parquet(path)
        result = datapipe.curate(path, out=run, update=True, **OPTIONS)
        assert result.update is not None
        refits.append((result.update["drift"]["new_rows"], result.update["refit"]))
    # Twenty rows are too few to be judged; the second update fits again, so the third compares with all rows before it.
    assert refits == [(20, False), (40, True), (20, False)]


def test_a_run_without_update_has_the_bytes_of_a_run_in_an_empty_folder(run: Path, files: Path, tmp_path: Path) -> None:
    datapipe.curate(files / "alike.parquet", out=run, update=True, **OPTIONS)
    plain = datapipe.curate(files / "first.parquet", out=run, **OPTIONS)
    fresh = datapipe.curate(files / "first.parquet", out=tmp_path / "fresh", **OPTIONS)
    assert (run / "manifest.json").read_bytes() == (tmp_path / "fresh" / "manifest.json").read_bytes()
    assert plain.update is fresh.update is None
    assert not (run / "changes.parquet").exists()


def test_a_file_that_changed_loses_rows_and_the_changes_say_so(tmp_path: Path) -> None:
    source, run = tmp_path / "first.parquet", tmp_path / "run"
    rows(600, seed=1).write_parquet(source)
    datapipe.curate(source, out=run, **OPTIONS)
    before = set(kept_ids(run))
    rows(600, seed=1).head(500).write_parquet(source)
    result = datapipe.curate(source, out=run, update=True, **OPTIONS)
    changes = pl.read_parquet(run / "changes.parquet")
    gone = changes.filter(pl.col("reason") == "gone")
    assert result.update is not None
    assert result.update["changes"]["rows_gone"] == 100
    assert gone["after"].null_count() == len(gone) == result.update["changes"]["left"]["gone"]
    assert set(gone["row_id"]) <= before


def test_another_budget_and_screened_rows_are_told_apart(run: Path, files: Path, tmp_path: Path) -> None:
    result = datapipe.curate(files / "first.parquet", out=run, update=True, keep=0.4, **OPTIONS)
    assert result.update is not None
    assert result.update["changes"]["entered"] == {"cut": 200}
    assert result.update["drift"]["new_rows"] == 0
    source, deduped = tmp_path / "a.parquet", tmp_path / "deduped"
    rows(400, seed=1).write_parquet(source)
    datapipe.curate(source, out=deduped, keep=1.0, dedup="exact", **OPTIONS)
    rows(400, seed=1).head(50).write_parquet(tmp_path / "again.parquet")
    repeats = datapipe.curate(tmp_path / "again.parquet", out=deduped, update=True, keep=1.0, dedup="exact", **OPTIONS)
    assert repeats.counts == {"kept": 400, "duplicate": 50}
    assert repeats.update is not None
    # Of equal rows the one of the least id stays, be it old or new.
    swapped = repeats.update["drift"]["new_rows"]
    assert repeats.update["changes"]["entered"] == {"new": swapped}
    assert repeats.update["changes"]["left"] == {"screened": swapped}


def test_a_metric_without_centroids_has_changes_and_no_drift(files: Path, tmp_path: Path) -> None:
    options = OPTIONS | {"metric": "random", "strategy": "random"}
    datapipe.curate(files / "first.parquet", out=tmp_path / "run", **options)
    result = datapipe.curate(files / "alike.parquet", out=tmp_path / "run", update=True, **options)
    assert result.update is not None
    assert (result.update["drift"], result.update["refit"]) == (None, None)
    assert set(result.update["changes"]["entered"]) <= {"new", "cut"}


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "knn_density", "dedup": "semantic"},
        {"metric": "prototypes_supervised", "label_column": "label", "dedup": "exact"},
        {"metric": "el2n", "label_column": "label", "keep_tokens": 900, "keep": None},
    ],
    ids=lambda options: options["metric"],
)
def test_without_centroids_an_update_keeps_what_a_run_over_all_files_keeps(
    options: dict[str, Any], tmp_path: Path
) -> None:
    def labelled(count: int, seed: int) -> pl.DataFrame:
        return rows(count, seed=seed).with_columns(label=pl.Series([f"class {i % 3}" for i in range(count)]))

    files = [tmp_path / "old.parquet", tmp_path / "new.parquet"]
    labelled(300, 1).write_parquet(files[0])
    pl.concat([labelled(40, 2), labelled(300, 1).head(20)]).write_parquet(files[1])
    asked = OPTIONS | {"shard_rows": 64} | {name: value for name, value in options.items() if value is not None}
    datapipe.curate(files[0], out=tmp_path / "run", **asked)
    updated = datapipe.curate(files[1], out=tmp_path / "run", update=True, **asked)
    whole = datapipe.curate([str(file) for file in files], out=tmp_path / "whole", **asked)
    assert stage(updated, "ingest")["facts"]["generations"] == 2
    assert updated.counts == whole.counts
    for name in ("kept", "selection", "scores"):
        assert getattr(updated, name).collect().equals(getattr(whole, name).collect())


def test_an_update_that_cannot_continue_its_run_says_why(run: Path, files: Path, tmp_path: Path) -> None:
    alike = files / "alike.parquet"
    with pytest.raises(ConfigError, match=r"nothing to update: .* holds no finished run"):
        datapipe.curate(alike, out=tmp_path / "none", update=True, **OPTIONS)
    with pytest.raises(ConfigError, match="same options, but seed was 0 and is 1; run without update"):
        datapipe.curate(alike, out=run, update=True, seed=1, **OPTIONS)
    with pytest.raises(ConfigError, match="adds files to a run, not a Polars frame"):
        datapipe.curate(rows(10, seed=4), out=run, update=True, **OPTIONS)
    centroids = next(run.glob("stages/fit-*/centroids.npy"))
    centroids.write_bytes(centroids.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"centroids\.npy is not what its manifest says"):
        datapipe.curate(alike, out=run, update=True, **OPTIONS)
    shutil.rmtree(next(run.glob("stages/select-*")))
    with pytest.raises(IntegrityError, match="is gone or changed, so the run cannot be updated; run without update"):
        datapipe.curate(alike, out=run, update=True, **OPTIONS)


def test_a_run_over_a_frame_cannot_be_updated(tmp_path: Path, files: Path) -> None:
    datapipe.curate(rows(60, seed=1), out=tmp_path / "run", **OPTIONS)
    with pytest.raises(ConfigError, match="read a Polars frame, which an update cannot read again"):
        datapipe.curate(files / "alike.parquet", out=tmp_path / "run", update=True, **OPTIONS)


def test_the_command_line_writes_the_same_update(tmp_path: Path) -> None:
    # Another process is not told of plain maps; so few rows have one anyway.
    old, new = tmp_path / "old.parquet", tmp_path / "new.parquet"
    rows(400, seed=1).write_parquet(old)
    rows(60, seed=2).write_parquet(new)
    run, other = tmp_path / "run", tmp_path / "other"
    datapipe.curate(old, out=run, **OPTIONS)
    shutil.copytree(run, other, symlinks=True)
    result = datapipe.curate(new, out=run, update=True, **OPTIONS)
    assert "changes.parquet" in {each["name"] for each in result.as_dict()["outputs"]}
    options = ["--text-column", "text", "--embedding-column", "vector", "--shard-rows", 512]
    done = command("curate", new, "--out", other, "--update", *options)
    assert done.returncode == 0, done.stderr
    assert "60 rows came; " in done.stderr
    assert "; prototypes kept, error " in done.stderr.replace("\n", " ")
    assert contents(run) == contents(other)
