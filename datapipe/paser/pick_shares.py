"""How `ours` shares a budget among clusters: damage and what the user makes of them -> weights -> quotas in bounds.

Raises `BudgetError` and `ConfigError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError
from datapipe.paser.allocate import Degradation, allocate_within, shares_by_damage
from datapipe.paser.pick_config import PickConfig, PickRows, undamaged

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float64, Int64


def weights_of(rows: PickRows, damage: Degradation, config: PickConfig, costs: Int64) -> Float64:
    """Part of the budget that each cluster is to have under `ours`, float64 (clusters,) summing to 1.

    Args:
        rows: The pool.
        damage: Its clusters.
        config: Powers, even part and priors.
        costs: What each row takes of the budget, int64 (rows,): 1, or its tokens.

    Raises:
        ConfigError: A prior names a cluster or a source that there is not.
        BudgetError: All priors are zero.
    """
    prior = _prior(rows, config)
    sizes = np.bincount(rows.labels, costs, rows.clusters).astype(np.int64)
    scores = np.zeros(rows.clusters) if undamaged(damage) else damage.score
    return shares_by_damage(
        scores, prior=prior, sizes=sizes, power=config.power, size_power=config.size_power, even=config.even
    )


def quotas_of(weights: Float64, available: Int64, config: PickConfig, budget: int) -> Int64:
    """Rows or tokens of each cluster, int64 (clusters,).

    Args:
        weights: Of `weights_of`.
        available: What each cluster holds, int64 (clusters,).
        config: Floor and ceiling.
        budget: What is to be shared out.

    Raises:
        BudgetError: The floors add up to more than the budget.
    """
    least = np.full(len(weights), int(config.floor * budget), np.int64)
    most = np.full(len(weights), int(np.ceil(config.ceiling * budget)), np.int64)
    return allocate_within(weights, available, budget=budget, least=least, most=np.maximum(most, least))


def _prior(rows: PickRows, config: PickConfig) -> Float64:
    """What each cluster is worth: its own weight times the mean weight of its rows' sources."""
    prior = np.ones(rows.clusters)
    if config.source_prior and rows.sources is not None:
        worth = np.ones(len(rows.source_names))
        for name, value in config.source_prior:
            if name not in rows.source_names:
                raise ConfigError(f"no row is of the source {name!r}; sources are {', '.join(rows.source_names)}")
            worth[rows.source_names.index(name)] = value
        cells = np.bincount(rows.labels * len(worth) + rows.sources, minlength=rows.clusters * len(worth))
        counts = cells.reshape(rows.clusters, len(worth))
        prior = counts @ worth / np.maximum(counts.sum(1), 1)
    for number, value in config.cluster_prior:
        if not 0 <= number < rows.clusters:
            raise ConfigError(f"there is no cluster {number}; clusters are numbered 0 to {rows.clusters - 1}")
        prior[number] *= value
    return prior
