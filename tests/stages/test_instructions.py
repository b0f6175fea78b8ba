"""A pool of instructions from the source to its skills: rows by id, vectors, clusters, whatever the cut."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapipe.embedding.text import embed_texts
from datapipe.errors import SourceError
from datapipe.executors.local import LocalExecutor
from datapipe.paser.clusters import ClusterConfig
from datapipe.paser.clusters_file import load_clusters
from datapipe.pipeline import Pipeline
from datapipe.stages.embedder import Embedder, arithmetic_bits
from datapipe.stages.instruction_vectors import EmbedInstructions, questions
from datapipe.stages.instructions import InstructionPool, PoolConfig, file_stem
from datapipe.stages.skills import CLUSTERS, FindSkills, SkillsConfig
from datapipe.storage.export import export
from datapipe.storage.instructions import PoolColumns, columns_of
from datapipe.storage.rowid import ids_from_arrow
from datapipe.storage.source import open_source
from datapipe.storage.stage import StageIdentity, StageStore
from datapipe.storage.vectors import decode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.pipeline import Stage, StageOutput
    from datapipe.storage.source import Source

K = 4
EMBEDDER = Embedder("default", device="cpu")


def run(
    out: Path, source: Source, *more: Stage, asked: PoolColumns | None = None, **options: Any
) -> Mapping[str, StageOutput]:
    files = tuple(zip((file.uri for file in source.files), source.digests({}), strict=True))
    given = {"shard_rows": 64, "max_chars": 5_000, **options}
    read = PoolConfig(files=files, columns=columns_of(source.schema.names, asked), **given)
    pipeline = Pipeline([InstructionPool(source, read), *more])
    return pipeline.run(StageStore(out / "stages"), LocalExecutor(workers=1), scratch=out / "scratch")


def skills(**options: Any) -> FindSkills:
    settings = SkillsConfig(clusters=ClusterConfig(**{"k": K, **options}))
    return FindSkills(settings=settings, device="cpu", bits=arithmetic_bits("cpu"))


def vectors(*, answers: bool = False) -> EmbedInstructions:
    return EmbedInstructions(
        worker=EMBEDDER.worker,
        model=EMBEDDER.name,
        digest=EMBEDDER.digest,
        dim=EMBEDDER.dim,
        bits=EMBEDDER.bits,
        answers=answers,
    )


def whole(output: StageOutput, family: str | None = None) -> pa.Table:
    return pa.concat_tables(output.tables(family))


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def rows(data: Path) -> list[dict[str, Any]]:
    """Short rows of Dolly, one of them twice."""
    table = pq.read_table(data / "dolly_3k.parquet", columns=["instruction", "input", "output", "category"])
    short = [row for row in table.to_pylist() if len(row["instruction"]) + len(row["input"]) < 90][:150]
    return [*short, short[7]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> Mapping[str, StageOutput]:
    out = tmp_path_factory.mktemp("pool")
    pq.write_table(pa.Table.from_pylist(rows), out / "pool.parquet")
    return run(out, open_source(out / "pool.parquet"), vectors(answers=True), skills())


def test_every_row_is_there_by_its_id_and_its_place_is_known(
    done: Mapping[str, StageOutput], rows: list[dict[str, Any]]
) -> None:
    found, places = whole(done["pool"], "rows"), whole(done["pool"], "places")
    ids = ids_from_arrow(found["row_id"])
    assert np.array_equal(np.lexsort((ids[:, 1], ids[:, 0])), np.arange(len(rows)))
    assert len({row_id.as_py() for row_id in found["row_id"]}) == len(rows)
    assert places["row_id"].equals(found["row_id"])
    for row, place in zip(found.to_pylist(), places["row"].to_pylist(), strict=True):
        own = rows[place - 1]
        assert (row["instruction"], row["input"], row["response"]) == (own["instruction"], own["input"], own["output"])
        assert (row["source"], row["history"]) == ("pool", [])
    facts = done["pool"].facts
    assert {name: facts[name] for name in ("rows", "duplicates", "rejected", "sources", "histories")} == {
        "rows": len(rows),
        "duplicates": 1,
        "rejected": {},
        "sources": {"pool": len(rows)},
        "histories": 0,
    }
    assert facts["shards"] == len(done["pool"].shards("rows")) == len(done["pool"].shards("places")) > 1


def test_places_lead_back_to_the_source(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    source = open_source(write_jsonl(tmp_path / "pool.jsonl", [*rows[:9], {"instruction": "x"}, *rows[9:20]]))
    pool = run(tmp_path, source)["pool"]
    stage = StageStore(tmp_path / "stages").open(StageIdentity(name="exported", version=1, config={}))
    (tmp_path / "scratch").mkdir(exist_ok=True)
    kept = [table.append_column("kept", pa.array([True] * table.num_rows)) for table in pool.tables("rows")]
    export(source, places=pool.tables("places"), kept=kept, out=stage, scratch=tmp_path / "scratch")
    back = pq.read_table(stage.path / "kept.parquet")
    assert back["row_id"].to_pylist() == whole(pool, "rows")["row_id"].to_pylist()
    assert back["output"].to_pylist() == whole(pool, "rows")["response"].to_pylist()
    rejected = pq.read_table(pool.path / "rejected.parquet").to_pylist()
    assert [(each["reason"], each["row"]) for each in rejected] == [("null_text", 10)]


def test_any_cut_order_and_format_of_the_source_gives_the_same_rows_and_skills(
    tmp_path: Path, done: Mapping[str, StageOutput], rows: list[dict[str, Any]]
) -> None:
    turned = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    parts = [write_jsonl(tmp_path / f"pool-{n}-of-2.jsonl", part) for n, part in enumerate((turned[:40], turned[40:]))]
    again = run(tmp_path, open_source(parts), vectors(answers=True), skills())
    assert again["pool"].shards("rows") == done["pool"].shards("rows")
    assert again["skills"].manifest.shards == done["skills"].manifest.shards
    assert again["skills"].facts == done["skills"].facts


def test_chats_keep_their_history_and_files_their_names(tmp_path: Path) -> None:
    said = [("human", "When?"), ("gpt", "In winter."), ("human", "Why?"), ("gpt", "They sleep.")]
    talk = {"conversations": [{"from": who, "value": text} for who, text in said]}
    sums = {"question": "1 + 1?", "answer": "2"}
    names = [write_jsonl(tmp_path / "talk.jsonl", [talk]), write_jsonl(tmp_path / "sums.json", [sums, sums])]
    pool = run(tmp_path, open_source(names))["pool"]
    found = {row["source"]: row for row in whole(pool, "rows").to_pylist()}
    assert found["talk"]["instruction"] == "Why?"
    assert found["talk"]["history"] == [
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "In winter."},
    ]
    assert (found["sums"]["response"], found["sums"]["history"]) == ("2", [])
    assert (pool.facts["sources"], pool.facts["histories"]) == ({"sums": 2, "talk": 1}, 1)


def test_a_killed_pool_goes_on_with_the_shards_that_are_missing(
    tmp_path: Path, done: Mapping[str, StageOutput], rows: list[dict[str, Any]]
) -> None:
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    source = open_source(tmp_path / "pool.parquet")
    pool = run(tmp_path, source)["pool"]
    lost = [pool.path / name for name in ("manifest.json", "places-00001.parquet.json")]
    for path in lost:
        path.unlink()
    again = run(tmp_path, source)["pool"]
    assert [each.sha256 for each in again.manifest.shards] == [each.sha256 for each in done["pool"].manifest.shards]
    assert again.facts == done["pool"].facts


def test_a_pool_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pool.jsonl", [{"question": "When?", "answer": " "}, {"question": "Why?"}])
    with pytest.raises(SourceError, match="can be used: 1 empty_text, 1 null_text"):
        run(tmp_path, open_source(path))


@pytest.mark.parametrize(
    ("uri", "stem"),
    [
        ("/data/alpaca.json", "alpaca"),
        ("s3://bucket/set/train-00003-of-00041.parquet", "train"),
        ("a.b/dolly.v2.JSONL.gz", "dolly.v2"),
        ("plain", "plain"),
    ],
)
def test_a_file_lends_its_rows_its_name(uri: str, stem: str) -> None:
    assert file_stem(uri) == stem


def test_vectors_are_of_what_is_asked_and_of_what_is_answered(done: Mapping[str, StageOutput]) -> None:
    pool, found = whole(done["pool"], "rows"), whole(done["vectors"])
    assert found["row_id"].equals(pool["row_id"])
    for name, texts in (("question", questions(pool)), ("answer", pool["response"].to_pylist())):
        own = embed_texts(EMBEDDER.worker(), texts[:10], model=EMBEDDER.name).vectors
        assert np.einsum("ij,ij->i", own, decode(found[name])[:10]).min() > 0.99
    both = {row["instruction"]: text for row, text in zip(pool.to_pylist(), questions(pool), strict=True)}
    assert all("\n" not in text for name, text in both.items() if name == text)


def test_skills_label_every_row_and_say_what_they_are_about(done: Mapping[str, StageOutput]) -> None:
    labels, facts = whole(done["skills"], "labels"), done["skills"].facts
    pool = {row["row_id"].hex(): row for row in whole(done["pool"], "rows").to_pylist()}
    assert labels["row_id"].equals(whole(done["pool"], "rows")["row_id"])
    assert [len(shard.name) for shard in done["skills"].shards("labels")] == [20] * len(done["pool"].shards("rows"))
    clusters, membership = labels["cluster"].to_numpy(), labels["membership"].to_numpy()
    assert np.bincount(clusters, minlength=K).tolist() == facts["sizes"]
    assert 1.0 / K - 1e-6 <= membership.min() <= membership.max() <= 1.0 + 1e-6
    assert (facts["rows"], facts["k"], len(facts["names"]), len(facts["examples"])) == (len(pool), K, K, K)
    own = dict(zip(labels["row_id"].to_pylist(), clusters.tolist(), strict=True))
    for number, (words, examples) in enumerate(zip(facts["names"], facts["examples"], strict=True)):
        assert 1 <= len(words) <= 4
        assert len({each["instruction"] for each in examples}) == len(examples) <= 3
        for each in examples:
            assert pool[each["row_id"]]["instruction"][:300] == each["instruction"]
            assert own[bytes.fromhex(each["row_id"])] == number


def test_rows_of_the_pool_keep_their_skill_when_they_come_again(done: Mapping[str, StageOutput]) -> None:
    known = load_clusters(done["skills"].path / CLUSTERS)
    labels, shares = known.assign(decode(whole(done["vectors"])["question"]))
    found = whole(done["skills"], "labels")
    assert labels.tolist() == found["cluster"].to_pylist()
    texts = questions(whole(done["pool"], "rows"))
    alone = np.array([texts.count(text) == 1 for text in texts])  # of two copies one may speak for the other
    assert shares.max(axis=1)[alone] == pytest.approx(found["membership"].to_numpy()[alone], abs=1e-5)


def test_too_few_rows_to_tell_apart_are_one_skill(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    source = open_source(write_jsonl(tmp_path / "pool.jsonl", rows[:6]))
    found = run(tmp_path, source, vectors(), skills(k=None))["skills"]
    assert (found.facts["k"], found.facts["sizes"]) == (1, [6])
    assert len(found.facts["names"]) == len(found.facts["examples"]) == 1
    assert whole(found, "labels")["membership"].to_pylist() == [1.0] * 6
