"""The stages of a rewriting: a pool is read, its answers are rewritten shard by shard, the shards become one file.

    source -> pool -> rows-*.parquet (row_id, instruction, input, response; by row_id), rejected.parquet
    pool/rows -> rewrite -> a shard a shard, in the same order
    rewrite -> rewritten -> rewritten.parquet, failed.parquet

Row ids come from all columns of the source, as everywhere, so they do not depend on its cut, order or format. A killed
run goes on with the shard that was in hand; with another model, prompt or limit it begins again, and the pool stays.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import SourceError
from datapipe.pipeline import Context, SetStage, ShardStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import pyarrow as pa

    from datapipe.distill.instructions import PoolColumns
    from datapipe.distill.rewrite_checks import Limits, Reason
    from datapipe.pipeline import ShardFunction, Tick
    from datapipe.storage.sort import ExternalSorter
    from datapipe.storage.source import Source
    from datapipe.storage.stage import StageDir
    from datapipe.workers.protocol import Worker
    from datapipe.workers.tasks.generate import Generated

__all__ = ["FAILED", "REWRITTEN", "GatherRewritten", "InstructionPool", "PoolConfig", "RewriteAnswers", "RewriteConfig"]

REWRITTEN, FAILED = "rewritten.parquet", "failed.parquet"
SHARD_BYTES = 32 << 20
SLICE_ROWS = 64
"""Rows asked of the worker in one call: batches are packed within a slice, and a stop is heeded between two."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """What the rows of a pool depend on.

    Attributes:
        files: Name and sha256 of each source file, in order.
        columns: Which column is what.
        shard_rows: Most rows of a shard on average; a killed run loses the shards in the making.
        max_chars: Characters of instruction, input and response together; longer rows are refused.
    """

    files: tuple[tuple[str, str], ...]
    columns: PoolColumns
    shard_rows: int
    max_chars: int


@dataclass(frozen=True)
class InstructionPool(SetStage):
    """Read a pool of instructions, give each row its id and sort by it.

    Attributes:
        source: What is read.
        settings: See `PoolConfig`.
    """

    name: ClassVar[str] = "pool"
    version: ClassVar[int] = 1

    source: Source
    settings: PoolConfig

    @property
    def config(self) -> PoolConfig:
        """Files, columns and sizes."""
        return self.settings

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Sort the pool by row id, out of core. Raises `SourceError` where no row can be used."""
        from datapipe.storage.refused import REJECTED, RefusedRows
        from datapipe.storage.sort import ExternalSorter, equal_ranges

        with ExternalSorter(context.scratch / "rows") as rows, RefusedRows(context.scratch / "rejected") as refused:
            for batch in self.source.batches(rejected=lambda record: refused.add_records([record])):
                found = self._pairs(batch.table)
                refused.add_rows(batch, found.refused)
                if found.table.num_rows:
                    rows.add(found.digests[:, 0], found.digests[:, 1], found.table)
                context.tick(batch.table.num_rows)
            if not rows.rows:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(refused.reasons.items()))
                raise SourceError(
                    f"nothing in {self.source.files[0].uri} can be used: {reasons or 'there are no rows'}"
                )
            refused.write(out, [file.uri for file in self.source.files])
            ranges = equal_ranges(rows.range_count(rows=self.settings.shard_rows, nbytes=SHARD_BYTES))
            names = [f"rows-{index:05d}.parquet" for index in range(len(ranges))]
            for name, (low, high) in zip(names, ranges, strict=True):
                _write_range(rows, low, high, out, name)
            facts = {"rows": rows.rows, "rejected": dict(sorted(refused.reasons.items()))}
        return [*names, *([REJECTED] if out.done(REJECTED) is not None else [])], facts

    def _pairs(self, table: pa.Table) -> _Found:
        import numpy as np
        import pyarrow as pa

        from datapipe.distill.instructions import read_pairs
        from datapipe.storage.rowid import content_digests

        pairs, refused = read_pairs(table, self.settings.columns, max_chars=self.settings.max_chars)
        kept = np.ones(table.num_rows, np.bool_)
        kept[list(refused)] = False
        columns = {name: [getattr(pair, name) for pair in pairs] for name in ("instruction", "input", "response")}
        schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in columns])
        return _Found(pa.table(columns, schema=schema), content_digests(table)[kept], refused)


@dataclass(frozen=True)
class _Found:
    table: pa.Table
    digests: Any
    refused: dict[int, tuple[str, str]]


def _write_range(rows: ExternalSorter, low: int, high: int, out: StageDir, name: str) -> None:
    import numpy as np
    import pyarrow as pa

    from datapipe.storage.rowid import ID_TYPE, apply_counters, count_duplicates, ids_to_arrow

    if out.done(name) is not None:
        return
    digests, table = rows.read_range(low, high)
    ids = apply_counters(digests, count_duplicates(digests))
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    field = pa.field("row_id", ID_TYPE, nullable=False)
    out.write_table(name, table.take(pa.array(order)).add_column(0, field, ids_to_arrow(ids[order])))


@dataclass(frozen=True, kw_only=True)
class RewriteConfig:
    """What an answer depends on besides the model and the row.

    Attributes:
        prompt_version: Of the words that the model is asked with.
        chat: Digest of the model's chat template and stop tokens; empty where a server keeps them.
        max_new_tokens: Tokens after which an answer is cut, and then does not count.
        temperature: 0 for the most probable token each time.
        top_p: The most probable tokens that together have at least this probability are drawn from.
        seed: Of the draws, with the row's id.
        limits: Of an answer's length.
        slice_rows: Rows packed together; another packing may change the last bit of a probability.
    """

    prompt_version: int
    chat: str
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    limits: Limits
    slice_rows: int = SLICE_ROWS


