"""The one way to read rows: anything tabular in, batches of one schema out, with every record's place.

paths, folders, globs, URIs, saved datasets, Polars frames -> open_source -> Source.batches() -> SourceBatch

`SourceError` is raised for what cannot be read at all, `LimitError` for what would cost too much, `ColumnError` for a
column that is not there. A single record that cannot be used is a `Rejected`, and reading goes on.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from datapipe.errors import SourceError
from datapipe.storage.formats.base import Rejected, Source, SourceBatch, SourceFile
from datapipe.storage.formats.files import format_of, locate
from datapipe.storage.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

__all__ = ["Limits", "Rejected", "Source", "SourceBatch", "SourceFile", "open_source", "scan"]

_DEFAULT = Limits()


def open_source(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | pl.DataFrame | pl.LazyFrame,
    *,
    limits: Limits = _DEFAULT,
    text_columns: Sequence[str] = (),
) -> Source:
    """Find the files of a source and its schema.

    Formats: Parquet, CSV and TSV, JSON Lines (.jsonl, .ndjson, .json), one JSON array of objects (.json), Arrow IPC
    files and streams, folders of `Dataset.save_to_disk`; CSV and JSON also with .gz or .zst. The types of CSV and JSON
    follow from all values of all files, which takes one pass over them.

    Args:
        source: A path, a folder or glob (files sorted by name; hidden ones and those whose name starts with "_" are
            left out), a URI of any fsspec protocol, a sequence of these, or a Polars frame.
        limits: What the source may cost.
        text_columns: Columns that are strings: CSV infers no type for them, and a JSON record with another value there
            is rejected. Columns of typed formats keep their type.

    Raises:
        SourceError: Nothing is there, nothing is in it, formats are mixed or unknown, or a file is damaged.
        LimitError: The source exceeds the limits.
        MissingExtraError: The package for a URI's protocol is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_files([source], limits, text_columns)
    import polars as pl

    if isinstance(source, (pl.DataFrame, pl.LazyFrame)):
        from datapipe.storage.formats.frame import FrameSource

        return FrameSource(source, limits=limits, text_columns=text_columns)
    paths: list[Any] = list(source)
    if not paths:
        raise SourceError("the source names no files")
    odd = next((path for path in paths if not isinstance(path, (str, os.PathLike))), None)
    if odd is not None:
        raise SourceError(
            f"a source is a path, a sequence of paths or a Polars frame; this one holds {type(odd).__name__}"
        )
    return _open_files(paths, limits, text_columns)


def more_files(before: Sequence[str], source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return the files `before` and, after them, those of `source` that are not among them.

    Raises:
        SourceError: As for `open_source`.
    """
    asked = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    return [*before, *(place.uri for place in locate(asked) if place.uri not in set(before))]


def scan(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | pl.DataFrame | pl.LazyFrame,
    *,
    limits: Limits = _DEFAULT,
    id_column: str | None = None,
    text_columns: Sequence[str] = (),
) -> pl.LazyFrame:
    """Return the rows of a source as a LazyFrame, with the `row_id` that ingest gives them as a last column.

    Nothing but footers and, for CSV and JSON Lines, the types is read before the frame is collected; projections and
    predicates are applied batch by batch. Ids of content need all columns, and 24 bytes a row to number duplicates.

    Args:
        source: As for `open_source`.
        limits: What the source may cost.
        id_column: Column whose values identify the rows; None takes the rows' content.
        text_columns: As for `open_source`.

    Raises:
        SourceError: As for `open_source`; while collecting, a record cannot be decoded.
        ColumnError: `id_column` is not in the source, or the source has a column `row_id` of its own.
        RowIdError: While collecting, two rows have the same value in `id_column`.
    """
    from datapipe.storage.formats.lazy import lazy_rows

    return lazy_rows(open_source(source, limits=limits, text_columns=text_columns), id_column=id_column)


def _open_files(sources: list[str | os.PathLike[str]], limits: Limits, text_columns: Sequence[str]) -> Source:
    places = locate(sources)
    kind = format_of(places)
    if kind == "parquet":
        from datapipe.storage.formats.parquet_ import ParquetSource

        return ParquetSource(places, limits=limits, text_columns=text_columns)
    if kind == "csv":
        from datapipe.storage.formats.csv_ import CsvSource

        return CsvSource(places, limits=limits, text_columns=text_columns)
    if kind == "jsonl":
        from datapipe.storage.formats.jsonl import JsonlSource

        return JsonlSource(places, limits=limits, text_columns=text_columns)
    from datapipe.storage.formats.arrow_ipc import ArrowSource

    return ArrowSource(places, limits=limits, text_columns=text_columns)
