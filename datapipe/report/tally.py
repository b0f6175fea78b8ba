"""Counts for the page, gathered batch by batch: histogram, strata, class balance. Memory: strata times bins."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from datapipe.report.facts import ClassBalance, ScoreHistogram, StratumFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from datapipe.storage.arrays import Bool, Float32, Float64, Int64

__all__ = ["Tally"]


class Tally:
    """Adds up batches of rows.

    Args:
        edges: Bin edges of the score histogram, ascending; scores outside fall into the end bins.
    """

    def __init__(self, edges: Sequence[float]) -> None:
        self._edges: Float64 = np.asarray(edges, np.float64)
        self._names: dict[str, int] = {}
        self._bins = np.zeros((0, 2, len(edges) - 1), np.int64)
        self._sums = np.zeros(0, np.float64)
        self._missing = 0
        self._before: Counter[str] = Counter()
        self._after: Counter[str] = Counter()

    def add(
        self, scores: Float32, kept: Bool, strata: pa.ChunkedArray, *, labels: pa.ChunkedArray | None = None
    ) -> None:
        """Count some rows.

        Args:
            scores: Float32 (rows,); rows whose score is not finite count as missing, and in the balance.
            kept: Bool (rows,).
            strata: String (rows,); the empty string for rows in no stratum, which count in the histogram only.
            labels: String (rows,); null counts as `(none)`.
        """
        if not len(scores):
            return
        scored = np.isfinite(scores)
        self._missing += int((~scored).sum())
        codes, values = self._codes(strata)[scored], scores[scored].astype(np.float64)
        bins = np.clip(np.searchsorted(self._edges, values, side="right") - 1, 0, len(self._edges) - 2)
        width = self._bins.shape[2]
        flat = (codes * 2 + ~kept[scored]) * width + bins
        self._bins += np.bincount(flat, minlength=self._bins.size).reshape(self._bins.shape)
        self._sums += np.bincount(codes, weights=values, minlength=len(self._sums))
        if labels is not None:
            self._before.update(_values(labels))
            self._after.update(_values(labels.filter(_mask(kept))))

    def histogram(self, *, metric: str, higher: str, cuts: Sequence[float] = ()) -> ScoreHistogram:
        """Scores of all rows counted."""
        totals = self._bins.sum(axis=0)
        return ScoreHistogram(
            metric=metric,
            higher=higher,
            edges=tuple(float(edge) for edge in self._edges),
            kept=_ints(totals[0]),
            dropped=_ints(totals[1]),
            cuts=tuple(cuts),
            missing=self._missing,
        )

    def strata(self) -> tuple[StratumFacts, ...]:
        """One entry a stratum, in order of name."""
        found = []
        for name, code in sorted(self._names.items()):
            kept, dropped = self._bins[code]
            total = int(kept.sum() + dropped.sum())
            if name and total:
                found.append(
                    StratumFacts(
                        name=name,
                        total=total,
                        kept=int(kept.sum()),
                        mean_score=float(self._sums[code] / total),
                        scores=(_ints(kept), _ints(dropped)),
                    )
                )
        return tuple(found)

    def balance(self, *, column: str) -> ClassBalance | None:
        """Rows a class before and after; None where no labels were counted."""
        if not self._before:
            return None
        names = sorted(self._before)
        return ClassBalance(
            column=column,
            before={name: self._before[name] for name in names},
            after={name: self._after[name] for name in names},
        )

    def _codes(self, strata: pa.ChunkedArray) -> Int64:
        """Give every stratum a number, new ones the next, and room to count."""
        coded = strata.combine_chunks().dictionary_encode()
        own = [self._names.setdefault(name, len(self._names)) for name in coded.dictionary.to_pylist()]
        more = len(self._names) - len(self._sums)
        if more:
            self._bins = np.concatenate([self._bins, np.zeros((more, *self._bins.shape[1:]), np.int64)])
            self._sums = np.append(self._sums, np.zeros(more))
        codes: Int64 = np.asarray(own, np.int64)[coded.indices.to_numpy()]
        return codes


def _values(labels: pa.ChunkedArray) -> dict[str, int]:
    import pyarrow.compute as pc

    return {entry["values"] or "(none)": entry["counts"] for entry in pc.value_counts(labels).to_pylist()}


def _mask(kept: Bool) -> pa.Array:
    import pyarrow as pa

    return pa.array(kept)


def _ints(counts: Int64) -> tuple[int, ...]:
    return tuple(int(count) for count in counts)
