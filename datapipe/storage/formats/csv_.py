"""CSV and TSV in two passes of bounded memory: one finds the types of the columns over all values, one reads.

records -> fields (Arrow's parser) -> int64 | float64 | bool | string | null

An unquoted empty field is null, a quoted one is "". The header is the first line that is not blank. Blank lines are no
records, except in a file of one column, where they are nulls (that is how Polars writes them).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv

from datapipe.errors import SourceError
from datapipe.storage.formats.base import Source, readable
from datapipe.storage.formats.dialects import CsvDialect
from datapipe.storage.formats.files import open_text, text_start
from datapipe.storage.formats.kinds import Kind, from_strings, of_strings, scalar_type
from datapipe.storage.formats.records import Block, Damaged, read_records
from datapipe.storage.formats.types import unify
from datapipe.storage.limits import check_columns, check_footer_bytes, check_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Bool, Int64
    from datapipe.storage.formats.base import Refuse
    from datapipe.storage.formats.place import Place
    from datapipe.storage.limits import Limits

__all__ = ["CsvSource"]

_LONGEST_BREAK = 2  # bytes of "\r\n"


class CsvSource(Source):
    """Rows of CSV files, or of TSV files (suffix .tsv), which are CSV with tabs.

    Args:
        places: The files. Each has a header; a column that one lacks is null there.
        limits: See `Limits`.
        text_columns: Columns that are strings whatever they hold.

    Raises:
        SourceError: A file has no usable header, or no file holds a row that can be read.
        LimitError: Too many columns or rows.
    """

    format = "csv"
    checks_text = False  # records are checked before they are parsed

    def __init__(self, places: Sequence[Place], *, limits: Limits, text_columns: Sequence[str] = ()) -> None:
        super().__init__(places, limits=limits)
        self._headers = [_Header(place, limits) for place in places]
        kinds: dict[str, Kind] = {}
        rows = accepted = 0
        for file, header in enumerate(self._headers):
            check_columns(len(header.names), uri=self.files[file].uri, limits=limits)
            with readable(self.files[file].uri):
                records, good = self._survey(file, kinds, text_columns)
            rows += records
            accepted += good
        if not accepted:
            held = f"none of {rows:,} rows can be read" if rows else "a header and no rows"
            raise SourceError(f"{self.files[0].uri} holds no data: {held}")
        check_rows(rows, uri=self.files[0].uri, limits=limits)
        self.rows = rows
        found = {name: scalar_type(kind) or pa.string() for name, kind in kinds.items()}
        types = {**found, **dict.fromkeys(text_columns, pa.string())}
        self.schema = unify(
            [
                (place.uri, pa.schema([(name, types.get(name, pa.null())) for name in header.names]))
                for place, header in zip(places, self._headers, strict=True)
            ]
        )

    def _survey(self, file: int, kinds: dict[str, Kind], text_columns: Sequence[str]) -> tuple[int, int]:
        """Add the kinds of one file's values to `kinds`; returns its records, and those that can be read."""
        records = accepted = 0

        def count(*_refused: object) -> None:
            nonlocal records
            records += 1

        names = self._headers[file].names
        for batch, _ordinals in self._parsed(file, dict.fromkeys(names, pa.string()), count):
            records += batch.num_rows
            accepted += batch.num_rows
            open_ones = [
                name
                for name in names
                if name not in text_columns and scalar_type(kinds.get(name, Kind(0))) not in {pa.string(), None}
            ]
            if open_ones:
                for name, found in zip(open_ones, of_strings([batch.column(name) for name in open_ones]), strict=True):
                    kinds[name] = kinds.get(name, Kind(0)) | found
        return records, accepted

    def _raw(self, file: int, schema: pa.Schema, refuse: Refuse) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        held = self._headers[file].names
        wanted = {field.name: field.type for field in schema}
        kinds = {name: wanted[name] for name in held if name in wanted}
        # Arrow parses numbers; of everything else it is told that it is a string.
        types = {name: kind if _is_number(kind) else pa.string() for name, kind in kinds.items()}
        # Rows count, and are refused, also where the file has none of the columns asked for.
        for batch, ordinals in self._parsed(file, types or {held[0]: pa.string()}, refuse):
            if kinds:
                columns = [from_strings(batch.column(name), kind) for name, kind in kinds.items()]
                yield pa.RecordBatch.from_arrays(columns, names=list(kinds)), ordinals
            else:
                yield batch, ordinals

    def _parsed(
        self, file: int, types: dict[str, pa.DataType], refuse: Refuse
    ) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        """Yield the columns named in `types`, and the ordinals of their rows."""
        header = self._headers[file]
        blank = 0
        opened = partial(open_text, self._places[file], limits=self._limits)
        longest = self._limits.max_line_bytes
        for found in read_records(opened, header.dialect, max_bytes=longest, start=header.end):
            if isinstance(found, Damaged):
                refuse(found.ordinal - blank, found.reason, found.detail, found.content)
                continue
            skipped = _blank(found) if len(header.names) > 1 else np.zeros(len(found.ends), np.bool_)
            before = found.first - blank
            blank += int(skipped.sum())
            yield from self._rows(found, skipped, before, header, types, refuse)

    def _rows(
        self,
        block: Block,
        skipped: Bool,
        first: int,
        header: _Header,
        types: dict[str, pa.DataType],
        refuse: Refuse,
    ) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        data, ordinals = block.data, first + np.cumsum(~skipped) - 1
        bad = set(np.flatnonzero(skipped).tolist())
        if not _is_utf8(data):
            for index, record in enumerate(block.records()):
                if index not in bad and not _is_utf8(record):
                    refuse(int(ordinals[index]), "undecodable", "not UTF-8", record.rstrip(b"\r\n"))
                    bad.add(index)
        if bad:
            data, kept = block.without(bad)
            ordinals = ordinals[kept - block.first]
        if not data:
            return
        batch, wrong = _parse(data, header, types)
        if wrong:
            for index, fields, text in wrong:
                detail = f"{fields} fields instead of {len(header.names)}"
                refuse(int(ordinals[index]), "undecodable", detail, text.encode())
            ordinals = np.delete(ordinals, [index for index, _, _ in wrong])
        if batch is not None:
            yield batch, ordinals


