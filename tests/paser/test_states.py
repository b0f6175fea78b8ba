"""States of the original and damage of its versions, over a pool of real rows and small random models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from datapipe.errors import ModelError
from datapipe.executors.local import LocalExecutor
from datapipe.paser.models import Models
from datapipe.paser.rows import ROW_NUMBERS
from datapipe.pipeline import Pipeline
from datapipe.stages.damage import Damage
from datapipe.stages.instructions import InstructionPool, PoolConfig
from datapipe.stages.states import States
from datapipe.storage.instructions import PoolColumns, columns_of
from datapipe.storage.source import open_source
from datapipe.storage.stage import StageStore
from datapipe.workers.folder import ModelFolder
from datapipe.workers.tasks.causal import PlainTokenizer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.pipeline import Stage, StageOutput

ROWS = 70


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real rows; some are longer than the models read."""
    table = pq.read_table("data/dolly_3k.parquet", columns=["instruction", "input", "output"])
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    pq.write_table(table.slice(0, ROWS), path)
    return path


def run(pool: Path, folder: Path, stages: Sequence[Stage]) -> Mapping[str, StageOutput]:
    source = open_source(pool)
    files = tuple(zip((file.uri for file in source.files), source.digests({}), strict=True))
    columns = columns_of(source.schema.names, PoolColumns())
    read = PoolConfig(files=files, columns=columns, shard_rows=20, max_chars=100_000)
    pipeline = Pipeline([InstructionPool(source, read), *stages])
    return pipeline.run(StageStore(folder / "stages"), LocalExecutor(), scratch=folder / "scratch")


def whole(output: StageOutput) -> pa.Table:
    return pa.concat_tables(output.tables())


def models(original: Path, *pruned: Path, **options: Any) -> Models:
    return Models(str(original), [str(each) for each in pruned], device="cpu", dtype="float32", **options)


def test_numbers_of_a_row_agree_with_plain_transformers(
    pool: Path, tmp_path: Path, tiny_original: Path, tiny_pruned: Path
) -> None:
    with models(tiny_original, tiny_pruned) as both:
        found = run(pool, tmp_path, [States.of(both), Damage.of(both, "pruned")])
        texts = {}
        for table in found["pool"].tables("rows"):
            for row in table.to_pylist():
                asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
                texts[row["row_id"]] = (f"user : {asked}\nassistant : ", row["response"])
    rows = whole(found["damage_pruned"]).to_pylist()
    assert len(rows) == ROWS
    tokenizer = PlainTokenizer(ModelFolder("m", tiny_original))
    loaded = [transformers.AutoModelForCausalLM.from_pretrained(each) for each in (tiny_original, tiny_pruned)]
    short = [row for row in rows if row["tokens"] + row["prompt_tokens"] < 256]
    for row in short[:5]:
        prompt, text = tokenizer.plain(list(texts[row["row_id"]]), first=0)
        ids = np.concatenate([tokenizer.opening, prompt, text]).astype(np.int64)
        assert row["tokens"] == len(text)
        assert row["prompt_tokens"] == len(ids) - len(text)
        with torch.inference_mode():
            logits = [model(torch.from_numpy(ids)[None]).logits[0, -len(text) - 1 : -1].double() for model in loaded]
        a, b = (each.log_softmax(1) for each in logits)
        p, q = a.exp(), b.exp()
        m = ((p + q) / 2).log()
        jsd = (0.5 * p * (a - m) + 0.5 * q * (b - m)).sum(1)
        own = torch.from_numpy(text.astype(np.int64))[:, None]
        expected = {
            "jsd_mean": jsd.mean(),
            "jsd_sum": jsd.sum(),
            "jsd_p95": jsd.quantile(0.95),
            "jsd_first": jsd[0],
            "kl_op": (p * (a - b)).sum(1).mean(),
            "kl_po": (q * (b - a)).sum(1).mean(),
            "nll_o": -a.gather(1, own).mean(),
            "nll_p": -b.gather(1, own).mean(),
        }
        # States are rounded to bfloat16 before the heads: 2^-9 of their length, and so of the logits.
        for name, value in expected.items():
            assert row[name] == pytest.approx(float(value), rel=0.03), name
        assert 0 <= row["disagree"] <= 1


def test_a_model_against_itself_differs_by_nothing(pool: Path, tmp_path: Path, tiny_original: Path) -> None:
    with models(tiny_original, tiny_original) as both:
        label = both.labels[0]
        found = whole(run(pool, tmp_path, [States.of(both), Damage.of(both, label)])[f"damage_{label}"])
    for name in ("jsd_mean", "jsd_sum", "jsd_p95", "jsd_first", "kl_op", "kl_po", "disagree"):
        assert np.abs(found[name].to_numpy()).max() < 1e-6, name
    np.testing.assert_array_equal(found["nll_o"].to_numpy(), found["nll_p"].to_numpy())
