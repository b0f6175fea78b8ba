"""Facts from arrays: score histograms, strata, class balance.

All counts add up over shards: what is counted on the same edges can be summed bin by bin.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from datapipe.report.facts import ClassBalance, MapPoint, ScoreHistogram, StratumFacts, balance_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from datapipe.storage.arrays import Bool, Float32, Float64, Int64

__all__ = ["balance_score", "class_balance", "histogram", "map_points", "nice_edges", "strata_facts"]


def nice_edges(low: float, high: float, *, bins: int = 60) -> tuple[float, ...]:
    """Return bin edges of a round width (1, 2 or 5 times a power of ten) that cover `low` to `high`.

    There are at most `bins` bins, at least one; both ends are multiples of the width.

    Raises:
        MetricError: A bound is not finite, `low` is above `high`, or `bins` is below 2.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low <= high) or bins < 2:  # noqa: PLR2004
        raise MetricError(f"edges need finite low <= high and bins >= 2; got low {low}, high {high}, bins {bins}")
    # Below that span a width would vanish beside the values themselves.
    span = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-9)
    exponent = math.floor(math.log10(span / bins))
    steps = ((factor, power) for power in range(exponent, exponent + 3) for factor in (1, 2, 5))
    for factor, power in steps:
        first, last = math.floor(low / (factor * 10.0**power)), math.ceil(high / (factor * 10.0**power))
        if max(last, first + 1) - first <= bins:
            break
    else:
        raise MetricError(f"no round width covers {low} to {high} with {bins} bins. This is a bug")
    # Divided where the width is below one, for 3 / 10 is the number that 0.3 is, and 3 * 0.1 is not.
    return tuple(
        step * factor * 10.0**power if power >= 0 else step * factor / 10.0**-power
        for step in range(first, max(last, first + 1) + 1)
    )


def histogram(
    scores: Float32,
    kept: Bool,
    *,
    metric: str,
    higher: str = "harder",
    edges: Sequence[float] | None = None,
    cuts: Sequence[float] = (),
) -> ScoreHistogram:
    """Count kept and dropped rows a bin of score.

    Args:
        scores: float32 (rows,); rows whose score is not finite are counted as missing.
        kept: bool (rows,).
        metric: Name of the score.
        higher: What a high score means.
        edges: Ascending; None takes `nice_edges` of the range. Scores beyond them count in the outermost bins.
        cuts: Scores where the choice cuts.

    Raises:
        MetricError: `scores` and `kept` differ in length.
    """
    if len(scores) != len(kept):
        raise MetricError(f"{len(scores)} scores and {len(kept)} choices must be of the same rows")
    finite = np.isfinite(scores)
    values, chosen = scores[finite].astype(np.float64), kept[finite]
    if edges is None:
        edges = nice_edges(float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    bins = _bins(values, np.asarray(edges, np.float64))
    width = len(edges) - 1
    return ScoreHistogram(
        metric=metric,
        higher=higher,
        edges=tuple(float(edge) for edge in edges),
        kept=_counts(bins[chosen], width),
        dropped=_counts(bins[~chosen], width),
        cuts=tuple(float(cut) for cut in cuts),
        missing=int(len(scores) - len(values)),
    )


def strata_facts(
    strata: Sequence[str] | NDArray[np.object_],
    kept: Bool,
    *,
    scores: Float32 | None = None,
    edges: Sequence[float] | None = None,
) -> tuple[StratumFacts, ...]:
    """Count rows a stratum, in order of name; with `scores` their mean, with `edges` too their histogram.

    Args:
        strata: Name of each row's stratum (rows,).
        kept: bool (rows,).
        scores: float32 (rows,); rows whose score is not finite are left out of the mean.
        edges: Those of the run's histogram.
    """
    names, codes = np.unique(np.asarray(strata, dtype=object).astype(str), return_inverse=True)
    totals, chosen = np.bincount(codes, minlength=len(names)), np.bincount(codes[kept], minlength=len(names))
    means: list[float | None] = [None] * len(names)
    tables: list[tuple[tuple[int, ...], tuple[int, ...]] | None] = [None] * len(names)
    if scores is not None:
        finite = np.isfinite(scores)
        values, rows, choice = scores[finite].astype(np.float64), codes[finite], kept[finite]
        held = np.bincount(rows, minlength=len(names))
        sums = np.bincount(rows, weights=values, minlength=len(names))
        means = [float(total / count) if count else None for total, count in zip(sums, held, strict=True)]
        if edges is not None:
            width = len(edges) - 1
            cells = rows * width + _bins(values, np.asarray(edges, np.float64))
            grids = [
                np.bincount(cells[part], minlength=len(names) * width).reshape(-1, width) for part in (choice, ~choice)
            ]
            tables = [(_ints(grids[0][place]), _ints(grids[1][place])) for place in range(len(names))]
    return tuple(
        StratumFacts(
            name=str(name),
            total=int(totals[place]),
            kept=int(chosen[place]),
            mean_score=means[place],
            scores=tables[place],
        )
        for place, name in enumerate(names)
    )


def class_balance(labels: Sequence[object], kept: Bool, *, column: str) -> ClassBalance:
    """Count rows a class before and after pruning; a class that lost all its rows stands with 0."""
    names, codes = np.unique(np.array([str(label) for label in labels], dtype=object), return_inverse=True)
    before, after = np.bincount(codes, minlength=len(names)), np.bincount(codes[kept], minlength=len(names))
    return ClassBalance(
        column=column,
        before={str(name): int(count) for name, count in zip(names, before, strict=True)},
        after={str(name): int(count) for name, count in zip(names, after, strict=True)},
    )


def map_points(
    xy: Float32, kept: Bool, strata: Sequence[str], *, scores: Float32 | None = None
) -> tuple[MapPoint, ...]:
    """Join the coordinates of `map_2d`, float32 (rows, 2), with what is known of the same rows."""
    values = [None] * len(xy) if scores is None else [float(s) if math.isfinite(s) else None for s in scores]
    return tuple(
        MapPoint(float(x), float(y), bool(k), str(stratum), score)
        for (x, y), k, stratum, score in zip(xy, kept, strata, values, strict=True)
    )


def _bins(values: Float64, edges: Float64) -> Int64:
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2).astype(np.int64)


def _counts(bins: Int64, width: int) -> tuple[int, ...]:
    return _ints(np.bincount(bins, minlength=width))


def _ints(counts: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(count) for count in counts)
