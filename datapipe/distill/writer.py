"""Soft labels written to one Parquet file, in the order of their rows.

    tables of layout.py, ascending row ids -> SoftLabelWriter -> row groups of fixed size -> soft_labels.parquet

Raises `SoftLabelError` for rows out of order or of another header, `OutputError` for a disk that cannot be written.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.distill.layout import row_bytes, schema_of
from datapipe.errors import SoftLabelError
from datapipe.storage.atomic import replacing
from datapipe.storage.rowid import ids_from_arrow, ids_to_hex

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from datapipe.distill.header import SoftLabelHeader
    from datapipe.storage.arrays import Ids

__all__ = ["SoftLabelWriter", "first_fall", "group_rows"]

_HASHES = {"row_id", "tokens_digest"}
_NUMBERS = {"teacher_ids", "teacher_log_probabilities", "teacher_tail", "position_entropy"}
_GROUP_BYTES = 8 << 20
_LEAST_GROUP, _GREATEST_GROUP = 1024, 32_768


def group_rows(header: SoftLabelHeader) -> int:
    """Return the rows of a row group: about 8 MiB of rows, a power of two within 1,024 … 32,768; 1,024 for tokens."""
    if header.level == "token":
        return _LEAST_GROUP
    fitting = max(1, _GROUP_BYTES // row_bytes(header)).bit_length() - 1
    return min(max(1 << fitting, _LEAST_GROUP), _GREATEST_GROUP)


class SoftLabelWriter:
    """Writes a store, whole or not at all; a context manager.

    The same tables give the same bytes, however they are cut. Memory: one row group and one table.

    Args:
        path: The Parquet file; one that is there is replaced once the block ends without error.
        header: What the labels are.

    Attributes:
        rows: Written so far.
    """

    def __init__(self, path: Path, header: SoftLabelHeader) -> None:
        self.rows = 0
        self._path, self._header, self._schema = path, header, schema_of(header)
        self._group = group_rows(header)
        self._waiting: list[pa.Table] = []
        self._held = 0
        self._last: Ids | None = None
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self._path))
            numbers = [field.name for field in self._schema if not _is_bytes(field.type)]
            raw = _uncompressed(self._header)
            compression = {name: "none" if name in raw else "zstd" for name in self._schema.names}
            self._writer = stack.enter_context(
                pq.ParquetWriter(
                    temporary,
                    self._schema,
                    version="2.6",
                    compression=compression,
                    use_dictionary=False,
                    write_statistics=numbers,
                )
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._flush(everything=True)

    def write(self, table: pa.Table) -> None:
        """Append a table of `table_of`.

        Raises:
            SoftLabelError: Its schema or header is another, or its row ids do not ascend from those before.
        """
        if not table.schema.equals(self._schema, check_metadata=True):
            raise SoftLabelError(f"{self._path}: a table of another header or schema cannot be appended to it")
        ids = ids_from_arrow(table["row_id"])
        if not len(ids):
            return
        chain = ids if self._last is None else np.concatenate([self._last, ids])
        if (at := first_fall(chain)) is not None:
            raise SoftLabelError(
                f"{self._path}: row {ids_to_hex(chain[at + 1 : at + 2])[0]} comes after "
                f"{ids_to_hex(chain[at : at + 1])[0]}; rows must come once each, in the order of their ids"
            )
        self._last = ids[-1:]
        self.rows += len(ids)
        self._waiting.append(table)
        self._held += table.num_rows
        self._flush(everything=False)

    def _flush(self, *, everything: bool) -> None:
        if self._writer is None or not self._held or (self._held < self._group and not everything):
            return
        table = pa.concat_tables(self._waiting)
        whole = self._held if everything else self._held - self._held % self._group
        self._writer.write_table(table.slice(0, whole), row_group_size=self._group)
        self._waiting, self._held = [table.slice(whole)], self._held - whole


def _uncompressed(header: SoftLabelHeader) -> set[str]:
    """Columns that lie as they are: hashes; and, where a row is kilobytes, ids and float16 numbers.

    zstd takes 8 to 25 % off these and makes their reading two to five times as long; off counts it takes two thirds.
    """
    return _HASHES | _NUMBERS if header.level == "token" or header.wide else _HASHES


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def first_fall(row_ids: Ids) -> int | None:
    """Return the first row whose successor is not greater, None if all ascend."""
    high, low = row_ids[:, 0], row_ids[:, 1]
    rises = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return None if rises.all() else int(np.argmin(rises))
