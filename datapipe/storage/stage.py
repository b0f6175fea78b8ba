"""Stage directories: named by what they depend on, filled shard by shard, finished by a manifest.

    StageStore(DIR/stages).open(identity) -> StageDir          DIR/stages/embed-1f0c…/
    StageDir.writer("rows-00000.parquet", schema)              temporary sibling -> fsync -> rename -> sidecar
    StageDir.finish(...)                                       manifest.json, written last

A shard counts as made once its sidecar (`<shard>.json`: rows, bytes, sha256, facts) is there, a stage once its manifest
is. So a process may be killed at any moment and started again: it makes what is missing and nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from datapipe.errors import IntegrityError
from datapipe.storage.atomic import explain_os_error, make_folder, remove_leftovers, replacing, write_atomically
from datapipe.storage.digest import canonical_json, digest_of, file_sha256, plain
from datapipe.storage.parquet import open_writer, write_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_KEY_DIGITS = 24


@dataclass(frozen=True, kw_only=True)
class StageIdentity:
    """Everything that a stage's output depends on; two equal identities have equal bytes.

    Attributes:
        name: The stage's name.
        version: Raised whenever the stage's code changes what it writes.
        config: Its frozen config, as a dataclass or plain values.
        inputs: Digests of what it reads. A stage that works shard by shard names each shard by its input instead.
        models: Digests of the models it runs.
        platform: What changes bits from machine to machine: device kind, dtype, torch version, intra-op threads.
    """

    name: str
    version: int
    config: Any
    inputs: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    platform: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Name of the stage directory: the stage's name and 24 hex digits of the digest of all the rest."""
        return f"{self.name}-{digest_of(self)[:_KEY_DIGITS]}"


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """What a sidecar says of its shard.

    Attributes:
        name: File name inside the stage directory.
        rows: Rows, 0 for files that are no table.
        bytes: Size of the file.
        sha256: Digest of the file, 64 hex digits.
        facts: Counts that the stage wishes to sum up without reading the shard again.
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of a finished stage directory: its identity, its shards in order, and its facts."""

    identity: Mapping[str, Any]
    shards: tuple[ShardInfo, ...]
    facts: Mapping[str, Any]
    format: int = FORMAT_VERSION

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.rows for shard in self.shards)

    def to_json(self) -> bytes:
        """Encode for `manifest.json`: no host, time or path in it, so that equal stages have equal manifests."""
        body = {**plain(self), "rows": self.rows, "bytes": sum(shard.bytes for shard in self.shards)}
        return json.dumps(body, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest; raises `IntegrityError` naming `path` if it is not one."""
        try:
            body = json.loads(path.read_bytes())
            return cls(
                identity=body["identity"],
                shards=tuple(ShardInfo(**shard) for shard in body["shards"]),
                facts=body["facts"],
                format=body["format"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise IntegrityError(
                f"{path} is not a stage manifest ({error}); delete its folder and run again"
            ) from error


class ShardWriter:
    """Writes one Parquet shard; `facts` travel into the sidecar."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = open_writer(path, schema)
        self.rows = 0
        self.facts: dict[str, Any] = {}

    def write(self, table: pa.Table) -> None:
        """Append rows; `table` must have the writer's schema."""
        write_table(self._writer, table)
        self.rows += table.num_rows

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class StageDir:
    """One stage's directory, `DIR/stages/NAME-KEY/`."""

    def __init__(self, path: Path, identity: StageIdentity) -> None:
        self.path = path
        self.identity = identity

    def done(self, name: str) -> ShardInfo | None:
        """What the sidecar of shard `name` says, or None where the shard has to be made (again)."""
        sidecar = self._sidecar(name)
        try:
            info = ShardInfo(**json.loads(sidecar.read_bytes()))
            size = (self.path / name).stat().st_size
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise IntegrityError(f"{sidecar} is damaged ({error}); delete it and run again") from error
        return info if size == info.bytes else None

    @contextmanager
    def writer(self, name: str, schema: pa.Schema) -> Iterator[ShardWriter]:
        """Write the Parquet shard `name`; it appears whole when the block ends without error.

        Raises:
            OutputError: The disk is full or cannot be written; names the shard.
        """
        with self._committing(name) as (temporary, facts):
            writer = ShardWriter(temporary, schema)
            try:
                yield writer
            finally:
                writer.close()
            facts["rows"], facts["facts"] = writer.rows, writer.facts

    def write_table(self, name: str, table: pa.Table, *, facts: Mapping[str, Any] | None = None) -> ShardInfo:
        """Write a whole table as the Parquet shard `name`; one that is done already is left as it is."""
        present = self.done(name)
        if present is not None:
            return present
        with self.writer(name, table.schema) as writer:
            writer.write(table)
            writer.facts.update(facts or {})
        return self._read(name)

    def write_bytes(self, name: str, content: bytes, *, facts: Mapping[str, Any] | None = None) -> ShardInfo:
        """Write a file that is no table (centroids, a page) as the shard `name`; one that is done is left as it is."""
        present = self.done(name)
        if present is not None:
            return present
        with self._committing(name) as (temporary, about):
            temporary.write_bytes(content)
            about["facts"] = dict(facts or {})
        return self._read(name)

    @contextmanager
    def file(self, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Write any file as the shard `name`; it appears whole when the block ends without error.

        Yields:
            Where to write it, and what its sidecar is to say: `rows` and `facts`.
        """
        with self._committing(name) as (temporary, about):
            yield temporary, about

    def adopt(self, name: str, folder: Path) -> ShardInfo:
        """Take over the shard `name` of another stage directory: a second link to its file where that is possible.

        Raises:
            IntegrityError: It is not there.
            OutputError: This directory cannot be written.
        """
        present = self.done(name)
        if present is not None:
            return present
        other = StageDir(folder, self.identity).done(name)
        if other is None:
            raise IntegrityError(f"{folder / name} is missing or incomplete; run without update")
        with replacing(self.path / name) as temporary:
            try:
                os.link(folder / name, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(folder / name, temporary)
        write_atomically(self._sidecar(name), canonical_json(other) + b"\n")
        return other

    def finish(
        self, names: Sequence[str], *, facts: Mapping[str, Any] | None = None, manifest: str = MANIFEST
    ) -> Manifest:
        """Write the manifest over the shards `names`, in that order; from then on the stage is done.

        Raises:
            IntegrityError: One of the shards is not there.
        """
        shards = tuple(self._read(name) for name in names)
        found = Manifest(identity=plain(self.identity), shards=shards, facts=plain(dict(facts or {})))
        write_atomically(self.path / manifest, found.to_json())
        return found

    def manifest(self, name: str = MANIFEST) -> Manifest | None:
        """The manifest, or None while the stage is not done."""
        path = self.path / name
        return Manifest.read(path) if path.exists() else None

    def _sidecar(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _read(self, name: str) -> ShardInfo:
        info = self.done(name)
        if info is None:
            raise IntegrityError(f"{self.path / name} is missing or incomplete")
        return info

    @contextmanager
    def _committing(self, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        about: dict[str, Any] = {"rows": 0, "facts": {}}
        path = self.path / name
        with replacing(path) as temporary:
            yield temporary, about
            digest, size = file_sha256(temporary), temporary.stat().st_size
            present = self.done(name)
            if present is not None and present.sha256 == digest:
                temporary.unlink()
                return
        info = ShardInfo(name=name, rows=about["rows"], bytes=size, sha256=digest, facts=plain(about["facts"]))
        write_atomically(self._sidecar(name), canonical_json(info) + b"\n")


class StageStore:
    """All stage directories of one run folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, identity: StageIdentity) -> StageDir:
        """Open the directory of `identity`, making it and clearing what a killed process left half-written in it.

        Raises:
            OutputError: The folder cannot be made.
            IntegrityError: A directory of that name holds a manifest of another identity.
        """
        path = self.root / identity.key
        make_folder(path)
        try:
            remove_leftovers(path)
        except OSError as error:
            raise explain_os_error(error, path) from error
        opened = StageDir(path, identity)
        present = opened.manifest()
        if present is not None and present.identity != plain(identity):
            raise IntegrityError(f"{path} belongs to another stage configuration; delete it and run again")
        return opened


__all__ = [
    "FORMAT_VERSION",
    "MANIFEST",
    "Manifest",
    "ShardInfo",
    "ShardWriter",
    "StageDir",
    "StageIdentity",
    "StageStore",
]
