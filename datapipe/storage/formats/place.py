"""A file that can be opened, here or in a remote store, and the formats that suffixes stand for."""

from __future__ import annotations

import os
import posixpath
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

__all__ = ["COMPRESSIONS", "FORMATS", "Place"]

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""Format by suffix."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Codec by suffix, for CSV and JSONL."""


@dataclass(frozen=True)
class Place:
    """A file that can be opened.

    Attributes:
        uri: As messages and manifests name it.
        size: Bytes.
        stamp: Changes when the content changes (mtime in nanoseconds; a remote store's own mark); None if unknown.
        path: Path in `filesystem`, or on this machine.
        filesystem: An fsspec filesystem; None on this machine.
    """

    uri: str
    size: int
    stamp: str | None
    path: str
    filesystem: Any = None

    def open(self) -> IO[bytes]:
        """Open for reading bytes, seekable."""
        if self.filesystem is None:
            return Path(self.path).open("rb")
        return cast("IO[bytes]", self.filesystem.open(self.path, "rb"))

    @property
    def suffixes(self) -> tuple[str, str]:
        """(suffix, compression suffix), lower case; the latter is empty where the file is not compressed."""
        name = PurePosixPath(self.path.lower())
        if name.suffix in COMPRESSIONS:
            return PurePosixPath(name.stem).suffix, name.suffix
        return name.suffix, ""

    def beside(self, path: str) -> Place | None:
        """The file that a path relative to this file's folder names, there or not; None where it leads out of it.

        What links there are in the folder is up to its owner: they are followed.
        """
        if "\0" in path or "://" in path:
            return None
        folder = posixpath.dirname(self.path if self.filesystem is not None else os.path.abspath(self.path))  # noqa: PTH100
        found = posixpath.normpath(posixpath.join(folder, path))
        if not PurePosixPath(found).is_relative_to(folder or "."):
            return None
        uri = found if self.filesystem is None else f"{self.uri.split('://', 1)[0]}://{found.lstrip('/')}"
        return Place(uri, 0, None, found, self.filesystem)

    def regular_size(self) -> int | None:
        """Bytes of the file now; None where there is none, or it is a folder, a pipe or a device."""
        try:
            if self.filesystem is None:
                facts = Path(self.path).stat()
                return facts.st_size if stat.S_ISREG(facts.st_mode) else None
            known = self.filesystem.info(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return None if known["type"] == "directory" else int(known.get("size") or 0)
