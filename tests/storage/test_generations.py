"""Rows added to canonical shards: read together they are what one ingest of all files would have written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import integers, lists, sampled_from, tuples

from datapipe.errors import RowIdError
from datapipe.pipeline import StageOutput
from datapipe.storage.generations import Earlier, ingest_more, shard_names
from datapipe.storage.ingest import IngestSpec, ingest
from datapipe.storage.source import open_source
from datapipe.storage.stage import MANIFEST, StageDir, StageIdentity, StageStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from hypothesis.strategies import SearchStrategy

SPEC = IngestSpec(text_column="text", label_column="label", shard_rows=16)
TEXTS = sampled_from([*(f"text {i}" for i in range(12)), "", None])
ROWS: SearchStrategy[list[tuple[str | None, str]]] = lists(tuples(TEXTS, sampled_from("abc")), min_size=1, max_size=40)
FIRST = [(f"first {i}", "a") for i in range(40)]


def written(folder: Path, parts: Sequence[Sequence[tuple[str | None, str]]]) -> list[str]:
    """One file a part, with columns text and label."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.parquet" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        pl.DataFrame(part, schema={"text": pl.String, "label": pl.String}, orient="row").write_parquet(path)
    return [str(path) for path in paths]


def opened(folder: Path, name: str) -> StageDir:
    return StageStore(folder).open(StageIdentity(name="ingest", version=1, config=name))


def output(out: StageDir, names: list[str], facts: dict[str, Any]) -> StageOutput:
    manifest = out.finish(names, facts=facts)
    return StageOutput(name="ingest", path=out.path, manifest_name=MANIFEST, manifest=manifest)


def at_once(files: list[str], folder: Path, spec: IngestSpec = SPEC) -> StageOutput:
    out = opened(folder, "whole")
    facts = ingest(open_source(files), out, spec=spec, scratch=folder / "scratch")
    return output(out, shard_names(out, facts["shards"]), facts)


def one_by_one(files: list[str], folder: Path, spec: IngestSpec = SPEC) -> StageOutput:
    """The first file, then each further one as a generation."""
    out = opened(folder, "first")
    facts = ingest(open_source(files[:1]), out, spec=spec, scratch=folder / "scratch")
    found = output(out, shard_names(out, facts["shards"]), facts)
    for count in range(1, len(files)):
        out = opened(folder, f"more {count}")
        source = open_source(files[: count + 1])
        earlier = earlier_of(found, files=count)
        names, facts = ingest_more(source, out, earlier=earlier, spec=spec, scratch=folder / "scratch")
        found = output(out, names, facts)
    return found


def earlier_of(found: StageOutput, *, files: int) -> Earlier:
    def names(family: str) -> tuple[tuple[str, ...], ...]:
        parts, each = [part.name for part in found.parts(family)], found.generations
        return tuple(tuple(parts[start : start + each]) for start in range(0, len(parts), each))

    first = sum(part.rows for part in found.parts("rows")[:: found.generations])
    return Earlier(
        folder=found.path, rows=names("rows"), places=names("places"), first_rows=first, files=files, facts=found.facts
    )


def together(found: StageOutput, family: str) -> pa.Table:
    return pa.concat_tables(found.tables(family)).combine_chunks()


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(more=lists(ROWS, min_size=1, max_size=2), repeats=integers(0, 3), number=integers(0, 10**12))
def test_generations_read_together_are_one_ingest_of_all_files(
    more: list[list[tuple[str | None, str]]], repeats: int, number: int, tmp_path: Path
) -> None:
    folder = tmp_path / f"{number}-{len(list(tmp_path.iterdir()))}"
    first = [*FIRST, *[("text 1", "a")] * repeats, ("text 2", "b"), ("", "c")]
    files = written(folder, [first, *more])
    whole, added = at_once(files, folder / "a"), one_by_one(files, folder / "b")
    for family in ("rows", "places"):
        assert together(added, family).equals(together(whole, family))
    same = ("rows_in", "accepted", "rejected", "duplicates", "classes", "text_bytes", "dim")
    assert {name: added.facts[name] for name in same} == {name: whole.facts[name] for name in same}
    assert together_rejected(added).equals(together_rejected(whole))


def together_rejected(found: StageOutput) -> pl.DataFrame:
    return pl.read_parquet(found.path / "rejected.parquet")


def test_shards_that_are_there_keep_their_files(tmp_path: Path) -> None:
    files = written(tmp_path, [FIRST, [("another", "b")]])
    first = at_once(files[:1], tmp_path / "a")
    added = one_by_one(files, tmp_path / "b")
    assert added.generations == 2
    digests = [part.sha256 for part in added.parts("rows")]
    assert digests[::2] == [part.sha256 for part in first.parts("rows")]
    assert sum(shard.rows for shard in added.shards("rows")) == 41
    assert len(added.shards("rows")) == len(first.shards("rows"))


def test_a_set_that_has_more_than_doubled_is_ingested_anew(tmp_path: Path) -> None:
    files = written(tmp_path, [FIRST, [(f"another {i}", "b") for i in range(41)]])
    added, whole = one_by_one(files, tmp_path / "b"), at_once(files, tmp_path / "a")
    assert added.generations == 1
    assert [part.sha256 for part in added.parts()] == [part.sha256 for part in whole.parts()]


def test_an_id_that_is_there_already_is_told_with_both_places(tmp_path: Path) -> None:
    spec = IngestSpec(text_column="text", id_column="label", shard_rows=16)
    named = [(f"text {i}", f"id {i}") for i in range(40)]
    files = written(tmp_path, [named, [("new", "id 40"), ("again", "id 7")]])
    with pytest.raises(
        RowIdError, match=r"'label' is not unique: 'id 7' stands in .*0\.parquet row 8 and .*1\.parquet"
    ):
        one_by_one(files, tmp_path / "b", spec)


def test_vectors_of_new_rows_have_the_length_of_those_before(tmp_path: Path) -> None:
    for i, (rows, dim) in enumerate([(30, 4), (3, 5)]):
        matrix = np.random.default_rng(i).normal(size=(rows, dim)).astype(np.float32)
        pl.DataFrame({"text": [f"{i} {j}" for j in range(rows)], "vector": matrix.tolist()}).write_parquet(
            tmp_path / f"{i}.parquet"
        )
    files = [str(tmp_path / f"{i}.parquet") for i in range(2)]
    added = one_by_one(files, tmp_path / "b", IngestSpec(text_column="text", vector_column="vector", shard_rows=16))
    assert added.facts["rejected"] == {"wrong_length": 3}
    assert added.facts["dim"] == 4
