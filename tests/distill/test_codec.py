"""What is kept of a distribution, against float64 arithmetic on every class; draws without bias and without order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.distill.codec import (
    LEAST,
    DenseLabels,
    SampledLabels,
    TopLabels,
    concatenate,
    draw_points,
    encode,
    entropies,
    log_softmax,
)
from datapipe.distill.header import SoftLabelHeader, Teacher
from datapipe.errors import SoftLabelError


def header(**options: Any) -> SoftLabelHeader:
    return SoftLabelHeader(level="row", teachers=(Teacher("t", "d"),), preprocessing="p", **options)


def ids_of(rows: int) -> Any:
    return np.stack([np.arange(rows, dtype=np.uint64) // 3, np.arange(rows, dtype=np.uint64)], axis=1)


def logits_of(seed: int, rows: int, classes: int) -> Any:
    return np.random.default_rng(seed).normal(size=(rows, classes)).astype(np.float32) * 4


def test_dense_labels_are_the_log_probabilities_in_float16() -> None:
    logits = logits_of(0, 5, 10)
    labels = encode(logits, header(mode="dense", classes=10), row_ids=ids_of(5))
    assert isinstance(labels, DenseLabels)
    exact = logits.astype(np.float64)
    expected = exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(labels.log_probabilities, expected, rtol=2**-11, atol=1e-7)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 40), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_top_labels_are_the_greatest_and_the_mass_of_the_others(seed: int, classes: int, share: float) -> None:
    k = 1 + int(share * (classes - 1))
    logits = np.round(logits_of(seed, 6, classes))  # with ties
    labels = encode(logits, header(mode="topk", classes=classes, k=k), row_ids=ids_of(6))
    assert isinstance(labels, TopLabels)
    for row in range(6):
        order = sorted(range(classes), key=lambda each: (-logits[row, each], each))
        assert labels.ids[row].tolist() == order[:k]
        p = np.exp(logits[row].astype(np.float64))
        p /= p.sum()
        np.testing.assert_allclose(labels.log_probabilities[row], np.log(p[order[:k]]), rtol=2**-11, atol=1e-7)
        if k == classes:
            assert labels.tail[row] == LEAST
        else:
            np.testing.assert_allclose(float(labels.tail[row]), np.log(p[order[k:]].sum()), rtol=2**-11, atol=1e-7)


def test_a_tail_far_below_float16s_least_mass_keeps_its_size() -> None:
    logits = np.array([[0.0, -30.0, -31.0]])
    labels = encode(logits, header(mode="topk", classes=3, k=1), row_ids=ids_of(1))
    assert isinstance(labels, TopLabels)
    assert float(labels.tail[0]) == pytest.approx(np.log(np.exp(-30) + np.exp(-31)), rel=1e-3)


def test_sampled_counts_are_within_two_of_their_expectation_and_add_up() -> None:
    logits = logits_of(3, 50, 200)
    labels = encode(logits, header(mode="sampled", classes=200, draws=64), row_ids=ids_of(50))
    assert isinstance(labels, SampledLabels)
    p = np.exp(log_softmax(logits))
    counts = np.zeros((50, 200))
    for row in range(50):
        own = slice(labels.offsets[row], labels.offsets[row + 1])
        assert (np.diff(labels.ids[own].astype(int)) > 0).all()
        counts[row, labels.ids[own]] = labels.counts[own]
    assert (counts.sum(axis=1) == 64).all()
    # Only the stretches at the two ends of a class are left to chance.
    assert np.abs(counts - 64 * p).max() < 2
    np.testing.assert_allclose(labels.entropy, -(p * np.log(p)).sum(axis=1), rtol=2**-11)


def test_counts_are_unbiased_over_seeds_and_vary_no_more_than_free_draws() -> None:
    logits = logits_of(5, 4, 9)
    p = np.exp(log_softmax(logits))
    shares = []
    for seed in range(800):
        labels = encode(logits, header(mode="sampled", classes=9, draws=5, seed=seed), row_ids=ids_of(4))
        assert isinstance(labels, SampledLabels)
        share = np.zeros((4, 9))
        share[np.repeat(np.arange(4), np.diff(labels.offsets)), labels.ids] = labels.counts / 5
        shares.append(share)
    found = np.stack(shares)
    free = np.sqrt(p * (1 - p) / 5)
    assert np.all(np.abs(found.mean(axis=0) - p) <= 4.5 * free / np.sqrt(800) + 1e-9)
    common = p > 0.02  # of rarer classes 800 seeds show too few draws
    assert np.all(found.std(axis=0)[common] <= free[common] * 1.12)


@given(cut=st.integers(1, 11), order=st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize(
    "options",
    [{"mode": "dense"}, {"mode": "topk", "k": 5}, {"mode": "sampled", "draws": 30}],
    ids=lambda each: each["mode"],
)
def test_neither_order_nor_cut_of_the_positions_changes_a_bit(options: Any, cut: int, order: list[int]) -> None:
    logits, ids, places = logits_of(1, 12, 100), ids_of(12), np.arange(12) % 4
    head = header(classes=100, **options)
    whole = encode(logits, head, row_ids=ids, places=places)
    at = np.array(order)
    parts = [encode(logits[piece], head, row_ids=ids[piece], places=places[piece]) for piece in (at[:cut], at[cut:])]
    again = concatenate(parts).take(np.argsort(at))
    for name in whole.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_points_of_draws_ascend_within_the_unit_interval_and_differ_by_seed_row_and_place() -> None:
    ids, places = ids_of(100), np.zeros(100, np.int64)
    points = draw_points(ids, places, draws=7, seed=0)
    assert (np.diff(points, axis=1) > 0).all()
    assert ((points >= 0) & (points < 1)).all()
    assert np.array_equal(np.floor(points * 7), np.tile(np.arange(7), (100, 1)))
    assert len(np.unique(points)) == points.size
    for other in (draw_points(ids, places + 1, draws=7, seed=0), draw_points(ids, places, draws=7, seed=1)):
        assert not np.isin(other, points).any()
    within = (points * 7) % 1
    assert abs(within.mean() - 0.5) < 0.05


def test_classes_without_probability_are_never_drawn_and_stay_finite() -> None:
    logits = np.full((30, 6), -np.inf)
    logits[:, [1, 4]] = 0.0
    sampled = encode(logits, header(mode="sampled", classes=6, draws=9), row_ids=ids_of(30))
    assert isinstance(sampled, SampledLabels)
    assert set(sampled.ids.tolist()) == {1, 4}
    top = encode(logits, header(mode="topk", classes=6, k=3), row_ids=ids_of(30))
    assert isinstance(top, TopLabels)
    assert top.ids[0].tolist() == [1, 4, 0]
    assert np.isfinite(top.log_probabilities).all()
    assert top.tail[0] == LEAST
    assert entropies(log_softmax(logits))[0] == pytest.approx(np.log(2))


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf")])
def test_logits_that_are_no_numbers_are_refused_naming_the_row(value: float, shown: str) -> None:
    logits = logits_of(0, 4, 5)
    logits[2, 3] = value
    row = "0" * 16 + "0" * 15 + "2"
    with pytest.raises(SoftLabelError, match=f"row {row} are no distribution: the greatest of them is {shown}; 1 pos"):
        encode(logits, header(mode="dense", classes=5), row_ids=ids_of(4))
    with pytest.raises(SoftLabelError, match="the greatest of them is -inf"):
        encode(np.full((1, 5), -np.inf), header(mode="dense", classes=5), row_ids=ids_of(1))


def test_logits_of_another_class_count_are_refused() -> None:
    with pytest.raises(SoftLabelError, match=r"logits of shape \(4, 5\) for 4 positions of 6 classes"):
        encode(logits_of(0, 4, 5), header(mode="dense", classes=6), row_ids=ids_of(4))


def test_labels_of_two_modes_are_not_joined() -> None:
    dense = encode(logits_of(0, 4, 5), header(mode="dense", classes=5), row_ids=ids_of(4))
    top = encode(logits_of(0, 4, 5), header(mode="topk", k=1, classes=5), row_ids=ids_of(4))
    with pytest.raises(SoftLabelError, match=r"\['DenseLabels', 'TopLabels'\]"):
        concatenate([dense, top])


def test_no_positions_are_no_labels() -> None:
    for options in ({"mode": "dense"}, {"mode": "topk", "k": 2}, {"mode": "sampled", "draws": 3}):
        labels = encode(np.empty((0, 5), np.float32), header(classes=5, **options), row_ids=ids_of(0))
        assert len(labels) == 0
