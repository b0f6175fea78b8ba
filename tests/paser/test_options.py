"""What a selection for recovery may be asked for, and what is refused before anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from datapipe.errors import BudgetError, ConfigError
from datapipe.paser.clusters import ClusterConfig
from datapipe.paser.options import RecoveryConfig
from datapipe.paser.told import reasons
from datapipe.paser.wiring import shard_rows_of


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


@pytest.mark.parametrize(
    ("width", "max_length", "rows"),
    [(32, 256, 8192), (576, 2048, 256), (4096, 2048, 64), (4096, 64, 256), (1 << 20, 2048, 32)],
)
def test_a_shard_has_as_many_rows_as_memory_takes_states(width: int, max_length: int, rows: int) -> None:
    assert shard_rows_of(width, max_length) == rows


def test_reasons_say_the_rule_the_weights_and_the_survey() -> None:
    asked = RecoveryConfig(power=2.0, even=0.25, rule="power:0.5", source_prior={"code": 2.0}, conflicts="off")
    said = reasons(asked.pick, survey=True)
    assert said[0].startswith(
        "Each skill gets its part of the budget by its damage to the power 2, but 25 % of it by size"
    )
    assert said[1] == "Skills are weighted by what they, or their sources, are worth to the user."
    assert said[2] == "Within a skill, damage times length decides, by the rule power:0.5."
    assert said[3].startswith("Damage was measured on a sample")
    assert reasons(RecoveryConfig(method="random").pick, survey=False)[0].startswith("Rows at random")
