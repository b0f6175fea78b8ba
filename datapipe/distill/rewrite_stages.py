"""The stages of a rewriting: the answers of a pool are rewritten shard by shard, and the shards become one file.

    pool/rows -> rewrite -> a shard a shard, in the same order
    rewrite -> rewritten -> rewritten.parquet, failed.parquet

A killed run goes on with the shard that was in hand; with another model, prompt or limit it begins again, and the pool
(`datapipe.stages.instructions`) stays.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, ShardStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import pyarrow as pa

    from datapipe.distill.rewrite_checks import Limits, Reason
    from datapipe.pipeline import ShardFunction, Tick
    from datapipe.storage.stage import StageDir
    from datapipe.workers.protocol import Worker
    from datapipe.workers.tasks.generate import Generated

__all__ = ["FAILED", "REWRITTEN", "GatherRewritten", "RewriteAnswers", "RewriteConfig"]

REWRITTEN, FAILED = "rewritten.parquet", "failed.parquet"
SLICE_ROWS = 64
"""Rows asked of the worker in one call: batches are packed within a slice, and a stop is heeded between two."""


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
