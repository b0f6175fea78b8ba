"""A teacher's soft labels of the rows of a finished run.

Reads `ingest/rows`, `select` where only kept rows are wanted, what the run's own head learns from, and the source again
for images. Writes `part-*.parquet`: the columns of a soft-label store (`datapipe.distill.layout`) and the scores that
come with them, in row_id order, or in the order of the source for images. A killed run goes on after the last finished
part. Made again when rows, teachers, mode or platform change; a narrower choice of rows reads a wider one's parts.

    wanted rows -> [text, image, place] -> each teacher -> mean of log probabilities -> cut down -> part
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datapipe.errors import SourceError
from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.wanted import part_table, wanted, wanted_rows

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.distill.header import SoftLabelHeader
    from datapipe.distill.teachers import RowTeacher
    from datapipe.stages.proxy import RowInputs
    from datapipe.storage.images import ImageFiles, ImageRow
    from datapipe.storage.stage import StageDir

PART_ROWS = 4096
"""Rows whose labels a killed run loses at most."""

CALL_BYTES = 64 << 20
"""Images that go to the teacher in one call: a slice of rows, or fewer where they are large."""


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """What the labels depend on besides rows and teachers.

    Attributes:
        header: What is stored.
        rows: Which rows are judged.
        content: What the teachers see: `text`, `image` or `vector`.
        slice_rows: Rows that go to a teacher in one call.
        part_rows: Rows of a part.
        columns: The source's columns that are read besides, by role.
        files: sha256 of the source's files, where the source is read again.
    """

    header: SoftLabelHeader
    rows: Literal["kept", "all"]
    content: str
    slice_rows: int
    part_rows: int = PART_ROWS
    columns: Mapping[str, str] | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class TeachStage(SetStage):
    """What stages that ask teachers share.

    Attributes:
        settings: The frozen config.
        digests: Of the teachers' models.
        bits: Platform facts.
    """

    name: ClassVar[str] = "teach"
    version: ClassVar[int] = 1

    settings: TeachConfig
    digests: tuple[str, ...]
    bits: Mapping[str, str]

    @property
    def config(self) -> TeachConfig:
        """The frozen config."""
        return self.settings

    @property
    def models(self) -> tuple[str, ...]:
        """The teachers."""
        return self.digests

    @property
    def platform(self) -> Mapping[str, str]:
        """As the teachers state it."""
        return self.bits

    @property
    def choice(self) -> tuple[str, ...]:
        """Stages that only say which rows are wanted; they stand last among the needs."""
        return ("select",) if self.settings.rows == "kept" else ()


@dataclass(frozen=True)
class TeachRows(TeachStage):
    """Judge each row whole.

    Attributes:
        teachers: In the order in which they are averaged.
        vectors: What the run's own head learns from; None without one.
        images: Reads the image column; None where no teacher sees images.
    """

    teachers: tuple[RowTeacher, ...]
    vectors: RowInputs | None = None
    images: ImageFiles | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, where they came from for images, vectors for the head, and the choice."""
        places = ("ingest/places",) if self.images is not None else ()
        own = self.vectors.needs if self.vectors is not None else ()
        return tuple(dict.fromkeys(("ingest/rows", *places, *own))) + self.choice

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Judge part by part.

        Raises:
            SoftLabelError: A teacher says nothing usable of a row; names it.
            SourceError: An image is no longer there, or has changed.
            MetricError: The run's own head cannot learn.
        """
        total = wanted_rows(inputs, kept=self.settings.rows == "kept")
        names = [f"part-{at:05d}.parquet" for at in range(-(-total // self.settings.part_rows))]
        if any(out.done(name) is None for name in names):
            self._learn(inputs, context)
        judged = self._images(inputs, context, names, out) if self.images is not None else self._plain(inputs)
        left = total
        for name in names:
            done = out.done(name)
            part = next(judged)
            if done is None:
                done = out.write_table(name, self._part(part, inputs, context))
            else:
                context.tick(done.rows)
            left -= done.rows
        if left:
            raise SourceError(f"{left:,} of {total:,} rows are no longer in the source: it has changed; run again")
        return names, {"rows": total}

    def _learn(self, inputs: Mapping[str, StageOutput], context: Context) -> None:
        from datapipe.distill.head_teacher import HeadTeacher
        from datapipe.stages.proxy import read_rows

        own = [teacher for teacher in self.teachers if isinstance(teacher, HeadTeacher)]
        if self.vectors is None or not own:
            return
        silent = Context(context.scratch, lambda _: context.tick(0), context.workers)
        rows = read_rows(self.vectors, inputs, silent)
        for teacher in own:
            teacher.learn(rows.data(), rows.ids, threads=context.workers)

    def _plain(self, inputs: Mapping[str, StageOutput]) -> Iterator[Any]:
        from datapipe.storage.sort import regrouped

        columns = [*(("text",) if self.settings.content == "text" else ()), *_labels(self.settings)]
        rows = wanted(inputs, columns, kept=self.settings.rows == "kept")
        return regrouped(rows, self.settings.part_rows)

    def _images(
        self, inputs: Mapping[str, StageOutput], context: Context, names: Sequence[str], out: StageDir
    ) -> Iterator[Any]:
        """Of each part an iterator over its rows and images, in the order of the source."""
        from datapipe.storage.images import ImagesByPlace

        kept = self.settings.rows == "kept"
        rows = wanted(inputs, ["image", *_labels(self.settings)], kept=kept, places=True)
        files = self.images
        if files is None:
            return
        with ImagesByPlace(files, rows, context.scratch / "places") as by_place:
            ordered = iter(by_place)
            for name in names:
                part = islice(ordered, self.settings.part_rows)
                if out.done(name) is not None:
                    for _ in part:
                        pass
                yield part

    def _part(self, part: Any, inputs: Mapping[str, StageOutput], context: Context) -> pa.Table:
        import pyarrow as pa

        slices = self._calls(part) if self.images is not None else _sliced(part, self.settings.slice_rows)
        tables = []
        for table, images in slices:
            tables.append(self._judged(table, images))
            context.tick(table.num_rows)
        if not tables:
            raise SourceError("rows of the run are no longer in its source: it has changed; curate it again")
        return pa.concat_tables(tables).combine_chunks()

    def _judged(self, rows: pa.Table, images: Sequence[bytes] | None) -> pa.Table:
        """The labels and scores of some rows."""
        import numpy as np

        from datapipe.distill.byproducts import averaged, scores_of
        from datapipe.distill.codec import encode
        from datapipe.distill.teachers import RowBatch
        from datapipe.stages.proxy import class_numbers
        from datapipe.storage.rowid import ids_from_arrow

        header = self.settings.header
        ids = ids_from_arrow(rows["row_id"])
        batch = RowBatch(
            ids=ids,
            places=rows["place"].to_numpy(),
            texts=rows["text"].to_pylist() if "text" in rows.schema.names else None,
            images=images,
        )
        exact = averaged([teacher.log_probabilities(batch) for teacher in self.teachers])
        labels = np.full(len(ids), -1, np.int64)
        if "label" in rows.schema.names:
            labels = class_numbers(rows["label"], list(header.class_names or ()))
        cut = encode(exact, header, row_ids=ids)
        return part_table(header, ids, cut, labels, scores_of(exact, labels))

    def _calls(self, rows: Iterator[ImageRow]) -> Generator[tuple[pa.Table, list[bytes]], None, None]:
        """Rows and their images, as many at a time as a call takes; images are read ahead of the teacher."""
        from datapipe.storage.ahead import ahead

        with closing(ahead(self._gathered(rows), depth=1)) as calls:
            yield from calls

    def _gathered(self, rows: Iterator[ImageRow]) -> Generator[tuple[pa.Table, list[bytes]], None, None]:
        records: list[dict[str, Any]] = []
        images: list[bytes] = []
        held = 0
        for record, read in rows:
            records.append(record)
            images.append(self._image(record, read))
            held += len(images[-1])
            if len(images) == self.settings.slice_rows or held >= CALL_BYTES:
                yield _table(records), images
                records, images, held = [], [], 0
        if images:
            yield _table(records), images

    def _image(self, record: Mapping[str, Any], read: Any) -> bytes:
        from datapipe.storage.images import UnreadableImageError, content_key

        files = self.images
        place = f"{files.source.files[record['file']].uri if files else '?'} row {record['row']}"
        try:
            data: bytes = read()
        except UnreadableImageError as error:
            raise SourceError(f"{place}: {error.detail}") from error
        if content_key(data) != record["image"]:
            raise SourceError(f"{place}: the image has changed since it was ingested; start a run in another folder")
        return data


def _labels(settings: TeachConfig) -> tuple[str, ...]:
    columns = settings.columns or {}
    return ("label",) if "label" in columns else ()


def _sliced(table: pa.Table, rows: int) -> Iterator[tuple[pa.Table, None]]:
    for at in range(0, table.num_rows, rows):
        yield table.slice(at, rows), None


def _table(records: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    from datapipe.storage.rowid import ID_TYPE

    columns = {"row_id": pa.array([each["row_id"] for each in records], ID_TYPE)}
    columns["place"] = pa.array([each["place"] for each in records], pa.int64())
    if "label" in records[0]:
        columns["label"] = pa.array([each["label"] for each in records], pa.string())
    return pa.table(columns)


__all__ = ["PART_ROWS", "TeachConfig", "TeachRows", "TeachStage"]
