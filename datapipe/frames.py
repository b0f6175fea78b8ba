"""Scores and choices as columns of a Polars frame: a frame in, the same kind of frame out.

    frame.pipe(datapipe.score, text_column="text")  ->  the frame and `score_prototypes`
         .pipe(datapipe.select, keep=0.3)           ->  the frame and `kept`, `reason`, `stratum`, `rank`

A LazyFrame stays lazy: the work happens when it is collected. Both hold the frame in memory; `datapipe.curate` does
not. Presets choose the rows that it keeps, and strategies too where rows have labels: a frame carries no clusters, over
which `auto` spreads random rows where there are none.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from datapipe.config import CurateConfig, CurateOptions, MetricName, ScoresHigher, Strategy
from datapipe.errors import ColumnError, SelectionError
from datapipe.stages.select import UNSCORED

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from datapipe.selection.auto import Choice
    from datapipe.selection.result import ScoreBatch
    from datapipe.storage.arrays import Float32, Ids, Int32

Frame = TypeVar("Frame", "pl.DataFrame", "pl.LazyFrame")

SCORE_PREFIX = "score_"
CHOICE_COLUMNS = ("kept", "reason", "stratum", "rank")


def score(frame: Frame, **options: Unpack[CurateOptions]) -> Frame:
    """Add a float32 column `score_METRIC`; the scores are those of `datapipe.curate` with the same options.

    With the metric dual comes `score_mean_probability`, by which the preset dual draws rows.

    Args:
        frame: A DataFrame or LazyFrame. Row order and columns stay as they are.
        **options: `metric` (a name of `datapipe.metrics.base.METRICS`) or a `preset` that names one, columns, model,
            prototypes, seed and files of scores or dynamics, as `CurateConfig` documents them.

    Returns:
        The frame with the score, null where the row could not be scored (no text, no label, vector not finite).
        Imported scores that are higher for easier rows are turned round.

    Raises:
        ConfigError: An option is unknown or out of range.
        ColumnError: A column that the metric needs is not there.
        MetricError: The rows are not such that the metric can score them, such as labels of one class.
    """
    import polars as pl

    from datapipe.metrics.dynamics import MEAN_PROBABILITY

    config = CurateConfig.from_mapping(dict(options))
    columns: list[str] = [config.metric]
    if config.metric == "dual":
        columns.append(MEAN_PROBABILITY)

    def scored(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(_scores(rows, config, columns))

    return _mapped(frame, scored, {f"{SCORE_PREFIX}{column}": pl.Float32() for column in columns})


def select(  # noqa: PLR0913 - the frame and the budget; all by keyword
    frame: Frame,
    *,
    keep: float | None = None,
    keep_rows: int | None = None,
    metric: MetricName | None = None,
    strategy: Strategy = "auto",
    preset: str | None = None,
    window_start: float | None = None,
    label_column: str | None = None,
    balance: str | None = None,
    scores_higher: ScoresHigher | None = None,
    seed: int = 0,
) -> Frame:
    """Choose rows by their scores: add the columns `kept`, `reason`, `stratum` and `rank`.

    Args:
        frame: A DataFrame or LazyFrame with the column `score_METRIC`. Row order and columns stay as they are.
        keep: Fraction of the scored rows to keep, 0 < keep <= 1; 0.3 where neither this nor `keep_rows` is given.
        keep_rows: Rows to keep.
        metric: Whose scores; default that of the preset, else `prototypes`.
        strategy: `auto`, `hard`, `easy`, `random` or `strata`; see `CurateConfig`.
        preset: A published method by name (`docs/presets.md`) in place of metric, strategy and balance.
        window_start: Part of the rows, the hardest first, that the window of the preset `bws` leaves out.
        label_column: Class labels, for strata.
        balance: Column whose values get at least half of an equal share of the budget each.
        scores_higher: What high values of `score_imported` mean, as `score` has written them: `harder` (the default),
            `rarer` or `better`.
        seed: Seeds the hash order.

    Returns:
        The frame with the choice. A row without a score is not kept; its reason is `unscored`.

    Raises:
        BudgetError: The budget is out of range, or asks for more rows than there are.
        ConfigError: Preset, metric and strategy are unknown or contradict each other.
        ColumnError: The frame has no such score, label or balance column.
        SelectionError: No row has a score, or the preset needs labels and there are none.
    """
    import polars as pl

    given = {
        "keep": keep,
        "keep_rows": keep_rows,
        "metric": metric,
        "strategy": strategy,
        "preset": preset,
        "window_start": window_start,
        "label_column": label_column,
        "balance": balance,
        "scores_higher": scores_higher,
        # The frame's own column stands for the file of scores that a run would read.
        "scores": f"{SCORE_PREFIX}imported" if metric == "imported" else None,
        "seed": seed,
    }
    config = CurateConfig.from_mapping({name: value for name, value in given.items() if value is not None})
    kinds = dict(zip(CHOICE_COLUMNS, (pl.Boolean(), pl.String(), pl.String(), pl.Int64()), strict=True))
    return _mapped(frame, lambda rows: rows.with_columns(_choice(rows, config)), kinds)


def _mapped(frame: Frame, function: Callable[[pl.DataFrame], pl.DataFrame], added: dict[str, Any]) -> Frame:
    import polars as pl

    if isinstance(frame, pl.DataFrame):
        return function(frame)
    schema = pl.Schema({**frame.collect_schema(), **added})
    return frame.map_batches(function, schema=schema, predicate_pushdown=False, projection_pushdown=False)


def _scores(rows: pl.DataFrame, config: CurateConfig, columns: list[str]) -> list[pl.Series]:
    """Columns of the scores of a frame, in its own order: a run in a temporary folder, up to the score."""
    import numpy as np
    import polars as pl

    from datapipe.curation import Curation

    options = cast("CurateOptions", {name: getattr(config, name) for name in CurateOptions.__annotations__})
    scores: dict[str, Float32] = {column: np.full(rows.height, np.nan, np.float32) for column in columns}
    with tempfile.TemporaryDirectory(prefix="datapipe-") as folder:
        outputs = Curation(rows, out=Path(folder), **options).outputs(until="score")
        places = outputs["ingest"].tables("places", columns=["row"])
        for place, table in zip(places, outputs["score"].tables(columns=columns), strict=True):
            for column in columns:
                scores[column][place["row"].to_numpy() - 1] = table[column].to_numpy()
    return [pl.Series(f"{SCORE_PREFIX}{column}", values).fill_nan(None) for column, values in scores.items()]


def _choice(rows: pl.DataFrame, config: CurateConfig) -> list[pl.Series]:
    import numpy as np
    import polars as pl
    import pyarrow as pa

    from datapipe.selection.groups import group_codes, group_names
    from datapipe.selection.result import ScoreBatch

    name = f"{SCORE_PREFIX}{config.metric}"
    place = _place(config)
    for column in (name, place, config.label_column, config.balance):
        if column is not None and column not in rows.columns:
            raise ColumnError(f"there is no column {column!r} to select by; the columns are {', '.join(rows.columns)}")
    own = [column for column in rows.columns if not column.startswith(SCORE_PREFIX) and column not in CHOICE_COLUMNS]
    ids, order = _sorted_ids(rows.select(own))
    scores: Float32 = rows[name].cast(pl.Float32).fill_null(float("nan")).to_numpy()[order]
    scored = np.isfinite(scores)
    if not scored.any():
        raise SelectionError(
            f"none of {len(scores):,} rows has a score in {name!r}, so there is nothing to choose from"
        )
    choice = _plan(rows, config, pool=int(scored.sum()))
    names: tuple[str, ...] = ()
    codes: Int32 | None = None
    if choice.plan.strata == "group":
        values = rows[str(config.balance or config.label_column)].gather(order).cast(pl.String)
        names = group_names(values.to_list())
        codes = group_codes(pa.chunked_array([values.to_arrow().cast(pa.string())]), names)
    excluded = np.where(scored, -1, 0).astype(np.int32)
    places = rows[place].cast(pl.Float32).to_numpy()[order] if place is not None else None
    batch = ScoreBatch(ids=ids, scores=scores, groups=codes, excluded=excluded, places=places)
    chosen = _run_engine(batch, names, choice, config)
    back = np.argsort(order, kind="stable")
    return [chosen[column].gather(back) for column in CHOICE_COLUMNS]


def _place(config: CurateConfig) -> str | None:
    """The column of places that the preset needs beside its scores."""
    from datapipe.selection.presets import get_preset

    place = get_preset(config.preset).place if config.preset is not None else None
    return f"{SCORE_PREFIX}{place}" if place is not None else None


def _sorted_ids(rows: pl.DataFrame) -> tuple[Ids, Any]:
    """Row ids, ascending, and the place in the frame of each."""
    import numpy as np

    from datapipe.storage.rowid import apply_counters, content_digests, count_duplicates

    digests = content_digests(rows.to_arrow())
    first = np.lexsort((digests[:, 1], digests[:, 0]))
    ids = apply_counters(digests[first], count_duplicates(digests[first]))
    second = np.lexsort((ids[:, 1], ids[:, 0]))
    return ids[second], first[second]


def _plan(rows: pl.DataFrame, config: CurateConfig, *, pool: int) -> Choice:
    """What a run would do with so many scored rows."""
    from datapipe.config import budget_of
    from datapipe.selection.auto import balance, by_preset, choose
    from datapipe.selection.presets import get_preset
    from datapipe.stages.build import metric_of

    budget = budget_of(config)
    fraction = min(1.0, budget.fraction if budget.fraction is not None else (budget.rows or 0) / max(pool, 1))
    classes = rows[config.label_column].n_unique() if config.label_column is not None else None
    if config.preset is not None:
        start = config.window_start
        return by_preset(get_preset(config.preset), fraction=fraction, classes=classes, k=None, window_start=start)
    metric = metric_of(config)
    choice = choose(config.strategy, fraction=fraction, rows=pool, classes=classes, k=None, metric=metric)
    return balance(choice) if config.balance is not None else choice


def _run_engine(batch: ScoreBatch, groups: tuple[str, ...], choice: Choice, config: CurateConfig) -> pl.DataFrame:
    import numpy as np
    import polars as pl
    import pyarrow as pa

    from datapipe.config import budget_of
    from datapipe.selection.engine import select as engine
    from datapipe.selection.groups import mean_scores
    from datapipe.storage.rowid import ids_from_arrow

    with (
        tempfile.TemporaryDirectory(prefix="datapipe-") as scratch,
        engine(
            lambda: iter([batch]),
            choice.plan,
            budget_of(config),
            seed=config.seed,
            scratch=Path(scratch),
            groups=groups,
            exclusions=(UNSCORED,),
            weights=mean_scores([batch], groups=len(groups)) if choice.plan.quota == "given" else None,
            placed=batch.places is not None,
        ) as selection,
    ):
        chosen = pa.concat_tables(list(selection))
    if not np.array_equal(ids_from_arrow(chosen["row_id"]), batch.ids):
        raise RuntimeError("the selection came back in another order. This is a bug")
    return pl.DataFrame(pl.from_arrow(chosen.drop_columns("row_id")))
