"""A causal language model's soft labels of the tokens of each row.

Reads `ingest/rows` for whole texts, or prompts and responses of `export/kept.parquet`, and `select` where only kept
rows are wanted. Writes `part-*.parquet` as `datapipe.stages.teach` does, in row_id order: one distribution a token of
the response, cut down on the device, and two scores a row: `loss` (mean negative log probability of its tokens) and
`entropy` (mean over its tokens), in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import SoftLabelError
from datapipe.stages.teach import TeachStage
from datapipe.stages.wanted import wanted, wanted_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.distill.codec import SoftLabels
    from datapipe.pipeline import Context, StageOutput
    from datapipe.storage.stage import StageDir
    from datapipe.workers.tasks.teach import TokenTeaching

TOKEN_PART_ROWS = 1024
"""Rows whose labels a killed run loses at most."""

KEPT = "kept.parquet"


@dataclass(frozen=True)
class TeachTokens(TeachStage):
    """Judge each token.

    Attributes:
        worker: Runs the teacher.
        model: Its name there.
    """

    worker: Any
    model: str

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, and what says which are wanted."""
        return ("ingest/rows", *self.choice)

    @property
    def choice(self) -> tuple[str, ...]:
        """The choice, and the kept rows with their own columns where those are read."""
        own = ("export",) if self.settings.columns else ()
        return (*own, *super().choice)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Judge part by part.

        Raises:
            SoftLabelError: A row has no text, or the teacher says nothing usable of it; names it.
        """
        from datapipe.storage.sort import regrouped

        kept = self.settings.rows == "kept"
        total = wanted_rows(inputs, kept=kept)
        rows = self._own(inputs["export"]) if self.settings.columns else wanted(inputs, ["text"], kept=kept)
        names = [f"part-{at:05d}.parquet" for at in range(-(-total // self.settings.part_rows))]
        positions = truncated = 0
        for name, part in zip(names, regrouped(rows, self.settings.part_rows), strict=True):
            done = out.done(name)
            if done is None:
                table, facts = self._part(part, context)
                done = out.write_table(name, table, facts=facts)
            else:
                context.tick(done.rows)
            positions += done.facts["positions"]
            truncated += done.facts["truncated"]
        return names, {"rows": total, "positions": positions, "truncated": truncated}

    def _own(self, export: StageOutput) -> Iterator[pa.Table]:
        """row_id, context and text of the kept rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = dict(self.settings.columns or {})
        with pq.ParquetFile(export.path / KEPT) as file:
            for batch in file.iter_batches(
                batch_size=self.settings.part_rows, columns=["row_id", *dict.fromkeys(columns.values())]
            ):
                found = {"row_id": batch["row_id"], "text": batch[columns["response"]]}
                if "prompt" in columns:
                    found["context"] = batch[columns["prompt"]]
                table = pa.table(found)
                yield table.set_column(1, "text", table["text"].cast(pa.string()))

    def _part(self, part: pa.Table, context: Context) -> tuple[pa.Table, dict[str, int]]:
        import pyarrow as pa

        tables, facts = [], {"positions": 0, "truncated": 0}
        for at in range(0, part.num_rows, self.settings.slice_rows):
            rows = part.slice(at, self.settings.slice_rows)
            found = self._asked(rows)
            tables.append(self._table(rows, found))
            facts["positions"] += sum(len(each.log_probabilities) for each in found)
            facts["truncated"] += sum(each.truncated for each in found)
            context.tick(rows.num_rows)
        return pa.concat_tables(tables).combine_chunks(), facts

    def _asked(self, rows: pa.Table) -> list[TokenTeaching]:
        from datapipe.distill.teachers import ask
        from datapipe.storage.rowid import ids_from_arrow, ids_to_hex
        from datapipe.workers.tasks.teach import TeachItem

        header = self.settings.header
        ids = ids_from_arrow(rows["row_id"])
        texts = rows["text"].to_pylist()
        contexts = rows["context"].to_pylist() if "context" in rows.schema.names else [""] * len(texts)
        if not all(texts):
            row = ids_to_hex(ids)[[bool(text) for text in texts].index(False)]
            raise SoftLabelError(f"row {row} has no response, so there are no tokens to teach: leave such rows out")
        wants = {"k": header.k or 0, "draws": header.draws or 0, "seed": header.seed}
        names = rows["row_id"].to_pylist()
        items = [
            TeachItem(text, context or "", name, **wants)
            for text, context, name in zip(texts, contexts, names, strict=True)
        ]
        return ask(self.worker, "teach", items, model=self.model, ids=ids)

    def _table(self, rows: pa.Table, found: Sequence[TokenTeaching]) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        from datapipe.distill.layout import TokenRows, table_of
        from datapipe.storage.rowid import ids_from_arrow

        masks = [np.arange(len(each.sequence)) >= each.begin for each in found]
        tokens = TokenRows.of([each.sequence for each in found], masks)
        entropy = _means([each.entropy for each in found])
        table = table_of(
            self.settings.header,
            ids_from_arrow(rows["row_id"]),
            self._cut(found),
            tokens=tokens,
            facts={"teacher_entropy": pa.array(entropy, from_pandas=True)},
        )
        scores = {"loss": -_means([each.log_probabilities for each in found]), "entropy": entropy}
        for name, values in scores.items():
            table = table.append_column(pa.field(f"score_{name}", pa.float32()), pa.array(values))
        return table

    def _cut(self, found: Sequence[TokenTeaching]) -> SoftLabels:
        """All places of some rows, as the store takes them."""
        import numpy as np

        from datapipe.distill.codec import LEAST, SampledLabels, TopLabels

        header = self.settings.header
        ids = np.concatenate([each.ids for each in found])
        if header.draws is not None:
            entropy = np.concatenate([each.entropy for each in found])
            return SampledLabels.of_draws(ids.reshape(-1, header.draws), entropy)
        width = header.k or 0
        values = np.concatenate([each.values for each in found]).reshape(-1, width)
        tail = np.concatenate([each.tail for each in found])
        kept, rest = (np.maximum(each, LEAST).astype(np.float16) for each in (values, tail))
        return TopLabels(ids.reshape(-1, width).astype(np.uint32), kept, rest)


def _means(parts: Sequence[Any]) -> Any:
    """Mean of each, float32 (parts,); NaN of none."""
    import numpy as np

    return np.array([part.mean(dtype=np.float64) if len(part) else np.nan for part in parts], np.float32)


__all__ = ["TOKEN_PART_ROWS", "TeachTokens"]
