"""Parquet: the footer is checked first, then row groups stream in batches whose size no string of the file can blow up.

footer -> check_footer -> a look at each row group's dictionaries -> batches -> the source's schema

A dictionary may hold one long string and point to it from millions of rows, and neither footer nor pages say how much
that is. So one row of each row group is read with dictionaries kept, which shows the longest string of each; a batch
then has so few rows that even the longest in every row stays bounded. Lists of strings, where one row may point to them
millions of times, keep their dictionaries until they have been weighed.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import accumulate
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.errors import SourceError
from datapipe.storage.formats.base import BATCH_BYTES, Source, readable
from datapipe.storage.formats.cells import cell_bytes, weighs_more_than_it_shows
from datapipe.storage.formats.structure import check_structure
from datapipe.storage.formats.types import plain_schema, unify
from datapipe.storage.limits import check_footer, check_footer_bytes, check_rows, decoded_bytes, leaf_width

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Int64
    from datapipe.storage.formats.base import Refuse
    from datapipe.storage.formats.place import Place
    from datapipe.storage.limits import Limits

__all__ = ["ParquetSource"]

_MOST_ROWS = 65_536
_AIM_BYTES = BATCH_BYTES * 9 // 10
"""Decoded bytes that a batch is cut for: most then need no further cut."""
_HARMLESS_BYTES = 1 << 20
_WORST_BYTES = 128 << 20
"""Decoded bytes of a batch in which every string is as long as the longest of its dictionary."""
_BUFFER_BYTES = 1 << 20
_TAIL_BYTES = 8
_MAGIC, _ENCRYPTED = b"PAR1", b"PARE"
_OFFSET_BYTES = 4
_PREFIXED = "DELTA_BYTE_ARRAY"


class ParquetSource(Source):
    """Rows of Parquet files.

    Args:
        places: The files.
        limits: See `Limits`.
        text_columns: Without effect where a column has a type; one that is null in all files becomes a string column.

    Raises:
        SourceError: A file is no Parquet file, or no file holds a row.
        LimitError: A footer exceeds the limits.
    """

    format = "parquet"

    def __init__(self, places: Sequence[Place], *, limits: Limits, text_columns: Sequence[str] = ()) -> None:
        super().__init__(places, limits=limits)
        schemas = []
        rows = 0
        for place in places:
            with readable(place.uri), _opened(place, limits) as file:
                check_footer(file.metadata, uri=place.uri, limits=limits, file_bytes=place.size)
                rows += file.metadata.num_rows
                schemas.append((place.uri, plain_schema(file.schema_arrow, uri=place.uri)))
        if not rows:
            raise SourceError(f"{self.files[0].uri} holds no rows")
        check_rows(rows, uri=self.files[0].uri, limits=limits)
        self.rows = rows
        self.schema = typed_texts(unify(schemas), text_columns)

    def _raw(self, file: int, schema: pa.Schema, refuse: Refuse) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        place = self._places[file]
        first = 0
        with _opened(place, self._limits) as parquet:
            wanted = set(schema.names)
            names = [name for name in parquet.schema_arrow.names if name in wanted]
            leaves = _leaves(parquet, names)
            coded = [leaf for leaf in leaves if leaf.is_bytes]
            keep = [leaf.path for leaf in coded]
            with _opened(place, self._limits, metadata=parquet.metadata, read_dictionary=keep) as dictionaries:
                for group in range(parquet.num_row_groups):
                    rows, weighed = _plan(parquet.metadata.row_group(group), group, leaves, dictionaries)
                    reader = dictionaries if weighed else parquet
                    for batch in reader.iter_batches(batch_size=rows, row_groups=[group], columns=names):
                        if any(weighs_more_than_it_shows(field.type) for field in batch.schema):
                            check_structure(batch, uri=place.uri)  # Arrow follows indices of any file
                        yield batch, first + np.arange(batch.num_rows)
                        first += batch.num_rows


def typed_texts(schema: pa.Schema, text_columns: Sequence[str]) -> pa.Schema:
    """Return the schema with text columns that hold nothing but nulls as strings."""
    for name in text_columns:
        place = schema.get_field_index(name)
        if place >= 0 and pa.types.is_null(schema.field(place).type):
            schema = schema.set(place, pa.field(name, pa.string()))
    return schema


class _Leaf:
    """A column of the file below all nesting."""

    def __init__(self, index: int, column: Any, *, is_repeated: bool) -> None:
        self.index = index
        self.path = column.path
        self.width = leaf_width(column)
        self.is_bytes = self.width is None
        self.is_repeated = is_repeated


def _leaves(parquet: pq.ParquetFile, names: list[str]) -> list[_Leaf]:
    wanted = set(names)
    columns = [parquet.schema.column(index) for index in range(len(parquet.schema))]
    return [
        _Leaf(index, column, is_repeated=column.max_repetition_level > 0)
        for index, column in enumerate(columns)
        if not wanted.isdisjoint(accumulate(column.path.split("."), "{}.{}".format))
    ]


def _plan(metadata: Any, group: int, leaves: list[_Leaf], dictionaries: pq.ParquetFile) -> tuple[int, bool]:
    """Rows of a batch of this row group, and whether its strings have to be weighed in their dictionaries."""
    total = max(1, metadata.num_rows)
    average = longest = 0.0
    weighed = False
    for leaf in leaves:
        chunk = metadata.column(leaf.index)
        average += decoded_bytes(chunk, leaf.width) / total + _OFFSET_BYTES * (leaf.is_bytes or leaf.is_repeated)
        if not leaf.is_bytes:
            continue
        # No string is longer than all bytes of the chunk together.
        if _PREFIXED in chunk.encodings or chunk.num_values * chunk.total_uncompressed_size <= _HARMLESS_BYTES:
            longest += chunk.total_uncompressed_size
        elif chunk.has_dictionary_page or chunk.dictionary_page_offset is not None:
            most, mean = _lengths(dictionaries, group, leaf)
            average += mean * chunk.num_values / total
            longest += most
            weighed |= leaf.is_repeated and most * chunk.num_values > _WORST_BYTES
    rows = min(_MOST_ROWS, _AIM_BYTES / max(average, 1.0), _WORST_BYTES / max(longest, 1.0))
    return max(1, int(rows)), weighed


def _lengths(dictionaries: pq.ParquetFile, group: int, leaf: _Leaf) -> tuple[int, float]:
    """Longest and mean length of the strings in one dictionary, by reading one row of it."""
    for batch in dictionaries.iter_batches(batch_size=1, row_groups=[group], columns=[leaf.path]):
        array = batch.column(0)
        while not pa.types.is_dictionary(array.type):
            array = array.values if hasattr(array, "values") else array.field(0)
        lengths = cell_bytes(array.dictionary)
        return (int(lengths.max()), float(lengths.mean())) if len(lengths) else (0, 0.0)
    return 0, 0.0


@contextmanager
def _opened(place: Place, limits: Limits, **options: Any) -> Iterator[pq.ParquetFile]:
    with place.open() as stream:
        _check_tail(stream, place, limits)
        file = stream if place.filesystem is not None else place.path
        # Pages are read as they are needed: whole row groups would be held otherwise.
        with pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES, **options) as parquet:
            yield parquet


def _check_tail(stream: IO[bytes], place: Place, limits: Limits) -> None:
    """Look at the last eight bytes: the footer's length and the magic."""
    if place.size > _TAIL_BYTES:
        stream.seek(place.size - _TAIL_BYTES)
        tail = stream.read(_TAIL_BYTES)
        if tail[4:] == _ENCRYPTED:
            raise SourceError(f"{place.uri} is an encrypted Parquet file; decrypt it first")
        if tail[4:] == _MAGIC:
            nbytes = int.from_bytes(tail[:4], "little")
            if nbytes <= place.size - _TAIL_BYTES:
                check_footer_bytes(nbytes, uri=place.uri, limits=limits)
                stream.seek(0)
                return
    raise SourceError(
        f"{place.uri} is no Parquet file: it does not end in {_MAGIC.decode()}; it is truncated or something else"
    )
