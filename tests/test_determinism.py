"""The same rows give the same choice, however they are cut, ordered and written, and however many threads work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

import datapipe
from tests.runs import contents, kept_ids, spread

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 320
OPTIONS: dict[str, Any] = {"keep": 0.35, "text_column": "text", "label_column": "label_name", "shard_rows": 64}


@pytest.fixture(scope="module")
def frame(data: Path) -> pl.DataFrame:
    # A few rows stand twice, so that the counters among identical rows matter.
    rows = pl.read_parquet(data / "banking77.parquet").select("text", "label", "label_name").head(ROWS)
    return pl.concat([rows, rows.head(9)])


@pytest.fixture(scope="module")
def reference(frame: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("reference")
    datapipe.curate(spread(frame, folder / "in", files=1, suffix="parquet"), out=folder / "run", **OPTIONS)
    ids = kept_ids(folder / "run")
    assert len(ids) == round(0.35 * frame.height)
    assert ids == sorted(ids)
    return ids


@pytest.mark.parametrize(
    ("files", "suffix", "workers", "shuffled"),
    [
        (7, "parquet", 4, False),
        (64, "parquet", 1, True),
        (1, "csv", 2, True),
        (7, "jsonl", 1, False),
        (64, "csv", 4, True),
    ],
    ids=str,
)
def test_kept_ids_do_not_depend_on_files_format_order_or_threads(
    frame: pl.DataFrame,
    reference: list[bytes],
    tmp_path: Path,
    files: int,
    suffix: str,
    workers: int,
    shuffled: bool,  # noqa: FBT001
) -> None:
    rows = frame.sample(fraction=1.0, shuffle=True, seed=5) if shuffled else frame
    source = spread(rows, tmp_path / "in", files=files, suffix=suffix)
    datapipe.curate(source, out=tmp_path / "run", workers=workers, **OPTIONS)
    assert kept_ids(tmp_path / "run") == reference


def test_a_frame_in_memory_gives_the_same_ids_as_its_file(
    frame: pl.DataFrame, reference: list[bytes], tmp_path: Path
) -> None:
    datapipe.curate(frame.lazy(), out=tmp_path / "run", **OPTIONS)
    assert kept_ids(tmp_path / "run") == reference


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_named_rows_are_chosen_alike_although_csv_reads_their_names_as_numbers(
    data: Path, tmp_path: Path, suffix: str
) -> None:
    rows = pl.read_parquet(data / "dolly_3k.parquet").select("id", "instruction").head(200)
    assert rows.schema["id"] == pl.String
    assert rows["id"].str.contains(r"^\d+$").all()
    options: dict[str, Any] = {"metric": "random", "strategy": "random"}
    options |= {"id_column": "id", "text_column": "instruction"}
    datapipe.curate(rows, out=tmp_path / "a", **options)
    datapipe.curate(spread(rows, tmp_path / "in", files=3, suffix=suffix), out=tmp_path / "b", **options)
    assert kept_ids(tmp_path / "a") == kept_ids(tmp_path / "b")


def test_cut_and_order_leave_every_byte_of_the_data_as_it_is(frame: pl.DataFrame, tmp_path: Path) -> None:
    one = spread(frame, tmp_path / "one", files=1, suffix="parquet")
    many = spread(frame.reverse(), tmp_path / "many", files=5, suffix="parquet")
    datapipe.curate(one, out=tmp_path / "a", workers=1, **OPTIONS)
    datapipe.curate(many, out=tmp_path / "b", workers=3, **OPTIONS)
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    by_digest = {digest for name, digest in first.items() if name.startswith("results/")}
    for name in ("kept.parquet", "selection.parquet", "scores.parquet"):
        digest = next(digest for path, digest in second.items() if path.startswith("results/") and path.endswith(name))
        assert digest in by_digest, name
    shards = {digest for name, digest in first.items() if "/embed-" in name or "/score-" in name}
    assert {digest for name, digest in second.items() if "/embed-" in name or "/score-" in name} == shards


def test_smaller_random_budgets_lie_inside_larger_ones(frame: pl.DataFrame, tmp_path: Path) -> None:
    nested: set[bytes] = set()
    for keep in (0.1, 0.3, 0.7, 1.0):
        options: dict[str, Any] = {"metric": "random", "strategy": "random", "text_column": "text", "keep": keep}
        datapipe.curate(frame, out=tmp_path / "run", **options)
        ids = set(kept_ids(tmp_path / "run"))
        assert nested < ids
        nested = ids


def test_another_seed_is_another_choice(frame: pl.DataFrame, tmp_path: Path) -> None:
    options: dict[str, Any] = {"metric": "random", "strategy": "random", "text_column": "text"}
    datapipe.curate(frame, out=tmp_path / "a", seed=0, **options)
    datapipe.curate(frame, out=tmp_path / "b", seed=1, **options)
    assert kept_ids(tmp_path / "a") != kept_ids(tmp_path / "b")
