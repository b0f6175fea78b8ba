"""How many rows of each cluster must be measured before the split of a budget is known well enough.

    mean and variance of each cluster's measured rows -> shares with intervals -> rows to measure next, until narrow

A share is pi_k = s_k^p / sum_j s_j^p of mean damages s (PASER, arXiv 2502.12594, equation 6, at power p = 1), whatever
the budget. To first order its variance is

    Var pi_k = p^2 pi_k^2 ((1 - 2 pi_k) c_k + sum_j pi_j^2 c_j),   c_j = sigma_j^2 / s_j^2 (1 / m_j - 1 / N_j)

with m_j of N_j rows measured without replacement. Sampling stops when 1.96 sqrt(Var pi_k) <= tolerance max(pi_k, 1 / K)
for every cluster k of K: each knows its part of the budget to that fraction of it, or of an average part. Rows go where
a row narrows the widest interval most, at most as many in a round as there were, since early variances are guesses.
Raises `ConfigError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Bool, Float64, Int64

__all__ = ["Moments", "Shares", "next_sample", "shares"]

_Z = 1.959964
_STEP = 1.1
"""Growth of a cluster's sample between two looks at the widest interval."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What is known of the damage of each cluster.

    Attributes:
        measured: Rows measured, int64 (clusters,).
        mean: Of their damage, float64 (clusters,), >= 0; anything where none was measured.
        variance: With one degree of freedom taken off, float64 (clusters,); anything below two rows.
        rows: Rows of each cluster that can be measured, int64 (clusters,).
    """

    measured: Int64
    mean: Float64
    variance: Float64
    rows: Int64

    @classmethod
    def of(cls, damage: Float64, labels: Int64, rows: Int64) -> Moments:
        """Count and sum up measured rows.

        Args:
            damage: Of the measured rows, float64 (measured,).
            labels: Cluster of each, int64 (measured,).
            rows: Rows of each cluster that can be measured.
        """
        count = np.bincount(labels, minlength=len(rows)).astype(np.int64)
        mean = np.bincount(labels, weights=damage, minlength=len(rows)) / np.maximum(count, 1)
        squares = np.bincount(labels, weights=(damage - mean[labels]) ** 2, minlength=len(rows))
        return cls(count, mean, squares / np.maximum(count - 1, 1), rows)

    @property
    def relative(self) -> Float64:
        """sigma^2 / s^2 of each cluster, float64 (clusters,); 0 where there is no damage."""
        return np.divide(self.variance, self.mean**2, out=np.zeros(len(self.rows)), where=self.mean > 0)


@dataclass(frozen=True, eq=False)
class Shares:
    """Each cluster's part of a budget.

    Attributes:
        share: pi, float64 (clusters,), summing to 1; all alike where nothing is damaged.
        half: Half the width of its 95 % interval, float64 (clusters,).
        allowed: What the rule allows, float64 (clusters,).
    """

    share: Float64
    half: Float64
    allowed: Float64

    @property
    def narrow(self) -> Bool:
        """Which intervals are narrow enough, bool (clusters,)."""
        return self.half <= self.allowed


def shares(known: Moments, *, tolerance: float, power: float = 1.0) -> Shares:
    """Estimate the split of a budget.

    Args:
        known: Of each cluster; those with one measured row of several, or none, count as not narrow.
        tolerance: Part of a cluster's own budget, or of an average one, that it may be wrong by, > 0.
        power: Of the damage, >= 0.

    Raises:
        ConfigError: The tolerance or the power is out of range.
    """
    if not 0 < tolerance < np.inf:
        raise ConfigError(f"the tolerance of a survey must be above 0, got {tolerance}")
    if not 0 <= power < np.inf:
        raise ConfigError(f"power must be 0 or more, got {power}")
    share, weights = _split(known, power)
    blind = (known.measured < 2) & (known.measured < known.rows)  # noqa: PLR2004 - no variance of one
    variance = weights @ (known.relative * _missing(known.measured, known.rows))
    half = np.where(blind & (power > 0), np.inf, _Z * np.sqrt(np.maximum(variance, 0.0)))
    return Shares(share, half, tolerance * np.maximum(share, 1.0 / max(len(share), 1)))


def next_sample(known: Moments, *, tolerance: float, first: int, power: float = 1.0) -> Int64:
    """Rows of each cluster that are to be measured by the end of the next round, int64 (clusters,).

    Equal to `known.measured` once every interval is narrow, or everything is measured.

    Args:
        known: Of each cluster.
        tolerance: As for `shares`.
        first: Rows of each cluster in the first round, >= 2.
        power: As for `shares`.

    Raises:
        ConfigError: A number is out of range.
    """
    if first < 2:  # noqa: PLR2004 - no variance of one
        raise ConfigError(f"a survey begins with at least 2 rows of a cluster, got {first}")
    begun = np.minimum(first, known.rows)
    now = shares(known, tolerance=tolerance, power=power)
    if (known.measured < begun).any():
        return np.maximum(known.measured, begun)
    _, weights = _split(known, power)
    wanted, most = known.measured.copy(), np.minimum(known.rows, 2 * known.measured)
    while True:
        terms = weights * known.relative
        half = _Z * np.sqrt(np.maximum(terms @ _missing(wanted, known.rows), 0.0))
        widest = int(np.argmax(half / now.allowed))
        gain = np.where(wanted < most, terms[widest] / np.maximum(wanted, 1) ** 2, 0.0)
        helper = int(np.argmax(gain))
        if half[widest] <= now.allowed[widest] or gain[helper] <= 0:
            return wanted
        wanted[helper] = min(int(most[helper]), int(np.ceil(_STEP * wanted[helper])))


def _split(known: Moments, power: float) -> tuple[Float64, Float64]:
    """Shares, and what each cluster's relative variance counts in the variance of each share, (clusters, clusters)."""
    there = known.mean * (known.measured > 0)
    damage = np.where(there > 0, np.power(there, power, where=there > 0, out=np.zeros(len(there))), 0.0)
    if not damage.sum() > 0:
        return np.full(len(damage), 1.0 / max(len(damage), 1)), np.zeros((len(damage), len(damage)))
    share = damage / damage.sum()
    own = np.diag(1.0 - 2.0 * share) + (share**2)[None, :]
    weights: Float64 = power**2 * (share**2)[:, None] * own
    return share, weights


def _missing(measured: Int64, rows: Int64) -> Float64:
    """1 / m - 1 / N: what is left of the variance of a mean, 0 where all is measured."""
    return np.where(measured > 0, 1.0 / np.maximum(measured, 1) - 1.0 / np.maximum(rows, 1), 0.0)
