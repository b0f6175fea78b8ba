"""A file that can be opened, here or in a remote store, and the formats that suffixes stand for."""

from __future__ import annotations

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
