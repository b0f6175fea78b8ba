"""In which order rows are taken: the paper's efficiency, a family of ours, and what the baselines go by.

    damage, tokens, losses -> score of each row (higher is taken first, NaN last) -> order, ties in hash order

Pure functions of arrays. Raises `ConfigError` for a rule that there is none of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float64, Int64

RULES = ("ies", "jsd", "length", "random", "power:ALPHA")
_POWER = "power:"


def efficiency(jsd: Float64, length: Int64) -> Float64:
    """Instruction efficiency score, float64 (rows,): JSD / ln cost (PASER, arXiv 2502.12594, eq. 7), cost = length^2.

    The square, attention's, halves every score and changes no order. Since answers enter the logarithm, it prefers
    short rows to long ones of the same damage.

    Args:
        jsd: Mean divergence over the response, float64 (rows,), nats; NaN where it was not measured.
        length: Tokens of prompt and response, int64 (rows,); taken for 2 where fewer, as ln 1 = 0.
    """
    found: Float64 = jsd / (2.0 * np.log(np.maximum(length, 2)))
    return found


def damage_by_length(jsd: Float64, tokens: Int64, *, alpha: float) -> Float64:
    """JSD * L / L^alpha, float64 (rows,): alpha 1 is the mean a token, which no length changes; 0 the sum over them.

    Args:
        jsd: Mean divergence over the response, float64 (rows,).
        tokens: L, of the response, int64 (rows,).
        alpha: How much length counts against a row.
    """
    found: Float64 = jsd * np.power(np.maximum(tokens, 1).astype(np.float64), 1.0 - alpha)
    return found


def following_difficulty(nll: Float64, alone: Float64) -> Float64:
    """IFD = PPL(answer | instruction) / PPL(answer), float64 (rows,); NaN at 1 and above.

    There the instruction does not help, and the authors leave the row out (Li et al., arXiv 2308.12032, section 2.2).

    Args:
        nll: Mean negative log-likelihood of the response after its prompt, float64 (rows,), nats.
        alone: The same without the prompt.
    """
    ratio = np.exp(nll - alone)
    return np.where(ratio < 1.0, ratio, np.nan)


def rule_scores(rule: str, *, jsd: Float64, tokens: Int64, prompt_tokens: Int64) -> Float64:
    """Score the rows by one of `RULES`, float64 (rows,); all equal for `random`.

    Args:
        rule: `ies`, `jsd`, `length` (longest response first), `random` or `power:ALPHA`.
        jsd: Mean divergence over the response, float64 (rows,).
        tokens: Of the response, int64 (rows,).
        prompt_tokens: Of the prompt, int64 (rows,).

    Raises:
        ConfigError: There is no such rule.
    """
    if rule == "random":
        return np.zeros(len(tokens))
    if rule == "length":
        return tokens.astype(np.float64)
    if rule == "jsd":
        return jsd
    if rule == "ies":
        return efficiency(jsd, tokens + prompt_tokens)
    return damage_by_length(jsd, tokens, alpha=alpha_of(rule))


def alpha_of(rule: str) -> float:
    """The exponent of `power:ALPHA`.

    Raises:
        ConfigError: It is none.
    """
    try:
        alpha = float(rule.removeprefix(_POWER)) if rule.startswith(_POWER) else np.nan
    except ValueError:
        alpha = np.nan
    if not np.isfinite(alpha):
        raise ConfigError(f"the rule must be one of {', '.join(RULES)}, ALPHA a number. Got {rule!r}")
    return float(alpha)


def with_unmeasured(scores: Float64, labels: Int64, order: Int64, *, clusters: int) -> Float64:
    """Scores with the mean of its cluster where one is NaN, float64 (rows,): better than what is known to be worse.

    Args:
        scores: Float64 (rows,).
        labels: Cluster of each row, int64 (rows,).
        order: A place for each row, int64 (rows,): sums are taken in this order, so that rounding hangs on no other.
        clusters: Their number.
    """
    gaps = np.isnan(scores)
    if not gaps.any():
        return scores
    known = np.argsort(order)[~gaps[np.argsort(order)]]
    rows = np.bincount(labels[known], minlength=clusters)
    sums = np.bincount(labels[known], scores[known], clusters)
    means = np.divide(sums, rows, out=np.full(clusters, np.nan), where=rows > 0)
    found: Float64 = np.where(gaps, means[labels], scores)
    return found


def ranked(scores: Float64, order: Int64) -> Int64:
    """Rows from the highest score down, NaN last, equal ones by `order`; int64 (rows,)."""
    falling = np.where(np.isnan(scores), np.inf, -scores)
    return np.lexsort((order, falling)).astype(np.int64)


def places_within(preferred: Int64, labels: Int64, *, clusters: int) -> Int64:
    """Place of each row among those of its cluster, from 0, int64 (rows,).

    Args:
        preferred: All rows, first one first, int64 (rows,).
        labels: Cluster of each row, int64 (rows,) in [0, clusters).
        clusters: Their number.
    """
    own = labels[preferred]
    grouped = np.argsort(own, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(own, minlength=clusters))[:-1]])
    places = np.empty(len(labels), np.int64)
    places[preferred[grouped]] = np.arange(len(labels)) - starts[own[grouped]]
    return places


def interleaved(places: Int64, labels: Int64, weights: Float64, order: Int64) -> Int64:
    """All rows so that every beginning holds the clusters in proportion to weight; int64 (rows,).

    The row at place j of a cluster of weight w stands at (j + 1/2) / w (Webster's and Sainte-Lague's rule), so a larger
    budget keeps what a smaller one does. Clusters of weight 0 come last.

    Args:
        places: Of each row in its cluster, from 0, int64 (rows,).
        labels: Cluster of each row, int64 (rows,).
        weights: Of each cluster, float64 (clusters,), >= 0.
        order: Breaks ties, int64 (rows,), all different.
    """
    own = weights[labels]
    stand = np.divide(places + 0.5, own, out=np.full(len(labels), np.inf), where=own > 0)
    return np.lexsort((order, places, stand)).astype(np.int64)
