"""Which rows an update moved into the kept set or out of it, and why.

Reads scores and selection of this run and of the run before, in step. Writes `changes.parquet`: row_id, before and
after (the reasons of the two selections, null where the row was not there), reason; sorted by row_id. The kept rows of
the run before, less those that left, with those that entered, are the kept rows of this one. Memory: one range of ids.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.select import EXCLUSIONS, read_selection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pyarrow as pa

    from datapipe.stages.history import History
    from datapipe.storage.stage import StageDir

CHANGES = "changes.parquet"
KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class ChangesConfig:
    """What the changes depend on besides this run's choice.

    Attributes:
        metric: The score column.
        before: Digests of scores and selection of the run before.
    """

    metric: str
    before: tuple[str, str]


@dataclass(frozen=True)
class Changes(SetStage):
    """Compare two choices, out of core.

    The reason of a change is `new` (the row came), `gone` (its file changed), `screened` (it was or is taken out before
    the selection), `score` (its score is another one), or `cut` (the score is the same, the line moved).

    Attributes:
        settings: The frozen config.
        history: The run before.
    """

    name: ClassVar[str] = "changes"
    version: ClassVar[int] = 1

    settings: ChangesConfig
    history: History

    @classmethod
    def of(cls, metric: str, history: History) -> Changes:
        """The stage that compares with the run before."""
        before = history.base
        return cls(ChangesConfig(metric=metric, before=(before["score"].digest, before["select"].digest)), history)

    @property
    def config(self) -> ChangesConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """Scores and choice."""
        return ("score", "select")

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Join both choices by row id and write the rows whose side differs."""
        import pyarrow as pa

        schema = pa.schema(
            [
                pa.field("row_id", pa.binary(16), nullable=False),
                pa.field("before", pa.string()),
                pa.field("after", pa.string()),
                pa.field("reason", pa.string(), nullable=False),
            ]
        )
        ends = _ends(inputs["score"])
        before = _Cursor(_choices(self.history.base, self.settings.metric))
        after = _Cursor(_choices(inputs, self.settings.metric))
        entered, left, seen = Counter[str](), Counter[str](), Counter[str]()
        with out.writer(CHANGES, schema) as writer:
            for end in ends:
                joined = _joined(before.until(end), after.until(end))
                context.tick(joined.num_rows)
                changed = _changed(joined, seen)
                entered.update(changed.filter(_is_kept(changed["after"]))["reason"].to_pylist())
                left.update(changed.filter(_is_kept(changed["before"]))["reason"].to_pylist())
                writer.write(changed.cast(schema))
        counts = {"entered": dict(sorted(entered.items())), "left": dict(sorted(left.items()))}
        return [CHANGES], {"rows_new": seen["new"], "rows_gone": seen["gone"], "rows_both": seen["both"], **counts}


def _choices(outputs: Mapping[str, StageOutput], metric: str) -> Iterator[pa.Table]:
    """row_id, the selection's reason, the score; one table a shard."""
    chosen = read_selection(outputs["select"], outputs["score"].shards())
    for table, choice in zip(outputs["score"].tables(columns=["row_id", metric]), chosen, strict=True):
        yield table.rename_columns(["row_id", "score"]).append_column("choice", choice["reason"])


def _ends(score: StageOutput) -> list[bytes | None]:
    """The last id of each shard; None after all."""
    ends = [table["row_id"][-1].as_py() for table in score.tables(columns=["row_id"]) if table.num_rows]
    return [*ends[:-1], None]


class _Cursor:
    """Hands out sorted tables piece by piece."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._rest: pa.Table | None = next(tables)
        self._none = self._rest.slice(0, 0)

    def until(self, end: bytes | None) -> pa.Table:
        """The rows not handed out yet whose id is at most `end`; all of them for None."""
        import pyarrow as pa
        import pyarrow.compute as pc

        pieces = [self._none]
        while self._rest is not None:
            ids = self._rest["row_id"].cast(pa.binary())
            rows = self._rest.num_rows if end is None else pc.sum(pc.less_equal(ids, pa.scalar(end))).as_py() or 0
            pieces.append(self._rest.slice(0, rows))
            if rows < self._rest.num_rows:
                self._rest = self._rest.slice(rows)
                break
            self._rest = next(self._tables, None)
        return pa.concat_tables(pieces)


def _joined(before: pa.Table, after: pa.Table) -> pa.Table:
    """row_id, before, after and both scores of the rows of either, sorted by row_id."""
    import pyarrow as pa
    import pyarrow.compute as pc

    before, after = before.combine_chunks(), after.combine_chunks()
    place = pc.index_in(after["row_id"], value_set=_flat(before["row_id"]))
    gone = before.filter(pc.invert(pc.is_in(before["row_id"], value_set=_flat(after["row_id"]))))
    here = {
        "row_id": _flat(after["row_id"]),
        "before": _flat(before["choice"]).take(_flat(place)),
        "after": _flat(after["choice"]),
        "score_before": _flat(before["score"]).take(_flat(place)),
        "score_after": _flat(after["score"]),
    }
    both = pa.table(here)
    lost = pa.table(
        {
            "row_id": _flat(gone["row_id"]),
            "before": _flat(gone["choice"]),
            "after": pa.nulls(gone.num_rows, pa.string()),
            "score_before": _flat(gone["score"]),
            "score_after": pa.nulls(gone.num_rows, pa.float32()),
        }
    )
    together = pa.concat_tables([both, lost])
    if not lost.num_rows:
        return together
    ids = together.append_column("order", together["row_id"].cast(pa.binary()))
    return together.take(pc.sort_indices(ids, sort_keys=[("order", "ascending")]))


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_kept(choice: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.fill_null(pc.equal(choice, KEPT), False)  # noqa: FBT003


def _changed(joined: pa.Table, seen: Counter[str]) -> pa.Table:
    """The rows whose side differs, with the reason; `seen` counts all rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    new, gone = pc.is_null(joined["before"]), pc.is_null(joined["after"])
    came, went = (int(pc.sum(each).as_py() or 0) for each in (new, gone))
    seen.update({"new": came, "gone": went, "both": joined.num_rows - came - went})
    outside = pa.array(EXCLUSIONS, pa.string())
    screened = pc.or_(pc.is_in(joined["before"], value_set=outside), pc.is_in(joined["after"], value_set=outside))
    other = pc.fill_null(pc.not_equal(joined["score_before"], joined["score_after"]), False)  # noqa: FBT003
    conditions = pc.make_struct(*(_flat(each) for each in (new, gone, screened, other)))
    reason = pc.case_when(conditions, "new", "gone", "screened", "score", "cut")
    rows = joined.select(["row_id", "before", "after"]).append_column("reason", reason)
    return rows.filter(pc.xor(_is_kept(joined["before"]), _is_kept(joined["after"])))
