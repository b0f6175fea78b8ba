"""One way to write Parquet, so that the same table gives the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    import pyarrow.parquet as pq

ROW_GROUP_ROWS = 32_768
"""Rows in a row group: 16-64 k reads fast and bounds a reader's memory."""


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet writer with fixed options.

    Identifiers, vectors and scores do not compress and are not searched by value: no dictionary and no statistics for
    them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = [f.name for f in schema if pa.types.is_fixed_size_binary(f.type) or pa.types.is_floating(f.type)]
    coded = [f.name for f in schema if f.name not in plain and not pa.types.is_nested(f.type)]
    compression: dict[str, str] = {f.name: "none" if f.name in plain else "zstd" for f in schema}
    options: dict[str, Any] = {"use_dictionary": coded or False, "write_statistics": coded or False, "version": "2.6"}
    if any(pa.types.is_nested(f.type) for f in schema):
        return pq.ParquetWriter(path, schema, compression="zstd", **options)
    return pq.ParquetWriter(path, schema, compression=compression, **options)


def write_table(writer: pq.ParquetWriter, table: pa.Table) -> None:
    """Write `table` in row groups of `ROW_GROUP_ROWS`; an empty table leaves an empty file."""
    if table.num_rows:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
