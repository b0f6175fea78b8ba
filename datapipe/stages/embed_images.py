"""Images to vectors.

Reads the source once more, in its own order, and `ingest/places` and `ingest/rows` for who is where. Writes
`vectors-*.parquet`, one a canonical shard: row_id and vector (bfloat16 codec, unit length), sorted by row_id. Made
again when the rows, their images, the model or the platform change.

    source -> images in its order -> worker -> part-*.parquet -> [sort by row_id] -> vectors-*.parquet

Images lie where they are, so there is no shard of them to work on; a killed run goes on after the last finished part.
Every image is computed in a batch of one size, so its vector does not depend on the order of the source.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import ItemError, SourceError
from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

    import pyarrow as pa

    from datapipe.storage.arrays import Float32
    from datapipe.storage.images import ImageFiles, ImageRow
    from datapipe.storage.stage import StageDir
    from datapipe.workers.protocol import Worker

PART_ROWS = 4096
"""Images whose vectors a killed run loses at most."""

CALL_ROWS = 512
CALL_BYTES = 64 << 20
"""Images that go to the worker in one call: so many, or fewer where they are large. A stop is heeded between two."""


@dataclass(frozen=True, kw_only=True)
class EmbedImagesConfig:
    """What the vectors depend on besides rows and model.

    Attributes:
        batch: Images of a batch.
        part_rows: Images of a part.
        column: The image column.
        files: sha256 of the source's files: where an image stands.
    """

    batch: int
    part_rows: int
    column: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class EmbedImages(SetStage):
    """Embed the image of every row.

    Attributes:
        images: Reads the image column.
        files: sha256 of the source's files.
        worker: Makes the worker that runs the model.
        model: Name of the model at that worker.
        digest: Digest of the model's files.
        dim: Length of a vector.
        batch: Images of a batch at that worker.
        bits: Platform facts of the worker.
    """

    name: ClassVar[str] = "embed"
    version: ClassVar[int] = 1

    images: ImageFiles
    files: tuple[str, ...]
    worker: Callable[[], Worker]
    model: str
    digest: str
    dim: int
    batch: int
    bits: Mapping[str, str]

    @property
    def config(self) -> EmbedImagesConfig:
        """How images are cut into batches and parts, and where they stand."""
        return EmbedImagesConfig(batch=self.batch, part_rows=PART_ROWS, column=self.images.column, files=self.files)

    @property
    def needs(self) -> tuple[str, ...]:
        """The canonical rows, and where they came from."""
        return ("ingest/rows", "ingest/places")

    @property
    def models(self) -> tuple[str, ...]:
        """The vision model."""
        return (self.digest,)

    @property
    def platform(self) -> Mapping[str, str]:
        """As the worker states it."""
        return self.bits

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Embed part by part in the order of the source, then sort by row id.

        Raises:
            SourceError: An image is no longer there, has changed since it was ingested, or is one that the model cannot
                take; names its file and row.
        """
        ingest = inputs["ingest"]
        shards = len(ingest.shards("rows"))
        names = [f"vectors-{i:05d}.parquet" for i in range(shards)]
        if any(out.done(name) is None for name in names):
            parts = self._embed(ingest, out, context)
            self._sort(parts, names, out, context)
        _remove_parts(out)
        return names, {"rows": sum(shard.rows for shard in ingest.shards("rows"))}

    def _embed(self, ingest: StageOutput, out: StageDir, context: Context) -> list[str]:
        """Write the missing parts; returns the names of all."""
        from datapipe.storage.images import ImagesByPlace

        total = sum(shard.rows for shard in ingest.shards("rows"))
        names = [f"part-{i:05d}.parquet" for i in range(-(-total // PART_ROWS))]
        left = total
        with ImagesByPlace(self.images, _places(ingest), context.scratch / "places") as by_place:
            rows = iter(by_place)
            for name in names:
                done, part = out.done(name), islice(rows, PART_ROWS)
                if done is None:
                    done = out.write_table(name, self._part(part, context))
                else:
                    context.tick(sum(1 for _ in part))
                left -= done.rows
        if left:
            raise SourceError(
                f"{left:,} of {total:,} rows are no longer in {self.images.source.files[0].uri}: it has changed since "
                "it was ingested; run again"
            )
        return names

    def _part(self, rows: Iterator[ImageRow], context: Context) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        from datapipe.storage.ahead import ahead
        from datapipe.storage.rowid import ID_TYPE
        from datapipe.storage.vectors import encode, vector_field

        worker = self.worker()
        vectors = [np.empty((0, self.dim), np.float32)]
        ids: list[bytes] = []
        with closing(ahead(self._calls(rows), depth=1)) as calls:
            for records, images in calls:
                vectors.append(self._vectors(worker, records, images))
                ids += [record["row_id"] for record in records]
                context.tick(len(records))
        schema = pa.schema(
            [
                pa.field("row_id", ID_TYPE, nullable=False),
                vector_field("vector", dim=self.dim, model=self.model, digest=self.digest, normalised=True),
            ]
        )
        return pa.Table.from_arrays([pa.array(ids, ID_TYPE), encode(np.concatenate(vectors))], schema=schema)

    def _calls(self, rows: Iterator[ImageRow]) -> Generator[tuple[list[dict[str, Any]], list[bytes]], None, None]:
        """Rows and their images, in order, as many at a time as a call takes."""
        records: list[dict[str, Any]] = []
        images: list[bytes] = []
        held = 0
        for record, read in rows:
            records.append(record)
            images.append(self._image(record, read))
            held += len(images[-1])
            if len(images) == CALL_ROWS or held >= CALL_BYTES:
                yield records, images
                records, images, held = [], [], 0
        if images:
            yield records, images

    def _image(self, record: dict[str, Any], read: Callable[[], bytes]) -> bytes:
        from datapipe.storage.images import UnreadableImageError, content_key

        try:
            data = read()
        except UnreadableImageError as error:
            raise SourceError(f"{self._place(record)}: {error.detail}") from error
        if content_key(data) != record["image"]:
            raise SourceError(
                f"{self._place(record)}: the image has changed since it was ingested; start a run in another folder"
            )
        return data

    def _vectors(self, worker: Worker, records: list[dict[str, Any]], images: list[bytes]) -> Float32:
        from datapipe.embedding.image import embed_images

        try:
            return embed_images(worker, images, model=self.model, batch=self.batch)
        except ItemError as error:
            record = records[min(error.index, len(records) - 1)]
            raise SourceError(f"{self._place(record)}: model {self.model} cannot take it: {error}") from error

    def _place(self, record: dict[str, Any]) -> str:
        return f"{self.images.source.files[record['file']].uri} row {record['row']}"

    def _sort(self, parts: list[str], names: list[str], out: StageDir, context: Context) -> None:
        from datapipe.pipeline import read_shard
        from datapipe.storage.rowid import ids_from_arrow
        from datapipe.storage.sort import ExternalSorter, equal_ranges

        with ExternalSorter(context.scratch / "vectors") as sorter:
            for name in parts:
                table = read_shard(out.path / name)
                ids = ids_from_arrow(table["row_id"])
                sorter.add(ids[:, 0], ids[:, 1], table)
            bounds = [low for low, _ in equal_ranges(len(names))][1:]
            for name, table in zip(names, sorter.sorted_tables(bounds), strict=True):
                out.write_table(name, table)


def _places(ingest: StageOutput) -> Iterator[pa.Table]:
    """row_id, file, row and the image's key, shard by shard."""
    rows = ingest.tables("rows", columns=["image"])
    for table in ingest.tables("places"):
        yield table.append_column("image", next(rows)["image"])


def _remove_parts(out: StageDir) -> None:
    """Take the parts away once the shards hold their vectors."""
    for path in sorted(out.path.glob("part-*")):
        path.unlink()
