"""Columns of plain numbers in scratch files: written once, read in chunks as often as a selection needs them."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from datapipe.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

CHUNK_ROWS = 1 << 18


class Spool:
    """Append-only columns of equal length, one file each; memory: one chunk. Leaving the context deletes the files.

    Args:
        folder: Scratch folder, made if missing.
        columns: Name and numpy dtype of each column.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Any]) -> None:
        self._folder = folder
        self._types = {name: np.dtype(kind) for name, kind in columns.items()}
        self._files: dict[str, IO[bytes]] = {}
        self.rows = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The columns."""
        return tuple(self._types)

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._files = {name: self._path(name).open("w+b") for name in self._types}
        except OSError as error:
            raise OutputError(f"cannot open scratch files in {self._folder}: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, file in self._files.items():
            file.close()
            self._path(name).unlink(missing_ok=True)
        self._folder.rmdir()

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append rows; every column is given, all of one length.

        Raises:
            OutputError: A scratch file cannot be written.
        """
        try:
            for name, file in self._files.items():
                file.write(np.ascontiguousarray(columns[name], self._types[name]).data)
        except OSError as error:
            raise OutputError(f"cannot write scratch files in {self._folder}: {error.strerror}") from error
        self.rows += len(next(iter(columns.values())))

    def chunks(self, *names: str) -> Iterator[tuple[NDArray[Any], ...]]:
        """Yield the named columns in the order of rows, at most `CHUNK_ROWS` at a time."""
        for file in self._files.values():
            file.flush()
        for start in range(0, self.rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, self.rows - start)
            yield tuple(self._read(name, start, count) for name in names)

    def _read(self, name: str, start: int, count: int) -> NDArray[Any]:
        kind, file = self._types[name], self._files[name]
        file.seek(start * kind.itemsize)
        values: NDArray[Any] = np.frombuffer(file.read(count * kind.itemsize), kind)
        return values

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.column"
