"""Published methods are settings: each plan gives what the method's own few lines give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.stats import beta

from datapipe.errors import SelectionError
from datapipe.selection.budget import Budget
from datapipe.selection.engine import select
from datapipe.selection.keys import race_keys
from datapipe.selection.plan import Plan
from datapipe.selection.presets import DUAL_POWER, get_preset
from datapipe.selection.result import ScoreBatch
from datapipe.storage.order import hash_order

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.selection.result import Selection
    from datapipe.storage.arrays import Bool, Float64

ROWS, CLASSES = 1000, 10
RNG = np.random.default_rng(7)
IDS = np.column_stack([np.arange(ROWS, dtype=np.uint64), np.zeros(ROWS, np.uint64)])
SCORES = RNG.permutation(ROWS).astype(np.float32)
LABELS = RNG.choice(CLASSES, ROWS, p=np.arange(1, 11) / 55).astype(np.int32)


def keep(plan: Plan, fraction: float, scratch: Path, weights: Float64 | None = None) -> tuple[Bool, Selection]:
    batch = ScoreBatch(ids=IDS, scores=SCORES, groups=LABELS)
    names = [str(label) for label in range(CLASSES)]
    with select(
        lambda: iter([batch]), plan, Budget(fraction=fraction), seed=1, scratch=scratch, groups=names, weights=weights
    ) as selection:
        return np.concatenate([table["kept"].to_numpy() for table in selection]), selection


@pytest.mark.parametrize("order", ["hard", "easy"])
def test_self_supervised_prototypes_keep_the_end_asked_for(order: str, tmp_path: Path) -> None:
    kept, _ = keep(Plan(order=order), 0.7, tmp_path)  # type: ignore[arg-type]
    expected = SCORES > 299 if order == "hard" else SCORES < 700
    assert np.array_equal(kept, expected)


def test_self_supervised_prototypes_with_half_balanced_classes(tmp_path: Path) -> None:
    """prune.py of effective_pruning: the hardest int(n / classes * 0.5) of each class, then the hardest of the rest."""
    kept, _ = keep(Plan(order="hard", strata="group", quota="fill"), 0.3, tmp_path)
    least = int(300 / CLASSES * 0.5)
    expected = np.zeros(ROWS, np.bool_)
    for label in range(CLASSES):
        members = np.flatnonzero(label == LABELS)
        expected[members[np.argsort(-SCORES[members])][:least]] = True
    rest = np.flatnonzero(~expected)
    expected[rest[np.argsort(-SCORES[rest])][: 300 - expected.sum()]] = True
    assert np.array_equal(kept, expected)


def test_ccs_cuts_the_hard_end_and_spreads_over_intervals(tmp_path: Path) -> None:
    kept, selection = keep(Plan(order="random", trim_hard=0.3, strata="score_width", quota="equal"), 0.1, tmp_path)
    assert not kept[SCORES >= 700].any()
    assert [stratum.kept for stratum in selection.strata] == [2] * 50


def test_moderate_keeps_the_rows_around_the_median(tmp_path: Path) -> None:
    kept, _ = keep(Plan(order="hard", trim_hard=0.35, trim_easy=0.35), 0.3, tmp_path)
    assert np.array_equal(kept, (SCORES >= 350) & (SCORES < 650))


def test_a_window_of_bws_is_a_trim_and_the_next_hardest(tmp_path: Path) -> None:
    kept, _ = keep(Plan(order="hard", trim_hard=0.2), 0.25, tmp_path)
    assert np.array_equal(kept, (SCORES >= 550) & (SCORES < 800))


def test_elfs_drops_both_ends_of_its_margin(tmp_path: Path) -> None:
    kept, _ = keep(Plan(order="easy", trim_easy=0.3), 0.4, tmp_path)
    assert np.array_equal(kept, (SCORES >= 300) & (SCORES < 700))


def test_stratified_random_keeps_the_mix_of_classes(tmp_path: Path) -> None:
    kept, _ = keep(Plan(order="random", strata="group"), 0.2, tmp_path)
    exact = np.bincount(LABELS, minlength=CLASSES) * 0.2
    assert (np.abs(np.bincount(LABELS[kept], minlength=CLASSES) - exact) < 1).all()


def test_balanced_random_keeps_equal_classes_and_small_ones_whole(tmp_path: Path) -> None:
    kept, _ = keep(Plan(order="random", strata="group", quota="equal"), 0.5, tmp_path)
    counts, held = np.bincount(LABELS[kept], minlength=CLASSES), np.bincount(LABELS, minlength=CLASSES)
    whole = counts == held
    assert whole.any()
    assert np.ptp(counts[~whole]) <= 1
    assert counts[~whole].min() >= held[whole].max()


def test_random_rows_mixed_into_a_score_cut_do_not_depend_on_the_score(tmp_path: Path) -> None:
    kept, _ = keep(Plan(order="hard", mix_random=0.5), 0.2, tmp_path)
    random_rows, _ = keep(Plan(order="random"), 0.1, tmp_path)
    rest = np.flatnonzero(~random_rows)
    expected = random_rows.copy()
    expected[rest[np.argsort(-SCORES[rest])][:100]] = True
    assert np.array_equal(kept, expected)


def test_quotas_that_a_method_computes_itself_are_given_as_weights(tmp_path: Path) -> None:
    weights = np.zeros(CLASSES)
    weights[[8, 9]] = [1.0, 3.0]
    _, selection = keep(Plan(order="easy", strata="group", quota="given"), 0.08, tmp_path, weights)
    assert [stratum.kept for stratum in selection.strata][8:] == [20, 60]


def test_beta_sampling_draws_rows_in_proportion_to_their_weights(tmp_path: Path) -> None:
    kept, _ = keep(Plan(order="weighted"), 0.2, tmp_path)
    assert kept.sum() == 200
    assert SCORES[kept].mean() > 600


def test_dual_draws_by_its_score_times_the_density_of_the_mean_probability(tmp_path: Path) -> None:
    """`beta_sampling` of behaapyy/dual-pruning: joint_p = beta.pdf(pred_mean, y_a, y_b) * score, 10 rows the anchor."""
    rng = np.random.default_rng(11)
    means = ((rng.integers(0, 1024, ROWS) + 0.5) / 1024).astype(np.float32)
    scores = (rng.random(ROWS) * (1 - means) / 2).astype(np.float32)
    found = {}
    for fraction in (0.1, 0.5):
        plan = get_preset("dual").plan(fraction)
        batch = ScoreBatch(ids=IDS, scores=scores, places=means)
        with select(
            lambda batch=batch: iter([batch]),  # type: ignore[misc]
            plan,
            Budget(fraction=fraction),
            seed=1,
            scratch=tmp_path,
            placed=True,
        ) as selection:
            found[fraction] = np.concatenate([table["kept"].to_numpy() for table in selection])
        anchor = means[np.argsort(scores)[-10:]].mean()
        y_b = 15 * (1 - anchor) * (1 - (1 - fraction) ** DUAL_POWER)
        joint = beta.pdf(means, 16 - y_b, y_b) * scores
        race = race_keys((joint / joint.max()).astype(np.float32), hash_order(IDS, seed=1))
        expected = np.zeros(ROWS, np.bool_)
        expected[np.argsort(race)[: round(fraction * ROWS)]] = True
        # Weights of another rounding may turn round a pair at the end of the budget.
        assert np.count_nonzero(found[fraction] != expected) <= 2
    assert means[found[0.1]].mean() > means[found[0.5]].mean()


def test_places_that_are_missing_or_none_are_refused(tmp_path: Path) -> None:
    plan = get_preset("dual").plan(0.5)
    for places, message in (
        (None, "density is taken at the rows' places, but a batch has none"),
        (np.full(ROWS, 1.5, np.float32), "Row 0+ has a place outside of 0 to 1"),
        (np.zeros(3, np.float32), "1000 row ids and 3 places"),
    ):
        batch = ScoreBatch(ids=IDS, scores=SCORES, places=places)
        with pytest.raises(SelectionError, match=message):
            select(
                lambda batch=batch: iter([batch]),  # type: ignore[misc]
                plan,
                Budget(fraction=0.5),
                seed=1,
                scratch=tmp_path,
                placed=True,
            )
