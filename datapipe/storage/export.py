"""The kept rows with their own columns: reads the source once more and writes them sorted by row id.

places + kept -> [sort by place] -> join with the source, batch by batch -> [sort by row id] -> kept.parquet

Where the source has a column `row_id` that holds row ids (of an earlier run), they are replaced by this run's. Any
other column of that name is refused, since it would be lost.
"""

from __future__ import annotations

import io
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.errors import ColumnError, SourceError, StageError
from datapipe.storage.ahead import ahead
from datapipe.storage.parquet import ROW_GROUP_ROWS
from datapipe.storage.refused import place_keys
from datapipe.storage.rowid import ID_TYPE, ids_from_arrow
from datapipe.storage.sort import ExternalSorter, equal_ranges, regrouped

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path

    from datapipe.storage.source import Source, SourceBatch
    from datapipe.storage.stage import ShardInfo, StageDir

_ID_FIELD = pa.field("row_id", ID_TYPE, nullable=False)
_PLACES_MEMORY = 32 << 20
_GROUP_BYTES = 64 << 20


def kept_schema(source: pa.Schema) -> pa.Schema:
    """Return the schema of `kept.parquet`: row_id first, then the source's own columns.

    Raises:
        ColumnError: The source has a column `row_id` that does not hold row ids, or one that Parquet cannot hold.
    """
    if "row_id" in source.names and source.field("row_id").type != ID_TYPE:
        found = source.field("row_id").type
        raise ColumnError(f"column 'row_id' of the source is {found}; rename it: kept.parquet has one of its own")
    schema = pa.schema([_ID_FIELD, *(field for field in source if field.name != "row_id")])
    if not _is_writable(schema):
        odd = next(field for field in schema if not _is_writable(pa.schema([field])))
        raise ColumnError(f"column {odd.name!r} is {odd.type}, which Parquet cannot hold; cast it, or leave it out")
    return schema


def export(
    source: Source,
    *,
    places: Iterable[pa.Table],
    kept: Iterable[pa.Table],
    out: StageDir,
    scratch: Path,
    name: str = "kept.parquet",
) -> ShardInfo:
    """Write the kept rows of `source`, sorted by row id, in bounded memory; nothing is done where the file is there.

    Row groups have 32,768 rows, or fewer (a power of two) where that many are larger than 64 MiB: the bytes depend on
    the kept rows alone.

    Args:
        source: As it was ingested; the caller has checked its digests.
        places: The places shards: row_id, file, row.
        kept: Tables aligned with those of `places`: row_id, kept.
        out: Where the file goes.
        scratch: Folder for the sorts, with room for the kept rows.
        name: Its name.

    Returns:
        What is said of the file.

    Raises:
        ColumnError: See `kept_schema`.
        StageError: `places` and `kept` are not of the same rows.
        SourceError: The source cannot be read, or lacks rows that were kept.
        OutputError: The file or the scratch files cannot be written.
    """
    done = out.done(name)
    if done is not None:
        return done
    schema = kept_schema(source.schema)
    with ExternalSorter(scratch / "rows") as rows:
        with ExternalSorter(scratch / "places", memory_bytes=_PLACES_MEMORY) as wanted:
            _sort_places(places, kept, wanted)
            _collect(source, wanted, rows, schema)
        group_rows = _group_rows(rows)
        ranges = equal_ranges(rows.range_count(rows=group_rows, nbytes=_GROUP_BYTES))
        with out.writer(name, schema) as writer:
            for table in regrouped((rows.read_range(*each)[1] for each in ranges), group_rows):
                writer.write(table)
    info = out.done(name)
    if info is None:
        raise StageError(f"{out.path / name} vanished while it was written")
    return info


def _is_writable(schema: pa.Schema) -> bool:
    try:
        pq.ParquetWriter(io.BytesIO(), schema).close()
    except pa.ArrowNotImplementedError:
        return False
    return True


def _sort_places(places: Iterable[pa.Table], kept: Iterable[pa.Table], wanted: ExternalSorter) -> None:
    """Put the ids of the kept rows into the order of the source."""
    for place, choice in zip(places, kept, strict=True):
        if not place["row_id"].equals(choice["row_id"]):
            raise StageError("places and kept are not aligned: they hold different rows, or in another order")
        chosen = place.filter(choice["kept"])
        if chosen.num_rows:
            keys = place_keys(chosen["file"].to_numpy(), chosen["row"].to_numpy())
            wanted.add(keys, np.zeros(len(keys), np.uint64), chosen.select(["row_id"]))


def _collect(source: Source, wanted: ExternalSorter, rows: ExternalSorter, schema: pa.Schema) -> None:
    """Read the source and hand the kept rows on, by row id."""
    if wanted.rows:
        with closing(ahead(_batches(source))) as batches:
            for batch in batches:
                _add_kept(batch, wanted, rows, schema)
    if rows.rows != wanted.rows:
        missing = f"{wanted.rows - rows.rows:,} of {wanted.rows:,} kept rows"
        raise SourceError(f"{missing} are no longer in the source: it has changed since it was ingested; run again")


def _batches(source: Source) -> Generator[SourceBatch, None, None]:
    yield from source.batches(rejected=lambda _: None)


def _add_kept(batch: SourceBatch, wanted: ExternalSorter, rows: ExternalSorter, schema: pa.Schema) -> None:
    keys = place_keys(batch.file, batch.rows + 1)
    found, names = wanted.read_range(int(keys[0]), int(keys[-1]) + 1)
    if not names.num_rows:
        return
    positions = np.searchsorted(keys, found[:, 0])
    there = keys[positions] == found[:, 0]
    row_ids = names["row_id"].filter(pa.array(there))
    own = batch.table.select(schema.names[1:]).take(pa.array(positions[there]))
    ids = ids_from_arrow(row_ids)
    rows.add(ids[:, 0], ids[:, 1], pa.table([row_ids, *own.columns], schema=schema))


def _group_rows(rows: ExternalSorter) -> int:
    """Rows of a row group: the largest power of two of at most 64 MiB on average, 32,768 at most."""
    times = -(-rows.payload_bytes * ROW_GROUP_ROWS // (max(rows.rows, 1) * _GROUP_BYTES))
    return max(ROW_GROUP_ROWS >> max(times - 1, 0).bit_length(), 1)