class _Header:
    """Names of a file's columns, and the byte at which its data begin."""

    def __init__(self, place: Place, limits: Limits) -> None:
        self.dialect = CsvDialect(b"\t" if place.suffixes[0] == ".tsv" else b",")
        with readable(place.uri):
            self.end, _ = text_start(place, limits=limits)
            line = self._first_line(place, limits)
        check_footer_bytes(len(line), uri=place.uri, limits=limits)
        if not line or not _is_utf8(line):
            what = "its header is not UTF-8" if line else "it has no header"
            raise SourceError(f"{place.uri} is no CSV file: {what}")
        most = line.count(self.dialect.delimiter) + 1
        texts = {f"f{place}": pa.string() for place in range(most)}
        table = _read(line, self.dialect, types=texts, autogenerate_column_names=True)
        self.names = [row[0] or "" for row in table.to_pydict().values()]
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise SourceError(f"{place.uri}: two columns are called {twice!r}; rename one of them")

    def _first_line(self, place: Place, limits: Limits) -> bytes:
        """The first record that is not blank; `end` moves behind it."""
        opened = partial(open_text, place, limits=limits)
        for block in read_records(opened, self.dialect, max_bytes=limits.max_line_bytes, start=self.end):
            if isinstance(block, Damaged):
                return b""
            for line in block.records():
                self.end += len(line)
                if line.strip(b"\r\n"):
                    return line
        return b""


def _parse(
    data: bytes, header: _Header, types: dict[str, pa.DataType]
) -> tuple[pa.RecordBatch | None, list[tuple[int, int, str]]]:
    """Parse whole records; returns the good rows, and (position, number of fields, text) of each of the others."""
    wrong: list[tuple[int, int, str]] = []

    def skip(row: Any) -> str:
        wrong.append((row.number - 1, row.actual_columns, row.text))
        return "skip"

    table = _read(data, header.dialect, types=types, skip=skip, column_names=header.names, include=list(types))
    batches = table.combine_chunks().to_batches()
    return (batches[0] if batches else None), wrong


def _read(
    data: bytes,
    dialect: CsvDialect,
    *,
    types: dict[str, pa.DataType],
    skip: Any = None,
    include: Sequence[str] = (),
    **names: Any,
) -> pa.Table:
    # Rows are numbered only where one thread reads; the block is parsed at once.
    return arrow_csv.read_csv(
        pa.BufferReader(data),
        read_options=arrow_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, **names),
        parse_options=arrow_csv.ParseOptions(
            delimiter=dialect.delimiter.decode(),
            newlines_in_values=True,
            ignore_empty_lines=False,
            invalid_row_handler=skip,
        ),
        convert_options=arrow_csv.ConvertOptions(
            column_types=types,
            include_columns=include,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        ),
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _blank(block: Block) -> Bool:
    """Which records are nothing but a line break, bool (records,)."""
    blank: Bool = np.diff(block.ends, prepend=0) <= _LONGEST_BREAK
    starts = np.concatenate([[0], block.ends[:-1]])
    for index in np.flatnonzero(blank).tolist():
        blank[index] = not block.data[starts[index] : block.ends[index]].strip(b"\r\n")
    return blank


def _is_utf8(data: bytes) -> bool:
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    text = pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(data))
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
