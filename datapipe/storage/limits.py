"""What a source may cost: caps that are checked before memory is spent, so that a hostile or broken file is refused.

A few kilobytes of Parquet can decode to gigabytes, and the footer need not say so. Therefore three lines of defence:
`check_footer` before the first page is read, `DecodedMeter` while batches stream, and `max_cell_bytes` a value.
`LimitError` names the file, the limit and the way to raise it; a value or line that is too large rejects its record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datapipe.errors import LimitError, SourceError

__all__ = [
    "DecodedMeter",
    "Limits",
    "check_columns",
    "check_footer",
    "check_footer_bytes",
    "check_group",
    "check_rows",
    "decoded_bytes",
    "leaf_width",
]

_FROM_ENVIRONMENT = frozenset({"max_columns", "max_cell_bytes", "max_expansion", "decoded_floor"})
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8}
_OFFSET_BYTES = 4
_BYTE_ARRAY = "BYTE_ARRAY"
_FIXED_BYTES = "FIXED_LEN_BYTE_ARRAY"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Caps on one source.

    Attributes:
        max_rows: Rows of the whole source; more are refused when it is opened.
        max_columns: Columns, counting the leaves of structs; more are refused. Each costs memory in every batch.
        max_row_group_rows: Rows of one Parquet row group or Arrow record batch; more refuse the file.
        max_row_group_bytes: Uncompressed bytes of one row group or record batch; more refuse the file. A compressed
            Arrow record batch is decoded whole, so this also bounds the memory that one takes.
        max_footer_bytes: Bytes of a Parquet footer or CSV header; more refuse the file. The footer is held in memory.
        max_cell_bytes: Decoded bytes of one value; a record that holds a larger one is rejected as "too_large".
        max_line_bytes: Bytes of one line of JSON or one CSV record; a longer one is rejected as "too_large".
            A line is held whole, and as objects takes up to some twenty times its bytes.
        max_depth: Levels of lists and objects in a JSON line; a deeper one is rejected as "undecodable".
        max_expansion: Decoded bytes over bytes of the file; more refuse the file, once above `decoded_floor`.
        decoded_floor: Decoded bytes of a file below which `max_expansion` refuses nothing.
    """

    max_rows: int = 10_000_000_000
    max_columns: int = 10_000
    max_row_group_rows: int = 1 << 27
    max_row_group_bytes: int = 8 << 30
    max_footer_bytes: int = 64 << 20
    max_cell_bytes: int = 16 << 20
    max_line_bytes: int = 32 << 20
    max_depth: int = 64
    max_expansion: float = 100.0
    decoded_floor: int = 1 << 30


class DecodedMeter:
    """Adds up what one file has decoded to, and refuses the file when that is out of proportion.

    Args:
        uri: The file, for the message.
        file_bytes: Its size on disk.
        limits: `max_expansion` and `decoded_floor` apply.
    """

    def __init__(self, uri: str, file_bytes: int, limits: Limits) -> None:
        self.decoded = 0
        self.allowed = max(limits.decoded_floor, int(limits.max_expansion * file_bytes))
        self._uri = uri
        self._file_bytes = file_bytes
        self._limits = limits

    def add(self, nbytes: int) -> None:
        """Count `nbytes` that are about to be, or just were, decoded.

        Raises:
            LimitError: The file has decoded to more than max(decoded_floor, max_expansion * file bytes).
        """
        self.decoded += nbytes
        if self.decoded > self.allowed:
            raise LimitError(
                f"{self._uri}: its {self._file_bytes:,} bytes decode to more than {self.allowed:,} bytes, "
                f"beyond max_expansion={self._limits.max_expansion:g} "
                f"and decoded_floor={self._limits.decoded_floor:,}; {_remedy('max_expansion')}"
            )


def check_columns(columns: int, *, uri: str, limits: Limits) -> None:
    """Refuse a source of more than `max_columns` columns.

    Raises:
        LimitError: There are more; names both numbers.
    """
    _at_most(columns, "max_columns", "columns", uri=uri, limits=limits)


