"""Soft labels of the wanted rows, as a user gets them.

Reads the parts of `teach`, which may hold more rows, and `select` where only kept rows are wanted. Writes
`soft_labels.parquet`, a store with the weight of the teacher for each row, and `teacher_scores.parquet`: row_id and one
float32 column a score, as `--metric imported` reads them; both sorted by row_id.

    parts -> [only the wanted rows] -> [sort by row_id] -> kd_alpha, contradicts -> soft_labels.parquet
                                                        -> scores -> teacher_scores.parquet
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from datapipe.errors import SoftLabelError
from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from datapipe.distill.header import SoftLabelHeader
    from datapipe.storage.stage import StageDir

SOFT_LABELS = "soft_labels.parquet"
TEACHER_SCORES = "teacher_scores.parquet"
TOKEN_SCORES = ("loss", "entropy")
"""Mean over a row's tokens of the negative log probability, and of the entropy, in nats."""

_SCORE = "score_"


@dataclass(frozen=True, kw_only=True)
class SoftLabelsConfig:
    """What the files depend on besides the parts.

    Attributes:
        header: What is stored.
        rows: Which rows are wanted.
        alpha: Weight of the teacher in the loss.
        contradiction: Probability of another class from which the label counts for nothing.
        ordered: Whether the parts are in row_id order.
    """

    header: SoftLabelHeader
    rows: Literal["kept", "all"]
    alpha: float
    contradiction: float
    ordered: bool


@dataclass(frozen=True)
class WriteSoftLabels(SetStage):
    """Write the store and the scores. Memory: the ids of the kept rows, and a row group."""

    name: ClassVar[str] = "soft_labels"
    version: ClassVar[int] = 2

    settings: SoftLabelsConfig

    @property
    def config(self) -> SoftLabelsConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The parts, and the choice."""
        return ("teach", *(("select",) if self.settings.rows == "kept" else ()))

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Write both files.

        Raises:
            SoftLabelError: The parts lack wanted rows.
        """
        from datapipe.distill.writer import SoftLabelWriter

        header, schema = self.settings.header, _scores_schema(self.settings.header)
        labelled = contradicted = disagreeing = 0
        with (
            out.file(SOFT_LABELS) as (path, about),
            SoftLabelWriter(path, header) as writer,
            out.writer(TEACHER_SCORES, schema) as scores,
        ):
            for part in self._rows(inputs, context):
                table, against = self._weighed(part)
                writer.write(table)
                scores.write(_scores(part, schema))
                labelled += part.num_rows - part["label"].null_count
                contradicted += int(against.sum())
                disagreeing += _disagreeing(part)
                context.tick(part.num_rows)
            about["rows"] = writer.rows
            self._check(inputs, writer.rows)
        facts = {"rows": about["rows"], "labelled": labelled, "contradicted": contradicted}
        return [SOFT_LABELS, TEACHER_SCORES], {**facts, "disagreeing": disagreeing}

    def _rows(self, inputs: Mapping[str, StageOutput], context: Context) -> Iterator[pa.Table]:
        """The wanted rows of the parts, sorted by row_id."""
        import pyarrow as pa
        import pyarrow.compute as pc

        from datapipe.storage.rowid import ids_from_arrow
        from datapipe.storage.sort import ExternalSorter, equal_ranges

        chosen = kept_ids(inputs["select"]) if self.settings.rows == "kept" else None
        parts = inputs["teach"].tables()
        if chosen is not None:
            parts = (part.filter(pc.is_in(part["row_id"].cast(pa.binary()), value_set=chosen)) for part in parts)
        if self.settings.ordered:
            yield from (part.combine_chunks() for part in parts if part.num_rows)
            return
        with ExternalSorter(context.scratch / "labels") as sorter:
            shards = 0
            for part in parts:
                ids = ids_from_arrow(part["row_id"])
                sorter.add(ids[:, 0], ids[:, 1], part)
                shards += 1
            bounds = [low for low, _ in equal_ranges(max(1, shards))][1:]
            yield from (table for table in sorter.sorted_tables(bounds) if table.num_rows)

    def _weighed(self, part: pa.Table) -> tuple[pa.Table, Any]:
        """The store's columns with the weight of each row, and which rows are contradicted."""
        import numpy as np
        import pyarrow as pa

        from datapipe.distill.byproducts import contradictions
        from datapipe.distill.layout import schema_of

        schema = schema_of(self.settings.header)
        name = f"{_SCORE}disagreement"
        if name not in part.schema.names:  # tokens: the text is the label
            alphas = np.full(part.num_rows, self.settings.alpha, np.float32)
            table = _with(part.select(schema.names), "kd_alpha", pa.array(alphas))
            return table.cast(schema), np.zeros(part.num_rows, np.bool_)
        unknown = part["label"].is_null().to_numpy()
        against = contradictions(part[name].to_numpy(), threshold=self.settings.contradiction)
        alphas = np.where(against | unknown, 1.0, self.settings.alpha).astype(np.float32)
        table = _with(part.select(schema.names), "kd_alpha", pa.array(alphas))
        table = _with(table, "contradicts", pa.array(against, mask=unknown))
        return table.cast(schema), against

    def _check(self, inputs: Mapping[str, StageOutput], rows: int) -> None:
        if self.settings.rows == "all":
            return
        wanted = int(inputs["select"].facts["counts"].get("kept", 0))
        if rows != wanted:
            raise SoftLabelError(f"there are soft labels for {rows:,} of {wanted:,} kept rows; delete stages/teach-*")


def kept_ids(select: StageOutput) -> pa.Array:
    """Ids of the kept rows, binary; 16 bytes a kept row in memory."""
    import pyarrow as pa

    tables = [table.filter(table["kept"])["row_id"] for table in select.tables(columns=["row_id", "kept"])]
    return pa.chunked_array([chunk for each in tables for chunk in each.chunks], pa.binary(16)).cast(pa.binary())


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), values.cast(table.schema.field(at).type))


def score_names(header: SoftLabelHeader) -> tuple[str, ...]:
    """Names of the scores that come with labels of rows, or of tokens."""
    from datapipe.distill.byproducts import SCORES

    return SCORES if header.level == "row" else TOKEN_SCORES


def _scores_schema(header: SoftLabelHeader) -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field("row_id", pa.binary(16), nullable=False)]
    return pa.schema([*fields, *(pa.field(name, pa.float32()) for name in score_names(header))])


def _scores(part: pa.Table, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    names = [name if name == "row_id" else f"{_SCORE}{name}" for name in schema.names]
    return pa.table([part[name] for name in names], schema=schema)


def _disagreeing(part: pa.Table) -> int:
    """How many rows the teacher would give another label."""
    import numpy as np

    name = f"{_SCORE}disagreement"
    return int((np.nan_to_num(part[name].to_numpy()) > 0).sum()) if name in part.schema.names else 0


__all__ = [
    "SOFT_LABELS",
    "TEACHER_SCORES",
    "TOKEN_SCORES",
    "SoftLabelsConfig",
    "WriteSoftLabels",
    "kept_ids",
    "score_names",
]
