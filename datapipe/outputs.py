"""A finished stage as the stages after it see it: its shards as tables, its facts, its digest.

The parts of a shard, one for each time that rows were added to a run, are read as one table. Raises `StageError` where
the files of a stage are no whole shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import StageError
from datapipe.storage.digest import digest_of
from datapipe.storage.stage import Manifest, ShardInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class StageOutput:
    """A finished stage, as the stages after it see it.

    Attributes:
        name: The stage's name.
        path: Its directory.
        manifest_name: The manifest's file name inside `path`.
        manifest: What the manifest says.
    """

    name: str
    path: Path
    manifest_name: str
    manifest: Manifest

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the stage counted."""
        return self.manifest.facts

    @property
    def digest(self) -> str:
        """Digest of all shards, in order."""
        return digest_of([shard.sha256 for shard in self.manifest.shards])

    @property
    def generations(self) -> int:
        """Parts of each shard: 1, and one more for each time that rows were added to the run."""
        return int(self.facts.get("generations", 1))

    def parts(self, family: str | None = None) -> tuple[ShardInfo, ...]:
        """The files of the shards, or of those of one family; the parts of a shard stand one after the other."""
        if family is None:
            return self.manifest.shards
        return tuple(shard for shard in self.manifest.shards if shard.name.startswith(f"{family}-"))

    def shards(self, family: str | None = None) -> tuple[ShardInfo, ...]:
        """The shards, or those of one family: `rows` has `rows-00000.parquet` and so on."""
        return tuple(_whole(parts) for parts in self._by_shard(family))

    def tables(self, family: str | None = None, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read the shards one after the other, each as one table; one of several parts is sorted by row_id."""
        for parts in self._by_shard(family):
            yield _merged([self.path / part.name for part in parts], columns)

    def _by_shard(self, family: str | None) -> list[tuple[ShardInfo, ...]]:
        parts, each = self.parts(family), self.generations
        if len(parts) % each:
            raise StageError(f"stage {self.name} has {len(parts)} files, which are no shards of {each} parts")
        return [parts[start : start + each] for start in range(0, len(parts), each)]

    def read_bytes(self, name: str) -> bytes:
        """Read a shard that is no table."""
        return (self.path / name).read_bytes()

    def has(self, name: str) -> bool:
        """Whether there is a shard of that name."""
        return any(shard.name == name for shard in self.manifest.shards)


def _whole(parts: Sequence[ShardInfo]) -> ShardInfo:
    if len(parts) == 1:
        return parts[0]
    return ShardInfo(
        name=parts[0].name,
        rows=sum(part.rows for part in parts),
        bytes=sum(part.bytes for part in parts),
        sha256=digest_of([part.sha256 for part in parts]),
    )


def _merged(paths: Sequence[Path], columns: Sequence[str] | None) -> pa.Table:
    """The rows of all parts in the order of their ids."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if len(paths) == 1:
        return read_shard(paths[0], columns=columns)
    asked = None if columns is None else [*(name for name in columns if name != "row_id"), "row_id"]
    together = pa.concat_tables([read_shard(path, columns=asked) for path in paths]).combine_chunks()
    rows = together.take(pc.sort_indices(together["row_id"].cast(pa.binary())))
    return rows if columns is None else rows.select(list(columns))


def read_shard(path: Path, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one of our own shards whole; its size is bounded by the run's shard rows."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, memory_map=False) as file:
        return file.read(columns=list(columns) if columns is not None else None, use_threads=False)