@dataclass(frozen=True)
class RewriteAnswers(ShardStage):
    """Have the model say each answer in its own words, and keep the human one where the checks say so.

    Attributes:
        worker: Makes the worker; called once in each process.
        count: Tokens of texts by the model's tokenizer.
        model: Name of the model at the worker.
        digest: Of the model's files.
        bits: Platform facts of the worker.
        settings: See `RewriteConfig`.
    """

    name: ClassVar[str] = "rewrite"
    version: ClassVar[int] = 1

    worker: Callable[[], AbstractContextManager[Worker] | Worker]
    count: Callable[[Sequence[str]], Sequence[int]]
    model: str
    digest: str
    bits: Mapping[str, str]
    settings: RewriteConfig

    @property
    def config(self) -> RewriteConfig:
        """Prompt, draws and limits."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows of the pool."""
        return ("pool/rows",)

    @property
    def models(self) -> tuple[str, ...]:
        """The original model."""
        return (self.digest,)

    @property
    def platform(self) -> Mapping[str, str]:
        """As the worker states it."""
        return self.bits

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Start or find the worker."""
        worker: Any = self.worker()

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            return self._rewrite(worker, tables[0], tick)

        return function

    def _rewrite(self, worker: Worker, rows: pa.Table, tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
        import pyarrow as pa

        from datapipe.distill.rewrite_checks import check

        reasons: list[Reason | str | None] = []
        candidates: list[str] = []
        step = self.settings.slice_rows
        for start in range(0, rows.num_rows, step):
            part = rows.slice(start, step).to_pylist()
            for row, found in zip(part, self._asked(worker, part), strict=True):
                candidates.append(found.text.strip())
                instruction = f"{row['instruction']}\n{row['input']}"
                reason = check(
                    candidates[-1],
                    reference=row["response"],
                    instruction=instruction,
                    ended=found.ended,
                    limits=self.settings.limits,
                )
                reasons.append("prompt_too_long" if found.cut and not len(found.token_ids) else reason)
            tick(len(part))
        human = rows["response"].to_pylist()
        final = [old if reason else new for old, new, reason in zip(human, candidates, reasons, strict=True)]
        columns = {
            "response": pa.array(final, pa.string()),
            "response_human": rows["response"].combine_chunks(),
            "rewritten": pa.array([reason is None for reason in reasons]),
            "reason": pa.array(reasons, pa.string()),
            "tokens_human": pa.array(self.count(human), pa.int32()),
            "tokens": pa.array(self.count(final), pa.int32()),
            "candidate": pa.array(candidates, pa.string()),
        }
        table = rows.select(["row_id", "instruction", "input"])
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table, _facts(reasons, table)

    def _asked(self, worker: Worker, rows: Sequence[Mapping[str, Any]]) -> list[Generated]:
        from datapipe.distill.rewrite_prompt import prompt
        from datapipe.workers.tasks.generate import GenerateItem

        own, items = self.settings, []
        for row in rows:
            system, asked = prompt(row["instruction"], row["input"], row["response"])
            drawn = hashlib.blake2b(row["row_id"] + own.seed.to_bytes(8, "little"), digest_size=8).digest()
            items.append(
                GenerateItem(
                    prompt=asked,
                    system=system,
                    max_new_tokens=own.max_new_tokens,
                    temperature=own.temperature,
                    top_p=own.top_p,
                    seed=int.from_bytes(drawn, "little") >> 1,
                )
            )
        return worker.run("generate", items, model=self.model)


def _facts(reasons: Sequence[str | None], table: pa.Table) -> dict[str, Any]:
    import pyarrow.compute as pc

    kept = Counter(reason for reason in reasons if reason is not None)
    return {
        "rewritten": reasons.count(None),
        **{f"kept_{reason}": count for reason, count in sorted(kept.items())},
        "tokens_human": pc.sum(table["tokens_human"]).as_py() or 0,
        "tokens": pc.sum(table["tokens"]).as_py() or 0,
    }


@dataclass(frozen=True)
class GatherRewritten(SetStage):
    """One file of all rows with their answers, and one of what the model said where the human answer stayed."""

    name: ClassVar[str] = "rewritten"
    version: ClassVar[int] = 1

    @property
    def config(self) -> dict[str, Any]:
        """Nothing decides but the shards."""
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """All shards."""
        return ("rewrite",)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Copy shard after shard, which are ranges of row ids in order."""
        import pyarrow.compute as pc

        tables = inputs["rewrite"].tables()
        first = next(tables)
        whole = first.schema.remove(first.schema.get_field_index("candidate"))
        told = first.select(["row_id", "reason", "candidate"]).schema
        with out.writer(REWRITTEN, whole) as rewritten, out.writer(FAILED, told) as failed:
            for table in itertools.chain([first], tables):
                rewritten.write(table.select(whole.names))
                failed.write(table.filter(pc.invert(table["rewritten"])).select(told.names))
                context.tick(table.num_rows)
        return [REWRITTEN, FAILED], {**inputs["rewrite"].facts, "rows": rewritten.rows}
