"""The images of a source: in its cells or in files beside it, read in the order of the source.

    binary | struct(bytes, path) | string (a path) -> ImageFiles.read -> the image file | UnreadableImageError

A path is relative to the folder of the file that holds it. A path that leads out of that folder is refused: rows come
from anywhere, and must not make a run read what their author cannot. Nothing is decoded here; who knows images hands
in a check. Raises `ColumnError` for a column of another type.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa

from datapipe.errors import ColumnError, SourceError
from datapipe.storage.refused import place_keys
from datapipe.storage.rowid import ID_BYTES
from datapipe.storage.sort import ExternalSorter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from datapipe.storage.source import Source

    ImageCheck: TypeAlias = Callable[[bytes], tuple[str, str] | None]
    """Reason and detail where an image file cannot be used, else None; called from several threads."""
    ImageRow: TypeAlias = tuple[dict[str, Any], Callable[[], bytes]]
    """Columns of a row, and a function that reads its image."""

__all__ = ["ImageFiles", "ImagesByPlace", "UnreadableImageError", "check_image_type", "content_key"]

_PLACES_MEMORY = 32 << 20


class UnreadableImageError(SourceError):
    """The image of a row cannot be read.

    Attributes:
        reason: `null_image`, `image_missing`, `image_outside` or `too_large`.
        detail: What was found, and what to do.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def check_image_type(column: pa.Field) -> None:
    """Raise `ColumnError` unless a column can hold images."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_string(kind):
        return
    if pa.types.is_struct(kind) and kind.names:
        fields = {field.name: field.type for field in kind}
        bytes_, path = fields.get("bytes"), fields.get("path")
        usable = (bytes_ is None or pa.types.is_binary(bytes_) or pa.types.is_null(bytes_)) and (
            path is None or pa.types.is_string(path) or pa.types.is_null(path)
        )
        if usable and (bytes_ is not None or path is not None):
            return
    raise ColumnError(
        f"image column {column.name!r} is {kind}; it must hold image files (binary), paths to them (string), "
        "or structs of both (bytes, path)"
    )


def content_key(data: bytes) -> bytes:
    """Name an image file by its content: blake2b-128, 16 bytes. Equal files have equal keys."""
    return hashlib.blake2b(data, digest_size=ID_BYTES).digest()


class ImageFiles:
    """The image files of a column.

    Args:
        source: Whose column it is.
        column: Its name.
        most: Bytes of the largest image file; a larger one is not read.
        check: Decides whether a file can be used as an image.
        threads: Files that are checked at a time.
    """

    def __init__(
        self, source: Source, column: str, *, most: int, check: ImageCheck | None = None, threads: int = 1
    ) -> None:
        self.source, self.column = source, column
        self._most, self._check, self._threads = most, check, threads

    def read(self, value: Any, *, file: int) -> bytes:
        """Return the image of a row.

        Args:
            value: What stands in the column, as a Python value.
            file: Index of the source's file.

        Raises:
            UnreadableImageError: There is none, or it lies where it cannot be read.
        """
        data, path = _parts(value)
        if data is None and path is None:
            raise UnreadableImageError("null_image", f"column {self.column!r} is null")
        if data is None:
            data = self._read_file(str(path), file)
        if len(data) > self._most:
            raise UnreadableImageError("too_large", self._large(f"{len(data):,}"))
        return data

    def keys(self, column: pa.ChunkedArray, *, file: int) -> list[bytes | tuple[str, str]]:
        """Return the content key of each image that can be used, and reason and detail of each other, in row order."""

        def key(value: Any) -> bytes | tuple[str, str]:
            try:
                data = self.read(value, file=file)
            except UnreadableImageError as found:
                return found.reason, found.detail
            fault = self._check(data) if self._check is not None else None
            return content_key(data) if fault is None else (fault[0], f"column {self.column!r}: {fault[1]}")

        values = column.to_pylist()
        if self._threads == 1:
            return [key(value) for value in values]
        with ThreadPoolExecutor(self._threads, "images") as pool:
            return list(pool.map(key, values))

    def _read_file(self, path: str, file: int) -> bytes:
        told = f"column {self.column!r}: the image {path!r}"
        place = self.source.beside(file, path)
        if place is None:
            folder = "leads out of the folder of its source file; put images there and name them by relative paths"
            raise UnreadableImageError("image_outside", f"{told} {folder}")
        try:
            size = place.regular_size()
            if size is None:
                raise UnreadableImageError("image_missing", f"{told} is not there, or is no file")
            if size > self._most:
                raise UnreadableImageError("too_large", self._large(f"{size:,}"))
            with place.open() as stream:
                return stream.read(self._most + 1)
        except OSError as error:
            raise UnreadableImageError("image_missing", f"{told} cannot be read: {error}") from error

    def _large(self, size: str) -> str:
        return f"column {self.column!r} holds an image of {size} bytes, more than max_cell_bytes={self._most:,}"


class ImagesByPlace:
    """Chosen rows of a source in the order of the source, each with its image. A context manager: it sorts on disk.

    Args:
        files: The column.
        places: Tables of row_id, file, row and any further columns, in any order; rows of the images that are wanted.
        scratch: Folder for the sort, with room for `places`.
    """

    def __init__(self, files: ImageFiles, places: Iterable[pa.Table], scratch: Path) -> None:
        self._files = files
        self._wanted = ExternalSorter(scratch, memory_bytes=_PLACES_MEMORY)
        self._places = places

    def __enter__(self) -> Self:
        for table in self._places:
            if table.num_rows:
                keys = place_keys(table["file"].to_numpy(), table["row"].to_numpy())
                self._wanted.add(keys, np.zeros(len(keys), np.uint64), table)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wanted.__exit__(kind, error, trace)

    def __iter__(self) -> Iterator[ImageRow]:
        """Yield the columns of each wanted row, and a function that reads its image.

        Reading stops after the last wanted row. The function raises `UnreadableImageError`.
        """
        left = self._wanted.rows
        if not left:
            return
        for batch in self._files.source.batches([self._files.column], rejected=lambda _: None):
            keys = place_keys(batch.file, batch.rows + 1)
            found, rows = self._wanted.read_range(int(keys[0]), int(keys[-1]) + 1)
            if not rows.num_rows:
                continue
            positions = np.searchsorted(keys, found[:, 0])
            there = keys[np.minimum(positions, len(keys) - 1)] == found[:, 0]
            values = batch.table[self._files.column].take(pa.array(positions[there])).to_pylist()
            records = rows.filter(pa.array(there)).to_pylist()
            for record, value in zip(records, values, strict=True):
                yield record, _Reading(self._files, value, batch.file)
            left -= len(records)
            if left <= 0:
                return


class _Reading:
    """Reads one image when it is called."""

    __slots__ = ("_file", "_files", "_value")

    def __init__(self, files: ImageFiles, value: Any, file: int) -> None:
        self._files, self._value, self._file = files, value, file

    def __call__(self) -> bytes:
        return self._files.read(self._value, file=self._file)


def _parts(value: Any) -> tuple[bytes | None, str | None]:
    """Bytes and path of a value of the column."""
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (value, None) if isinstance(value, bytes) else (None, value)
