"""A choice over a run's files, and what comes out of it: the kept rows, and the same for a trainer."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from datapipe.errors import ConfigError, StageError
from datapipe.executors.local import LocalExecutor
from datapipe.outputs import StageOutput
from datapipe.paser.pick import PickConfig
from datapipe.pipeline import Pipeline, Stage
from datapipe.selection.budget import Budget
from datapipe.stages.export_instructions import ExportInstructions
from datapipe.stages.instructions import InstructionPool, PoolConfig
from datapipe.stages.pick import Pick
from datapipe.storage.instructions import columns_of
from datapipe.storage.source import Source, open_source
from datapipe.storage.stage import MANIFEST, StageIdentity, StageStore
from datapipe.storage.vectors import encode, vector_field

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = 300
SHARE = Budget(fraction=0.2)


class Run:
    """A pool that is read, and what other stages say of its rows, made up from the rows themselves."""

    def __init__(self, folder: Path, pool: Path) -> None:
        self.folder, self.store = folder, StageStore(folder / "stages")
        self.source: Source = open_source(str(pool))
        self.digests = self.source.digests({})
        self.columns = columns_of(self.source.schema.names)
        files = tuple(zip((file.uri for file in self.source.files), self.digests, strict=True))
        config = PoolConfig(files=files, columns=self.columns, shard_rows=120, max_chars=100_000)
        self.outputs = self.go([InstructionPool(self.source, config)], {})
        self.rows = pa.concat_tables(self.outputs["pool"].tables("rows"))
        self.given = {
            "pool": self.outputs["pool"],
            "skills": self.made("skills", self.labels, {"k": 3, "names": [["sums"], [], ["code", "python"]]}),
            "damage_thin": self.made("damage_thin", self.damage),
            "alone": self.made("alone", lambda rows: {"nll_alone": self.draws(rows, 3) + 1.5}),
            "vectors": self.made("vectors", self.vectors),
        }

    def go(self, stages: list[Stage], given: dict[str, StageOutput]) -> dict[str, StageOutput]:
        scratch = self.folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        return Pipeline(stages, given=given).run(self.store, LocalExecutor(), scratch=scratch)

    def made(self, name: str, columns: Callable[[pa.Table], Any], facts: dict[str, Any] | None = None) -> StageOutput:
        out = self.store.open(StageIdentity(name=name, version=1, config={}))
        names = []
        for at, table in enumerate(self.outputs["pool"].tables("rows")):
            found = columns(table)
            found = found if isinstance(found, pa.Table) else pa.table(found)
            names.append(f"{'labels' if name == 'skills' else 'part'}-{at:05d}.parquet")
            out.write_table(names[-1], found.add_column(0, table.schema.field("row_id"), table["row_id"]))
        if name == "skills":
            names.append("clusters.npz")
            out.write_bytes(names[-1], b"")
        return StageOutput(name=name, path=out.path, manifest_name=MANIFEST, manifest=out.finish(names, facts=facts))

    @staticmethod
    def draws(rows: pa.Table, seed: int) -> np.ndarray:
        """Numbers that hang on the row alone."""
        ids = np.array([int.from_bytes(each[:6], "big") for each in rows["row_id"].to_pylist()])
        return np.modf(ids / 2**48 * (seed + 7.7))[0].astype(np.float32)

    def labels(self, rows: pa.Table) -> dict[str, Any]:
        return {"cluster": (self.draws(rows, 0) * 3).astype(np.int32), "membership": self.draws(rows, 1)}

    def damage(self, rows: pa.Table) -> dict[str, Any]:
        tokens = pc.utf8_length(rows["response"]).to_numpy().astype(np.int32) // 4 + 1
        return {
            "tokens": tokens,
            "prompt_tokens": np.full(rows.num_rows, 12, np.int32),
            "jsd_mean": self.draws(rows, 2) * (1 + (self.draws(rows, 0) * 3).astype(np.int32)),
            "nll_p": self.draws(rows, 4) + 1,
        }

    def vectors(self, rows: pa.Table) -> pa.Table:
        columns, fields = [], []
        for name, seed in (("question", 5), ("answer", 6)):
            angle = 3 * self.draws(rows, seed)
            made = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
            columns.append(encode(made))
            fields.append(vector_field(name, dim=2, model="m", digest="d", normalised=True))
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def pick(self, method: str = "ours", **options: Any) -> dict[str, StageOutput]:
        settings = PickConfig(**{"budget": SHARE, "method": method, **options})
        export = ExportInstructions(self.source, self.digests, self.columns)
        return self.go([Pick(settings, damage="damage_thin"), export], self.given)


def pool_rows() -> pa.Table:
    """Real rows of two sources, one in five of which answers as another one does what that one is asked."""
    table = pq.read_table("data/dolly_3k.parquet").slice(0, ROWS)
    rows = table.to_pylist()
    for at in range(ROWS // 5):
        rows[-1 - at] |= {name: rows[at][name] for name in ("instruction", "input")}
    for at, row in enumerate(rows):
        row["source"] = "chat" if at % 3 else "code"
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.fixture(scope="module")
def alpaca(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("alpaca")
    pq.write_table(pool_rows(), folder / "pool.parquet")
    return Run(folder, folder / "pool.parquet")


def read(output: StageOutput, name: str) -> pa.Table:
    return pq.read_table(output.path / name)


def test_the_kept_rows_come_out_with_their_own_columns_and_in_one_shape_for_a_trainer(alpaca: Run) -> None:
    outputs = alpaca.pick(conflicts="off")
    selection, kept = read(outputs["pick"], "selection.parquet"), read(outputs["exported"], "kept.parquet")
    train = read(outputs["exported"], "train.parquet")
    assert selection["row_id"].to_pylist() == sorted(selection["row_id"].to_pylist())
    assert kept["row_id"].to_pylist() == selection.filter(selection["kept"])["row_id"].to_pylist()
    assert kept.num_rows == train.num_rows == 60
    assert kept.column_names[1:] == alpaca.source.schema.names
    for ours, theirs in (("instruction", "instruction"), ("output", "output"), ("input", "input")):
        assert train[ours].to_pylist() == [text or "" for text in kept[theirs].to_pylist()]
    assert json.loads((outputs["exported"].path / "dataset_info.json").read_bytes()) == {
        "recovery": {
            "file_name": "train.parquet",
            "formatting": "alpaca",
            "columns": {"prompt": "instruction", "query": "input", "response": "output"},
        }
    }
    assert outputs["exported"].facts["rows"] == 60


def test_every_row_and_every_cluster_says_what_became_of_it(alpaca: Run) -> None:
    outputs = alpaca.pick()
    selection, clusters = (read(outputs["pick"], f"{name}.parquet") for name in ("selection", "clusters"))
    facts = outputs["pick"].facts
    reasons = {each["values"]: each["counts"] for each in pc.value_counts(selection["reason"]).to_pylist()}
    assert facts["counts"] == reasons
    assert facts["rows"] == ROWS
    assert reasons["kept"] == 60
    assert reasons["contradicts"] > 0
    against = pc.is_valid(selection["conflict_with"])
    assert against.to_pylist() == [each == "contradicts" for each in selection["reason"].to_pylist()]
    assert set(selection.filter(against)["conflict_with"].to_pylist()) <= set(selection["row_id"].to_pylist())
    assert clusters["name"].to_pylist() == ["sums", "", "code, python"]
    assert pc.sum(clusters["taken"]).as_py() == 60
    assert pc.sum(clusters["share"]).as_py() == pytest.approx(1)
    assert facts["kept_tokens"] == pc.sum(selection.filter(selection["kept"])["tokens"]).as_py()
    cds = clusters["cds"].to_pylist()
    assert cds == sorted(cds)


@pytest.mark.parametrize("method", ["paper", "random", "stratified", "longest", "ifd", "top_jsd"])
def test_published_rule_and_baselines_run_over_the_same_files(alpaca: Run, method: str) -> None:
    facts = alpaca.pick(method)["pick"].facts
    assert facts["method"] == method
    assert (facts["counts"]["kept"] == 60) == (method != "paper")


def test_a_prior_over_sources_reads_them_from_the_pool(alpaca: Run) -> None:
    plain, none = (
        read(alpaca.pick(conflicts="off", source_prior=(("code", worth),))["pick"], "clusters.parquet")["share"]
        for worth in (1.0, 0.0)
    )
    assert pc.sum(none).as_py() == pytest.approx(1)
    assert none.to_pylist() != pytest.approx(plain.to_pylist(), rel=0.01)
    with pytest.raises(ConfigError, match="no row is of the source 'x'; sources are chat, code"):
        alpaca.pick(conflicts="off", source_prior=(("x", 2.0),))


def test_the_order_and_the_format_of_the_source_change_no_choice(alpaca: Run, tmp_path: Path) -> None:
    turned = pool_rows().take(pa.array(np.random.default_rng(0).permutation(ROWS)))
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in turned.to_pylist())
    (tmp_path / "pool.jsonl").write_text(lines)
    again = Run(tmp_path, tmp_path / "pool.jsonl").pick(seed=5)
    before = alpaca.pick(seed=5)
    assert read(again["pick"], "selection.parquet").equals(read(before["pick"], "selection.parquet"))
    assert read(again["exported"], "train.parquet").equals(read(before["exported"], "train.parquet"))


def test_conversations_come_out_as_messages_that_end_with_the_response(tmp_path: Path) -> None:
    rows = [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": f"Name fruit {at}"},
                {"from": "gpt", "value": "Apple"},
                {"from": "human", "value": "Another"},
                {"from": "gpt", "value": f"Pear {at}"},
                {"from": "human", "value": "Thanks"},
            ]
        }
        for at in range(20)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outputs = Run(tmp_path, tmp_path / "chat.jsonl").pick("random", budget=Budget(rows=4))
    train = read(outputs["exported"], "train.parquet")["messages"].to_pylist()
    assert [[message["role"] for message in messages] for messages in train] == [
        ["system", "user", "assistant", "user", "assistant"]
    ] * 4
    assert all(messages[-1]["content"].startswith("Pear ") for messages in train)
    info = json.loads((outputs["exported"].path / "dataset_info.json").read_bytes())["recovery"]
    assert info["columns"] == {"messages": "messages"}
    assert info["tags"]["user_tag"] == "user"


def test_damage_of_other_rows_is_refused(alpaca: Run) -> None:
    damage = alpaca.given["damage_thin"]
    turned = replace(damage, manifest=replace(damage.manifest, shards=damage.manifest.shards[::-1]))
    with pytest.raises(StageError, match="damage_thin is not aligned with skills/labels"):
        alpaca.go([Pick(PickConfig(budget=SHARE), damage="damage_thin")], {**alpaca.given, "damage_thin": turned})
