"""Tokens of every row, where nothing is embedded or another tokenizer counts.

Reads `ingest/rows`. Writes row_id and tokens (int32), special tokens included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import ShardStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from datapipe.pipeline import ShardFunction, Tick


@dataclass(frozen=True)
class CountTokens(ShardStage):
    """Count with a model's tokenizer.

    Attributes:
        model: The model's source; only its tokenizer is read.
        digest: Digest of the tokenizer's file.
    """

    name: ClassVar[str] = "tokens"
    version: ClassVar[int] = 1

    model: str
    digest: str

    @property
    def config(self) -> dict[str, Any]:
        """Nothing but the tokenizer, which counts among the models."""
        return {}

    @property
    def needs(self) -> tuple[str, ...]:
        """The canonical rows."""
        return ("ingest/rows",)

    @property
    def models(self) -> tuple[str, ...]:
        """The tokenizer."""
        return (self.digest,)

    def open(self, artifacts: Mapping[str, StageOutput]) -> ShardFunction:
        """Load the tokenizer."""
        import numpy as np
        import pyarrow as pa

        from datapipe.embedding.text import open_tokenizer, token_counts

        tokenizer = open_tokenizer(self.model)

        def function(tables: Sequence[pa.Table], tick: Tick) -> tuple[pa.Table, dict[str, Any]]:
            rows = tables[0]
            counts = token_counts(tokenizer, rows["text"].to_pylist())
            tick(rows.num_rows)
            table = pa.table({"row_id": rows["row_id"], "tokens": pa.array(counts, pa.int32())})
            return table, {"tokens": int(counts.sum(dtype=np.int64))}

        return function
