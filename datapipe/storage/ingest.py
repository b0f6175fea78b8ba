"""A source becomes canonical shards: ranges of row ids, sorted, the same for any cut, order or format of the source.

source -> [read ahead] -> columns by role, refused rows -> digests -> external sort -> counters -> row ids -> shards

Writes `rows-00000.parquet` (row_id, then the columns of the roles) and, apart because they do depend on the cut,
`places-00000.parquet` (row_id, file int32, row int64: the 1-based record number); refused rows go to
`rejected.parquet` (reason, detail, file, row, content), sorted by place. Shard i of S holds the i-th of S equal ranges
of ids. A shard that is there already is not made again.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datapipe.errors import ColumnError, RowIdError, SourceError
from datapipe.storage.ahead import ahead
from datapipe.storage.export import kept_schema
from datapipe.storage.refused import RefusedRows
from datapipe.storage.roles import IngestSpec, RoleReader
from datapipe.storage.rowid import (
    ID_TYPE,
    apply_counters,
    content_digests,
    count_duplicates,
    ids_to_arrow,
    value_digests,
)
from datapipe.storage.sort import ExternalSorter, equal_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from datapipe.storage.arrays import Ids
    from datapipe.storage.images import ImageFiles
    from datapipe.storage.source import Rejected, Source, SourceBatch
    from datapipe.storage.stage import ShardInfo, StageDir

__all__ = ["PLACE_FIELDS", "IngestSpec", "Intake", "ingest", "not_unique", "write_shard"]

_ID_FIELD = pa.field("row_id", ID_TYPE, nullable=False)
PLACE_FIELDS = [pa.field("file", pa.int32(), nullable=False), pa.field("row", pa.int64(), nullable=False)]
"""Where a row stands in the source: columns after those of the roles, until the shards are written."""


def ingest(
    source: Source,
    out: StageDir,
    *,
    spec: IngestSpec,
    scratch: Path,
    progress: Callable[[int], None] | None = None,
    images: ImageFiles | None = None,
) -> dict[str, Any]:
    """Write the canonical shards of `source` into `out`, in bounded memory.

    The length of vectors is the one that most rows have; where the first row has another, the source is read twice.

    Args:
        source: What to read; all its columns go into the row ids.
        out: Where the shards go; the caller writes the manifest.
        spec: Columns by role, and limits.
        scratch: Folder for the sort, with room for about as much as the shards.
        progress: Called with the number of rows just read; raises where the run is being stopped.
        images: Reads and checks the image column; needed where the spec names one.

    Returns:
        Facts: `rows_in`; `accepted`; `rejected`, rows by reason; `duplicates`, rows beyond the first of identical
        content; `shards`; `dim` of the vectors, or None; `classes`, the distinct labels of accepted rows, None without
        a label column or above 100,000; `text_bytes` of accepted rows.

    Raises:
        ColumnError: A named column is absent, of a type that its role cannot use, or holds nothing but nulls; or
            `kept_schema` refuses the source.
        RowIdError: Two rows have the same value in the id column; names it and both places.
        SourceError: The source cannot be read, or holds no row that can be used.
        LimitError: The source is larger than its limits allow.
        OutputError: A shard or the scratch file cannot be written.
    """
    kept_schema(source.schema)  # what export refuses is refused before any work
    reader = RoleReader(source.schema, spec, images=images)
    while True:
        with ExternalSorter(scratch / "rows") as rows, RefusedRows(scratch / "rejected") as refused:
            intake = Intake(source, spec, reader, rows, refused)
            intake.read(progress)
            dim = reader.tally.usual_length()
            if dim != reader.dim:
                reader, progress = RoleReader(source.schema, spec, dim=dim, images=images), None
                continue
            intake.check()
            refused.write(out, [file.uri for file in source.files])
            duplicates, shards = _write_shards(intake, out)
        return {
            "rows_in": intake.rows_in,
            "accepted": rows.rows,
            "rejected": dict(sorted(refused.reasons.items())),
            "duplicates": duplicates,
            "shards": shards,
            "dim": dim,
            "classes": reader.tally.classes if spec.label_column is not None else None,
            "text_bytes": reader.tally.text_bytes,
        }


@dataclass(frozen=True)
class Intake:
    """One reading of the source, from `first_file` on, into the two sorters."""

    source: Source
    spec: IngestSpec
    reader: RoleReader
    rows: ExternalSorter
    refused: RefusedRows
    first_file: int = 0

    @property
    def rows_in(self) -> int:
        """Rows and records read."""
        return self.rows.rows + self.refused.rows

    def read(self, progress: Callable[[int], None] | None) -> None:
        """Read everything; the source runs ahead in a thread."""
        with closing(ahead(self._batches())) as batches:
            for batch, records in batches:
                self.refused.add_records(records)
                if batch is not None:
                    self._take(batch)
                if progress is not None:
                    progress(len(records) + (batch.table.num_rows if batch is not None else 0))

    def _batches(self) -> Generator[tuple[SourceBatch | None, list[Rejected]], None, None]:
        """Batches, each with the records that were refused before it; the last ones come alone."""
        records: list[Rejected] = []
        for batch in self.source.batches(rejected=records.append, first_file=self.first_file):
            yield batch, records.copy()
            records.clear()
        yield None, records

    def _take(self, batch: SourceBatch) -> None:
        columns, accepted, refused = self.reader.read(batch.table, file=batch.file)
        self.refused.add_rows(batch, refused)
        if not accepted.any():
            return
        id_column = self.spec.id_column
        digests = content_digests(batch.table) if id_column is None else value_digests(batch.table[id_column])
        digests, rows = digests[accepted], batch.rows[accepted] + 1
        files = np.full(len(rows), batch.file, np.int32)
        schema = pa.schema([*self.reader.fields, *PLACE_FIELDS])
        table = pa.table([*columns, pa.array(files), pa.array(rows)], schema=schema)
        self.rows.add(digests[:, 0], digests[:, 1], table)

    def check(self) -> None:
        """Refuse a source of which nothing can be used."""
        empty = [name for role, name in self.spec.named.items() if role not in self.reader.tally.held]
        if self.rows_in and empty:
            raise ColumnError(f"column {empty[0]!r} holds nothing but nulls; name another column, or none")
        if not self.rows.rows:
            reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in sorted(self.refused.reasons.items()))
            found = f"all {self.rows_in:,} rows are refused ({reasons})" if self.rows_in else "there are no rows"
            raise SourceError(f"nothing in {self.source.files[0].uri} can be used: {found}")


def _write_shards(intake: Intake, out: StageDir) -> tuple[int, int]:
    """Write what is not there yet; returns duplicates and shards."""
    shards = intake.rows.range_count(rows=intake.spec.shard_rows, nbytes=intake.spec.shard_bytes)
    duplicates = 0
    for index, (low, high) in enumerate(equal_ranges(shards)):
        names = [f"{family}-{index:05d}.parquet" for family in ("rows", "places")]
        rows = out.done(names[0])
        if rows is None or out.done(names[1]) is None:
            ids, table, again = _identified(intake, *intake.rows.read_range(low, high))
            rows = write_shard(ids, table, out, names, {"duplicates": again})
        duplicates += rows.facts["duplicates"]
    return duplicates, shards


def _identified(intake: Intake, digests: Ids, table: pa.Table) -> tuple[Ids, pa.Table, int]:
    """Row ids and rows sorted by them, and how many rows repeat another one.

    Identical rows come in the order of their places: the source is read in that order, and the sort is stable.
    """
    counters = count_duplicates(digests)
    repeated = np.flatnonzero(counters)
    if not len(repeated):
        return digests, table, 0
    if intake.spec.id_column is not None:
        raise not_unique(intake, table.slice(int(repeated[0]) - 1, 2).select(["file", "row"]).to_pylist())
    ids = apply_counters(digests, counters)
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    return ids[order], table.take(pa.array(order)), len(repeated)


def not_unique(intake: Intake, places: list[dict[str, int]]) -> RowIdError:
    """The error for two places with one id; looks the value up in the source again, for the shards do not have it."""
    name = str(intake.spec.id_column)
    first = places[0]
    value = None
    for batch in intake.source.batches([name], rejected=lambda _: None):
        found = np.flatnonzero(batch.rows + 1 == first["row"])
        if batch.file == first["file"] and len(found):
            value = batch.table[name][int(found[0])].as_py()
            break
    told = " and ".join(f"{intake.source.files[each['file']].uri} row {each['row']}" for each in places)
    return RowIdError(f"id column {name!r} is not unique: {value!r} stands in {told}; name another column, or none")


def write_shard(ids: Ids, table: pa.Table, out: StageDir, names: list[str], facts: dict[str, int]) -> ShardInfo:
    """Write both files of a shard; returns what is said of the first."""
    id_array = ids_to_arrow(ids)
    places = table.select(["file", "row"]).add_column(0, _ID_FIELD, id_array)
    out.write_table(names[1], places)
    return out.write_table(
        names[0], table.drop_columns(["file", "row"]).add_column(0, _ID_FIELD, id_array), facts=facts
    )