def check_rows(rows: int, *, uri: str, limits: Limits) -> None:
    """Refuse a source of more than `max_rows` rows.

    Raises:
        LimitError: There are more; names both numbers.
    """
    _at_most(rows, "max_rows", "rows", uri=uri, limits=limits)


def check_group(rows: int, nbytes: int, *, uri: str, limits: Limits) -> None:
    """Refuse a row group or record batch that is too large.

    Raises:
        LimitError: It has more than `max_row_group_rows` rows or `max_row_group_bytes` uncompressed bytes.
    """
    _at_most(rows, "max_row_group_rows", "rows in one row group", uri=uri, limits=limits)
    _at_most(nbytes, "max_row_group_bytes", "uncompressed bytes in one row group", uri=uri, limits=limits)


def check_footer_bytes(nbytes: int, *, uri: str, limits: Limits) -> None:
    """Refuse a footer or header that is too large.

    Raises:
        LimitError: It has more than `max_footer_bytes` bytes.
    """
    _at_most(nbytes, "max_footer_bytes", "bytes of footer or header", uri=uri, limits=limits)


def check_footer(metadata: Any, *, uri: str, limits: Limits, file_bytes: int | None = None) -> None:
    """Refuse a Parquet file by its footer alone, before a page is read.

    What a leaf of fixed width decodes to follows from its number of values. A leaf of strings may decode to more than
    its uncompressed size (a dictionary, prefixes), which only reading shows: see `DecodedMeter`.

    Args:
        metadata: `pyarrow.parquet.FileMetaData`.
        uri: The file, for the message.
        limits: Everything but the caps on cells and lines applies.
        file_bytes: Size of the file; left out, the compressed bytes that the footer states.

    Raises:
        LimitError: A cap is exceeded; names the file, the cap and how to raise it.
        SourceError: The footer contradicts itself.
    """
    check_rows(metadata.num_rows, uri=uri, limits=limits)
    check_columns(metadata.num_columns, uri=uri, limits=limits)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if metadata.num_rows < 0 or sum(group.num_rows for group in groups) != metadata.num_rows:
        raise SourceError(f"{uri} is damaged: its row groups do not add up to its {metadata.num_rows:,} rows")
    widths = [leaf_width(metadata.schema.column(index)) for index in range(metadata.num_columns)]
    decoded = compressed = 0
    for group in groups:
        check_group(group.num_rows, group.total_byte_size, uri=uri, limits=limits)
        chunks = [group.column(index) for index in range(metadata.num_columns)]
        nbytes = sum(decoded_bytes(chunk, width) for chunk, width in zip(chunks, widths, strict=True))
        check_group(group.num_rows, nbytes, uri=uri, limits=limits)
        decoded += nbytes
        compressed += sum(chunk.total_compressed_size for chunk in chunks)
    size = compressed + metadata.serialized_size if file_bytes is None else file_bytes
    DecodedMeter(uri, size, limits).add(decoded)


def decoded_bytes(chunk: Any, width: int | None) -> int:
    """Bytes that a column chunk decodes to, by the footer: exact for values of `width` bytes, a floor for strings."""
    if width is None:
        return int(max(chunk.total_uncompressed_size, _OFFSET_BYTES * chunk.num_values))
    return int(width * chunk.num_values)


def leaf_width(leaf: Any) -> int | None:
    """Bytes of one decoded value; None for strings and bytes of any length."""
    if leaf.physical_type == _BYTE_ARRAY:
        return None
    return int(leaf.length) if leaf.physical_type == _FIXED_BYTES else _WIDTHS[leaf.physical_type]


def _at_most(found: int, limit: str, what: str, *, uri: str, limits: Limits) -> None:
    allowed = getattr(limits, limit)
    if found > allowed:
        raise LimitError(f"{uri}: {found:,} {what}, more than {limit}={allowed:,}; {_remedy(limit)}")


def _remedy(limit: str) -> str:
    environment = f" or DATAPIPE_LIMITS__{limit.upper()}=…" if limit in _FROM_ENVIRONMENT else ""
    return f"if you trust the file, raise it: Limits({limit}=…){environment}"
