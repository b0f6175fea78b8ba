"""Scores and choices as columns of a Polars frame: a frame in, the same kind of frame out.

    frame.pipe(datapipe.score, text_column="text")  ->  the frame and `score_prototypes`
         .pipe(datapipe.select, keep=0.3)           ->  the frame and `kept`, `reason`, `stratum`, `rank`

A LazyFrame stays lazy: the work happens when it is collected. Both hold the frame in memory; `datapipe.curate` does
not.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from datapipe.config import CurateConfig, CurateOptions, MetricName, Strategy
from datapipe.errors import ColumnError

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from datapipe.selection.budget import Budget
    from datapipe.storage.arrays import Bool, Float32, Ids

Frame = TypeVar("Frame", "pl.DataFrame", "pl.LazyFrame")

SCORE_PREFIX = "score_"
CHOICE_COLUMNS = ("kept", "reason", "stratum", "rank")
UNSCORED = "unscored"
NO_GROUP = "(none)"


def score(frame: Frame, **options: Unpack[CurateOptions]) -> Frame:
    """Add a float32 column `score_METRIC`; the scores are those of `datapipe.curate` with the same options.

    Args:
        frame: A DataFrame or LazyFrame. Row order and columns stay as they are.
        **options: `metric` (`prototypes`, higher is harder, or `random`), columns, model, prototypes and seed, as
            `CurateConfig` documents them.

    Returns:
        The frame with the score, null where the row could not be scored (no text, vector not finite).

    Raises:
        ConfigError: An option is unknown or out of range.
        ColumnError: A column that the metric needs is not there.
    """
    import polars as pl

    config = CurateConfig.from_mapping(dict(options))
    name = f"{SCORE_PREFIX}{config.metric}"

    def scored(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(_scores(rows, config).alias(name))

    return _mapped(frame, scored, {name: pl.Float32()})


def select(
    frame: Frame,
    *,
    keep: float | None = None,
    keep_rows: int | None = None,
    metric: MetricName = "prototypes",
    strategy: Strategy = "auto",
    label_column: str | None = None,
    balance: str | None = None,
    seed: int = 0,
) -> Frame:
    """Choose rows by their scores: add the columns `kept`, `reason`, `stratum` and `rank`.

    Args:
        frame: A DataFrame or LazyFrame with the column `score_METRIC`. Row order and columns stay as they are.
        keep: Fraction of the scored rows to keep, 0 < keep <= 1; 0.3 where neither this nor `keep_rows` is given.
        keep_rows: Rows to keep.
        metric: Whose scores.
        strategy: `auto`, `hard`, `easy`, `random` or `strata`; see `CurateConfig`.
        label_column: Class labels, for strata.
        balance: Column whose values get at least half of an equal share of the budget each.
        seed: Seeds the hash order.

    Returns:
        The frame with the choice. A row without a score is not kept; its reason is `unscored`.

    Raises:
        BudgetError: The budget is out of range, or asks for more rows than there are.
        ColumnError: The frame has no such score, label or balance column.
    """
    import polars as pl

    config = CurateConfig.from_mapping(
        {
            "keep": keep,
            "keep_rows": keep_rows,
            "metric": metric,
            "strategy": strategy,
            "label_column": label_column,
            "balance": balance,
            "seed": seed,
        }
    )
    kinds = dict(zip(CHOICE_COLUMNS, (pl.Boolean(), pl.String(), pl.String(), pl.Int64()), strict=True))
    return _mapped(frame, lambda rows: rows.with_columns(_choice(rows, config)), kinds)


def _mapped(frame: Frame, function: Callable[[pl.DataFrame], pl.DataFrame], added: dict[str, Any]) -> Frame:
    import polars as pl

    if isinstance(frame, pl.DataFrame):
        return function(frame)
    schema = pl.Schema({**frame.collect_schema(), **added})
    return frame.map_batches(function, schema=schema, predicate_pushdown=False, projection_pushdown=False)


def _scores(rows: pl.DataFrame, config: CurateConfig) -> pl.Series:
    """The scores of a frame, in its own order: a run in a temporary folder, up to the score."""
    import numpy as np
    import polars as pl

    from datapipe.curation import Curation

    options = cast("CurateOptions", {name: getattr(config, name) for name in CurateOptions.__annotations__})
    scores: Float32 = np.full(rows.height, np.nan, np.float32)
    with tempfile.TemporaryDirectory(prefix="datapipe-") as folder:
        outputs = Curation(rows, out=Path(folder), **options).outputs(until="score")
        places = outputs["ingest"].tables("places", columns=["row"])
        for place, table in zip(places, outputs["score"].tables(columns=[config.metric]), strict=True):
            scores[place["row"].to_numpy() - 1] = table[config.metric].to_numpy()
    return pl.Series(scores).fill_nan(None)


def _choice(rows: pl.DataFrame, config: CurateConfig) -> list[pl.Series]:
    import numpy as np
    import polars as pl

    from datapipe.config import budget_of

    name = f"{SCORE_PREFIX}{config.metric}"
    for column in (name, config.label_column, config.balance):
        if column is not None and column not in rows.columns:
            raise ColumnError(f"there is no column {column!r} to select by; the columns are {', '.join(rows.columns)}")
    own = [column for column in rows.columns if not column.startswith(SCORE_PREFIX) and column not in CHOICE_COLUMNS]
    ids, order = _sorted_ids(rows.select(own))
    scores = rows[name].cast(pl.Float32).fill_null(float("nan")).to_numpy()[order]
    grouping = config.balance or config.label_column
    labels = rows[grouping].cast(pl.String).fill_null(NO_GROUP).gather(order) if grouping is not None else None
    chosen = _run_engine(ids, scores, labels, config, budget_of(config))
    back = np.argsort(order, kind="stable")
    return [chosen[column].gather(back) for column in CHOICE_COLUMNS]


def _sorted_ids(rows: pl.DataFrame) -> tuple[Ids, Any]:
    """Row ids, ascending, and the place in the frame of each."""
    import numpy as np

    from datapipe.storage.rowid import apply_counters, content_digests, count_duplicates

    digests = content_digests(rows.to_arrow())
    first = np.lexsort((digests[:, 1], digests[:, 0]))
    ids = apply_counters(digests[first], count_duplicates(digests[first]))
    second = np.lexsort((ids[:, 1], ids[:, 0]))
    return ids[second], first[second]


def _run_engine(
    ids: Ids, scores: Float32, labels: pl.Series | None, config: CurateConfig, budget: Budget
) -> pl.DataFrame:
    import numpy as np
    import polars as pl
    import pyarrow as pa

    from datapipe.metrics.base import get_metric
    from datapipe.selection.auto import balance, choose
    from datapipe.selection.engine import select as engine
    from datapipe.selection.result import ScoreBatch
    from datapipe.storage.rowid import ids_from_arrow

    scored: Bool = np.isfinite(scores)
    groups = tuple(sorted(labels.unique().to_list())) if labels is not None else ()
    codes = {group: code for code, group in enumerate(groups)}
    pool = int(scored.sum())
    choice = choose(
        config.strategy,
        fraction=min(1.0, budget.fraction if budget.fraction is not None else (budget.rows or 0) / max(pool, 1)),
        rows=pool,
        classes=len(groups) if config.label_column is not None else None,
        k=None,
        metric=get_metric(config.metric),
    )
    if config.balance is not None:
        choice = balance(choice)
    batch = ScoreBatch(
        ids=ids,
        scores=scores,
        groups=np.array([codes[label] for label in labels], np.int32) if labels is not None else None,
        excluded=np.where(scored, -1, 0).astype(np.int32),
    )
    grouped = choice.plan.strata == "group"
    with (
        tempfile.TemporaryDirectory(prefix="datapipe-") as scratch,
        engine(
            lambda: iter([batch]),
            choice.plan,
            budget,
            seed=config.seed,
            scratch=Path(scratch),
            groups=groups if grouped else (),
            exclusions=(UNSCORED,),
        ) as selection,
    ):
        chosen = pa.concat_tables(list(selection))
    if not np.array_equal(ids_from_arrow(chosen["row_id"]), ids):
        raise RuntimeError("the selection came back in another order. This is a bug")
    return pl.DataFrame(pl.from_arrow(chosen.drop_columns("row_id")))
