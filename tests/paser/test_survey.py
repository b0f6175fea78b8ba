"""Sampling until the split of a budget is known: the rule by simulation, the stage against the damage of all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import ConfigError
from datapipe.paser.survey import Moments, next_sample, shares
from datapipe.stages.damage import Damage
from datapipe.stages.states import States
from datapipe.stages.survey import Survey
from tests.paser.pools import Skills, dolly, models, run, whole

if TYPE_CHECKING:
    from pathlib import Path

TOLERANCE = 0.1


def sampled(
    damage: list[np.ndarray], *, tolerance: float = TOLERANCE, first: int = 32, power: float = 1.0
) -> tuple[Moments, int]:
    """Measure rounds of the leading rows of each cluster until the rule is content."""
    rows, measured, rounds = np.array([len(each) for each in damage]), np.zeros(len(damage), np.int64), 0
    while True:
        found = np.concatenate([own[:count] for own, count in zip(damage, measured, strict=True)])
        known = Moments.of(found, np.repeat(np.arange(len(damage)), measured), rows)
        wanted = next_sample(known, tolerance=tolerance, first=first, power=power)
        assert (wanted >= measured).all()
        assert (wanted <= rows).all()
        if (wanted == measured).all():
            return known, rounds
        measured, rounds = wanted, rounds + 1


def population(seed: int, *, rows: int = 52_000, clusters: int = 20) -> list[np.ndarray]:
    """Clusters of uneven size and damage; damage of a row has the spread that measured divergences have."""
    draws = np.random.default_rng(seed)
    sizes = np.maximum(2, draws.dirichlet(np.full(clusters, 2.0)) * rows).astype(int)
    means = draws.lognormal(-3, 0.5, clusters)
    return [mean * draws.gamma(2.0, 0.5, size) for mean, size in zip(means, sizes, strict=True)]


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_small_part_of_the_rows_tells_every_clusters_budget_within_the_tolerance(power: float) -> None:
    right, inside, cost = [], [], []
    for seed in range(20):
        damage = population(seed)
        true = np.array([own.mean() for own in damage]) ** power
        true /= true.sum()
        known, rounds = sampled(damage, power=power)
        found = shares(known, tolerance=TOLERANCE, power=power)
        assert found.narrow.all()
        assert rounds <= 12
        wrong = np.abs(found.share - true)
        right.append(wrong <= TOLERANCE * np.maximum(true, 1 / len(true)))
        inside.append(wrong <= found.half)
        cost.append(known.measured.sum() / known.rows.sum())
    assert np.mean(right) > 0.94
    assert np.mean(inside) > 0.93  # intervals of 95 %, looked at after each round
    assert np.mean(cost) < (0.07 if power == 1 else 0.25)


def test_a_stricter_rule_measures_more_and_errs_less() -> None:
    damage = population(1)
    coarse, fine = (sampled(damage, tolerance=tolerance)[0] for tolerance in (0.2, 0.05))
    assert fine.measured.sum() > 3 * coarse.measured.sum()
    assert shares(fine, tolerance=0.05).half.max() < shares(coarse, tolerance=0.2).half.max()


def test_small_clusters_are_measured_whole_and_know_their_damage() -> None:
    known, rounds = sampled([np.array([0.1, 0.3, 0.2]), np.array([0.4])])
    assert rounds == 1
    assert known.measured.tolist() == [3, 1]
    found = shares(known, tolerance=TOLERANCE)
    np.testing.assert_allclose(found.share, [1 / 3, 2 / 3])
    assert found.half.tolist() == [0.0, 0.0]


def test_one_cluster_or_no_damage_needs_one_round() -> None:
    draws = np.random.default_rng(0)
    assert sampled([draws.gamma(2.0, 0.5, 500)])[1] == 1
    known, rounds = sampled([np.zeros(500), np.zeros(100)])
    assert rounds == 1
    assert shares(known, tolerance=TOLERANCE).share.tolist() == [0.5, 0.5]
    assert sampled([draws.gamma(2.0, 0.5, 500)] * 2, power=0.0)[1] == 1


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=6), seed=st.integers(0, 99), spread=st.floats(0.1, 3))
def test_sampling_ends_narrow_or_with_everything_measured(sizes: list[int], seed: int, spread: float) -> None:
    draws = np.random.default_rng(seed)
    damage = [draws.gamma(1 / spread**2, spread**2, size) for size in sizes]
    known, _ = sampled(damage, tolerance=0.02, first=4)
    found = shares(known, tolerance=0.02)
    assert found.share.sum() == pytest.approx(1)
    assert found.narrow.all() or (known.measured == known.rows).all()


def test_numbers_out_of_range_are_refused_in_words() -> None:
    known = Moments.of(np.empty(0), np.empty(0, np.int64), np.array([5]))
    with pytest.raises(ConfigError, match=r"tolerance of a survey must be above 0, got 0\.0"):
        next_sample(known, tolerance=0.0, first=8)
    with pytest.raises(ConfigError, match="at least 2 rows of a cluster, got 1"):
        next_sample(known, tolerance=0.1, first=1)
    with pytest.raises(ConfigError, match="power must be 0 or more"):
        shares(known, tolerance=0.1, power=-1.0)


def test_the_stage_measures_some_rows_as_damage_does_and_counts_the_tokens_of_all(
    tmp_path: Path, tiny_original: Path, tiny_pruned: Path
) -> None:
    pool = dolly(tmp_path / "pool.parquet", 16, long=2)
    with models(tiny_original, tiny_pruned) as both:
        survey = Survey.of(both, "pruned", first=4)
        done = run(pool, tmp_path, [States.of(both), Damage.of(both, "pruned"), Skills(2), survey])
    every, some = whole(done["damage_pruned"]), whole(done["survey"])
    assert some.schema == every.schema
    assert some["row_id"].to_pylist() == every["row_id"].to_pylist()
    for name in ("tokens", "prompt_tokens"):
        assert some[name].to_pylist() == every[name].to_pylist()
    measured = ~np.isnan(some["jsd_mean"].to_numpy())
    assert done["survey"].facts["measured"] == measured.sum()
    assert 8 <= measured.sum() < 16
    for name in ("jsd_mean", "jsd_p95", "nll_p"):
        np.testing.assert_allclose(some[name].to_numpy()[measured], every[name].to_numpy()[measured], rtol=0.02)
    assert sum(done["survey"].facts["shares"]) == pytest.approx(1, abs=1e-4)


def test_a_survey_that_was_killed_goes_on_with_the_round_in_hand(
    tmp_path: Path, tiny_original: Path, tiny_pruned: Path, monkeypatch: Any
) -> None:
    pool = dolly(tmp_path / "pool.parquet", 16)
    with models(tiny_original, tiny_pruned) as both:
        stages = [Skills(2), Survey.of(both, "pruned", tolerance=0.001, first=4)]
        true_run, calls = both.worker.run, [0]

        def failing(task: str, items: Any, *, model: str, **rest: Any) -> Any:
            calls[0] += len(items)
            if calls[0] > 20:  # two models, two clusters, four rows: the first round is 16
                raise KeyboardInterrupt
            return true_run(task, items, model=model, **rest)

        monkeypatch.setattr(both.worker, "run", failing)
        with pytest.raises(KeyboardInterrupt):
            run(pool, tmp_path, stages)
        monkeypatch.setattr(both.worker, "run", true_run)
        calls[0] = 0
        resumed = run(pool, tmp_path, stages)["survey"]
        fresh = run(pool, tmp_path / "fresh", stages)["survey"]
    assert resumed.digest == fresh.digest
    assert resumed.facts["rounds"] >= 2
