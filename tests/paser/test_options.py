"""What a selection for recovery may be asked for, and what is refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from datapipe.errors import BudgetError, ConfigError
from datapipe.paser.clusters import ClusterConfig
from datapipe.paser.options import RecoveryConfig


def test_a_fifth_of_the_pool_is_kept_unless_said_otherwise() -> None:
    assert RecoveryConfig().budget.fraction == 0.2
    assert RecoveryConfig().budget_in_words == "20 % of the pool"
    assert RecoveryConfig(keep_rows=1500).budget_in_words == "1,500 rows"
    assert RecoveryConfig(keep_tokens=10_000).budget_in_words == "at most 10,000 tokens"


def test_the_paper_mode_is_the_published_rule_with_its_conflicts() -> None:
    found = RecoveryConfig(mode="paper").pick
    assert found.method == "paper"
    assert found.filter == "paper"
    assert RecoveryConfig(mode="paper", method="paper").pick == found


def test_a_number_of_clusters_or_a_whole_config_says_how_skills_are_found() -> None:
    assert RecoveryConfig(clusters=7, seed=3).skills == ClusterConfig(k=7, seed=3)
    own = ClusterConfig(k=5, labels="kmeans")
    assert RecoveryConfig(clusters=own).skills is own
    assert RecoveryConfig().skills.k is None


def test_the_page_tells_what_was_asked_for_and_no_defaults() -> None:
    assert RecoveryConfig().told() == {"method": "ours"}
    assert RecoveryConfig(keep=0.1, prior={2: 0.0}).told() == {"method": "ours", "keep": 0.1, "prior": {"2": 0.0}}


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"keep": 0.1, "keep_rows": 3}, BudgetError, "exclude each other"),
        ({"keep_rows": 0}, BudgetError, "A budget of rows is at least 1; got 0"),
        ({"keep": 0.0}, BudgetError, "above 0 and not above 1; got 0.0"),
        ({"methd": "ours"}, ConfigError, "unknown option 'methd'; did you mean 'method'"),
        ({"method": "best"}, ConfigError, "method must be one of ours, paper, random"),
        ({"mode": "article"}, ConfigError, "mode must be paper, or left out. Got 'article'"),
        ({"mode": "paper", "power": 2.0}, ConfigError, "mode paper decides power"),
        ({"mode": "paper", "method": "random"}, ConfigError, "mode paper decides method"),
        ({"survey": True, "method": "top_jsd"}, ConfigError, "survey measures a sample of the rows, but top_jsd"),
        ({"clusters": 0}, ConfigError, "clusters counts skills, at least 1. Got 0"),
        ({"max_length": 1}, ConfigError, "max_length must be at least 2 tokens. Got 1"),
        ({"seed": -1}, ConfigError, r"seed must be in \[0, 2\^63\). Got -1"),
        ({"shard_rows": 0}, ConfigError, "shard_rows must be at least 1. Got 0"),
        ({"even": 1.5}, ConfigError, "even is a part of the budget"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(options: dict[str, Any], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        RecoveryConfig.from_mapping(options)
