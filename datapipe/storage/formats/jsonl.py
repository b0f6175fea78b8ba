"""JSON Lines, or one JSON array, in two passes of bounded memory: one finds the columns' types, one reads.

lines -> objects (Python's parser, the reference) -> columns; blocks without surprises go through Arrow's parser

A record's number is its line number, in an array its place; blank lines are no records. A name that a record lacks is
null there.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.json as arrow_json

from datapipe.errors import SourceError
from datapipe.storage.formats.base import BATCH_BYTES, Source, readable
from datapipe.storage.formats.cells import row_width
from datapipe.storage.formats.dialects import LineDialect
from datapipe.storage.formats.files import open_text, text_start
from datapipe.storage.formats.json_array import ArrayLines
from datapipe.storage.formats.objects import JSON_NAMES, decoded, json_text
from datapipe.storage.formats.records import Block, Damaged, read_records
from datapipe.storage.formats.shapes import ObjectShape, fitted
from datapipe.storage.limits import check_columns, check_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapipe.storage.arrays import Int64
    from datapipe.storage.formats.base import Refuse
    from datapipe.storage.formats.place import Place
    from datapipe.storage.limits import Limits

__all__ = ["JsonlSource"]

_SHOWN = 40


class JsonlSource(Source):
    """Rows of JSON Lines files.

    Args:
        places: The files.
        limits: See `Limits`.
        text_columns: Columns that are strings; a record that holds anything else there is rejected as "wrong_type".

    Raises:
        SourceError: No file holds a record that can be read.
        LimitError: Too many columns or rows.
    """

    format = "jsonl"
    checks_text = False  # lines are checked before they are parsed

    def __init__(self, places: Sequence[Place], *, limits: Limits, text_columns: Sequence[str] = ()) -> None:
        super().__init__(places, limits=limits)
        self._text_columns = tuple(text_columns)
        self._starts: list[int] = []
        self._arrays: list[bool] = []
        self._surprising: list[set[int]] = []
        columns = 0

        def grow() -> None:
            nonlocal columns
            columns += 1
            check_columns(columns, uri=self.files[0].uri, limits=limits)

        shape = ObjectShape(grow)
        rows = accepted = 0
        for file, place in enumerate(places):
            with readable(place.uri):
                start, head = text_start(place, limits=limits)
                self._starts.append(start)
                self._arrays.append(place.suffixes[0] == ".json" and head.lstrip().startswith(b"["))
                records, good = self._survey(file, shape)
            rows += records
            accepted += good
        if not accepted:
            held = f"none of its {rows:,} lines can be read as a record" if rows else "nothing but blank lines"
            raise SourceError(f"{self.files[0].uri} holds no data: {held}")
        check_rows(rows, uri=self.files[0].uri, limits=limits)
        self.rows = rows
        types = shape.types()
        self._mixed = {name for name, kind in types.items() if kind is None}
        texts = dict.fromkeys((name for name in text_columns if name in types), pa.string())
        self.schema = pa.schema([(name, kind or pa.string()) for name, kind in {**types, **texts}.items()])

    def _survey(self, file: int, shape: ObjectShape) -> tuple[int, int]:
        """Add one file's records to `shape`, note surprising blocks; returns records, and good ones."""
        records = accepted = 0
        surprising: set[int] = set()
        for number, found in self._found(file):
            if isinstance(found, Damaged):
                records += 1
                continue
            refused: list[int] = []
            good, _ = self._objects(found, lambda ordinal, *_, refused=refused: refused.append(ordinal))
            shape.add(good)
            accepted += len(good)
            records += len(good) + len(refused)
            if refused:
                surprising.add(number)
        self._surprising.append(surprising)
        return records, accepted

    def _raw(self, file: int, schema: pa.Schema, refuse: Refuse) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        most = max(1, BATCH_BYTES // row_width(schema))
        plain = self._mixed.isdisjoint(schema.names) and not any(_holds_null_lists(field.type) for field in schema)
        for number, found in self._found(file):
            if isinstance(found, Damaged):
                refuse(found.ordinal, found.reason, found.detail, found.content)
                continue
            for block in _pieces(found, most):
                quick = _quick(block, schema) if plain and number not in self._surprising[file] else None
                yield from [quick] if quick is not None else self._slow(block, schema, refuse)

    def _slow(self, block: Block, schema: pa.Schema, refuse: Refuse) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        """The reference: every line for itself."""
        good, ordinals = self._objects(block, refuse)
        if not good:
            return
        columns = []
        for field in schema:
            values = [record.get(field.name) for record in good]
            if field.name in self._mixed and field.name not in self._text_columns:
                values = [None if value is None else json_text(value) for value in values]
            columns.append(pa.array([fitted(value, field.type) for value in values], field.type))
        yield pa.RecordBatch.from_arrays(columns, schema=schema), np.array(ordinals, np.int64)

    def _objects(self, block: Block, refuse: Refuse) -> tuple[list[dict[str, Any]], list[int]]:
        """The good records of a block, and their ordinals."""
        good, ordinals = [], []
        lines = None
        for index, found in enumerate(decoded(block.data, max_depth=self._limits.max_depth)):
            if found is None:
                continue
            reason, wrong = ("undecodable", found) if isinstance(found, str) else ("wrong_type", self._wrong(found))
            if wrong is None and not isinstance(found, str):
                good.append(found)
                ordinals.append(block.first + index)
            elif wrong is not None:
                lines = lines or list(block.records())
                refuse(block.first + index, reason, wrong, lines[index].rstrip(b"\r\n"))
        return good, ordinals

    def _wrong(self, record: dict[str, Any]) -> str | None:
        """Why a record is refused for the type of a text column, or None."""
        for name in self._text_columns:
            value = record.get(name)
            if value is not None and type(value) is not str:
                return f"column {name!r} holds {JSON_NAMES[type(value)]}, no string: {json_text(value)[:_SHOWN]}"
        return None

    def _found(self, file: int) -> Iterator[tuple[int, Block | Damaged]]:
        opened = partial(_open_lines if self._arrays[file] else open_text, self._places[file], limits=self._limits)
        longest = self._limits.max_line_bytes
        return enumerate(read_records(opened, LineDialect(), max_bytes=longest, start=self._starts[file]))


def _quick(block: Block, schema: pa.Schema) -> tuple[pa.RecordBatch, Int64] | None:
    """Parse a block with Arrow, strictly by the schema; None where that does not give a row a line."""
    try:
        table = arrow_json.read_json(
            pa.BufferReader(block.data),
            read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block.data) + 1),
            parse_options=arrow_json.ParseOptions(
                explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowInvalid:
        return None
    ordinals = block.first + np.arange(len(block.ends))
    if table.num_rows != len(block.ends):
        filled = np.fromiter((bool(line.strip()) for line in block.records()), np.bool_, len(block.ends))
        ordinals = ordinals[filled]
    batches = table.combine_chunks().to_batches()
    if len(batches) != 1 or batches[0].num_rows != len(ordinals):
        return None
    return batches[0], ordinals


def _holds_null_lists(kind: Any) -> bool:
    """Whether a list in the type has nulls alone, which Arrow's parser counts by rows instead of by elements."""
    inner = [kind.field(index).type for index in range(kind.num_fields)]
    return (pa.types.is_list(kind) and pa.types.is_null(inner[0])) or any(map(_holds_null_lists, inner))


def _pieces(block: Block, most: int) -> Iterator[Block]:
    """Cut a block to at most `most` records a piece."""
    for begin in range(0, len(block.ends), most):
        ends = block.ends[begin : begin + most]
        low = int(block.ends[begin - 1]) if begin else 0
        yield Block(block.data[low : ends[-1]], ends - low, block.first + begin)


@contextmanager
def _open_lines(place: Place, start: int = 0, *, limits: Limits) -> Iterator[IO[bytes]]:
    """Open a JSON array as lines; `start` is where its bracket is, or blanks before it."""
    with open_text(place, start, limits=limits) as stream:
        yield cast("IO[bytes]", ArrayLines(stream))
