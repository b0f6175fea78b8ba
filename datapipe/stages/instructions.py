"""A pool of instructions to canonical shards.

Reads the source. Writes `rows-*.parquet` (row_id, instruction, input, response, source, history: list of role and
content, a system message first; sorted by row_id), `places-*.parquet` (row_id, file, row) and, where rows were refused,
`rejected.parquet`. Row ids come from all columns of the source, so they do not depend on its cut, order or format. Made
again when a source file, a column choice or the shard size changes.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import SourceError
from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.storage.instructions import Pair, PoolColumns, Turns
    from datapipe.storage.refused import RefusedRows
    from datapipe.storage.sort import ExternalSorter
    from datapipe.storage.source import Source, SourceBatch
    from datapipe.storage.stage import StageDir

__all__ = ["InstructionPool", "PoolConfig", "file_stem"]

SHARD_BYTES = 32 << 20
MOST_SOURCES = 100
"""Sources that the facts count by name; the rest counts as the empty name."""
_PART = re.compile(r"-\d+-of-\d+$")
"""How the hub numbers the files of one set."""


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """What the rows of a pool depend on.

    Attributes:
        files: Name and sha256 of each source file, in order.
        columns: Which column is what.
        shard_rows: Most rows of a shard on average; a killed run loses the shards in the making.
        max_chars: Characters of instruction, input and response together; longer rows are refused.
        turns: What is read of a chat: `last` for its last turn with the history before it, `one` for chats of one turn.
        stems: Whether a row that does not say where it comes from has the name of its file for its source.
    """

    files: tuple[tuple[str, str], ...]
    columns: PoolColumns
    shard_rows: int
    max_chars: int
    turns: Turns = "last"
    stems: bool = True


@dataclass(frozen=True)
class InstructionPool(SetStage):
    """Read a pool of instructions, give each row its id and sort by it.

    Attributes:
        source: What is read.
        settings: See `PoolConfig`.
    """

    name: ClassVar[str] = "pool"
    version: ClassVar[int] = 2

    source: Source
    settings: PoolConfig

    @property
    def config(self) -> PoolConfig:
        """Files, columns and sizes."""
        return self.settings

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Sort the pool by row id, out of core.

        Facts: `rows`; `rejected`, rows by reason; `duplicates`, rows beyond the first of identical content; `shards`;
        `sources`, rows by source; `histories`, rows before which something was said.

        Raises:
            SourceError: No row can be used.
        """
        from datapipe.storage.generations import shard_names
        from datapipe.storage.refused import RefusedRows
        from datapipe.storage.sort import ExternalSorter

        with ExternalSorter(context.scratch / "rows") as rows, RefusedRows(context.scratch / "rejected") as refused:
            tally = self._read(rows, refused, context)
            if not rows.rows:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(refused.reasons.items()))
                raise SourceError(
                    f"nothing in {self.source.files[0].uri} can be used: {reasons or 'there are no rows'}"
                )
            refused.write(out, [file.uri for file in self.source.files])
            duplicates, shards = _write_shards(rows, out, shard_rows=self.settings.shard_rows)
            facts = {
                "rows": rows.rows,
                "rejected": dict(sorted(refused.reasons.items())),
                "duplicates": duplicates,
                "shards": shards,
                **tally.facts(),
            }
        return shard_names(out, shards), facts

    def _read(self, rows: ExternalSorter, refused: RefusedRows, context: Context) -> _Tally:
        from datapipe.storage.instructions import read_pairs

        stems = [file_stem(file.uri) if self.settings.stems else "" for file in self.source.files]
        tally = _Tally(Counter())
        for batch in self.source.batches(rejected=lambda record: refused.add_records([record])):
            pairs, flaws = read_pairs(
                batch.table,
                self.settings.columns,
                max_chars=self.settings.max_chars,
                turns=self.settings.turns,
                source=stems[batch.file],
            )
            refused.add_rows(batch, flaws)
            if pairs:
                _add(batch, flaws, pairs, rows)
                tally.sources.update(pair.source for pair in pairs)
                tally.histories += sum(bool(pair.history) for pair in pairs)
            context.tick(batch.table.num_rows)
        return tally


@dataclass
class _Tally:
    sources: Counter[str]
    histories: int = 0

    def facts(self) -> dict[str, Any]:
        counted = sorted(self.sources.items(), key=lambda each: (-each[1], each[0]))
        told, rest = dict(counted[:MOST_SOURCES]), sum(rows for _, rows in counted[MOST_SOURCES:])
        if rest:
            told[""] = told.get("", 0) + rest
        return {"sources": told, "histories": self.histories}


def file_stem(uri: str) -> str:
    """The name of a file without folder, format, compression and the number that the hub gives to parts of a set."""
    from datapipe.storage.formats.place import COMPRESSIONS, FORMATS

    name = uri.rstrip("/").rpartition("/")[2]
    for known in (COMPRESSIONS, FORMATS):
        suffix = next((each for each in known if each and name.lower().endswith(each)), "")
        name = name[: len(name) - len(suffix)]
    return _PART.sub("", name)


def _add(batch: SourceBatch, flaws: Mapping[int, Any], pairs: list[Pair], rows: ExternalSorter) -> None:
    """Put the rows that are not refused into the sorter, each with its place in the source."""
    import numpy as np
    import pyarrow as pa

    from datapipe.storage.ingest import PLACE_FIELDS
    from datapipe.storage.rowid import content_digests

    kept = np.ones(batch.table.num_rows, np.bool_)
    kept[list(flaws)] = False
    digests, ordinals = content_digests(batch.table)[kept], batch.rows[kept] + 1
    texts = {name: [getattr(pair, name) for pair in pairs] for name in ("instruction", "input", "response", "source")}
    said = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    kinds = {**dict.fromkeys(texts, pa.string()), "history": said}
    schema = pa.schema([*(pa.field(name, kind, nullable=False) for name, kind in kinds.items()), *PLACE_FIELDS])
    values = [*texts.values(), [pair.history for pair in pairs], np.full(len(pairs), batch.file, np.int32), ordinals]
    columns = [pa.array(each, field.type) for each, field in zip(values, schema, strict=True)]
    table = pa.Table.from_arrays(columns, schema=schema)
    rows.add(digests[:, 0], digests[:, 1], table)


def _write_shards(rows: ExternalSorter, out: StageDir, *, shard_rows: int) -> tuple[int, int]:
    """Write what is not there yet; returns duplicates and shards."""
    import numpy as np
    import pyarrow as pa

    from datapipe.storage.ingest import write_shard
    from datapipe.storage.rowid import apply_counters, count_duplicates
    from datapipe.storage.sort import equal_ranges

    ranges = equal_ranges(rows.range_count(rows=shard_rows, nbytes=SHARD_BYTES))
    duplicates = 0
    for index, (low, high) in enumerate(ranges):
        names = [f"{family}-{index:05d}.parquet" for family in ("rows", "places")]
        info = out.done(names[0])
        if info is None or out.done(names[1]) is None:
            digests, table = rows.read_range(low, high)
            counters = count_duplicates(digests)
            ids = apply_counters(digests, counters)
            order = np.lexsort((ids[:, 1], ids[:, 0]))
            again = {"duplicates": int(np.count_nonzero(counters))}
            info = write_shard(ids[order], table.take(pa.array(order)), out, names, again)
        duplicates += info.facts["duplicates"]
    return duplicates, len(ranges)
