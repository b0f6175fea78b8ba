"""What a teacher says of the rows besides, against the formulas written out row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import floats, integers

from datapipe.distill.byproducts import SCORES, averaged, contradictions, scores_of
from datapipe.distill.codec import log_softmax


def plainly(logs: list[float], label: int) -> dict[str, float]:
    """One row by the book."""
    chances = [math.exp(each) for each in logs]
    others = [each for at, each in enumerate(chances) if at != label]
    own = chances[label]
    return {
        "el2n": math.sqrt((1 - own) ** 2 + sum(each**2 for each in others)),
        "margin": own - max(others),
        "entropy": -sum(each * log for each, log in zip(chances, logs, strict=True) if each > 0),
        "disagreement": max(others) if max(others) > own else 0.0,
        "confidence": own,
    }


@given(arrays(np.float64, (7, 5), elements=floats(-30, 30)), arrays(np.int32, (7,), elements=integers(-1, 4)))
def test_each_score_is_its_formula_and_a_row_without_label_has_entropy_alone(
    logits: np.ndarray, labels: np.ndarray
) -> None:
    logs = log_softmax(logits)
    found = scores_of(logs.copy(), labels)
    assert tuple(found) == SCORES
    for row, label in enumerate(labels.tolist()):
        wanted = plainly(logs[row].tolist(), max(label, 0))
        for name in SCORES:
            if label < 0 and name != "entropy":
                assert math.isnan(found[name][row])
            else:
                assert found[name][row] == pytest.approx(wanted[name], abs=1e-5)


def test_a_class_without_probability_takes_part_in_no_score() -> None:
    found = scores_of(np.array([[0.0, -np.inf, -np.inf]]), np.array([1]))
    assert {name: float(values[0]) for name, values in found.items()} == {
        "el2n": pytest.approx(math.sqrt(2)),
        "margin": -1.0,
        "entropy": 0.0,
        "disagreement": 1.0,
        "confidence": 0.0,
    }


def test_several_teachers_are_averaged_in_log_probabilities_and_renormalised() -> None:
    one, two = np.log([[0.8, 0.1, 0.1]]), np.log([[0.2, 0.4, 0.4]])
    product = np.sqrt([0.8 * 0.2, 0.1 * 0.4, 0.1 * 0.4])
    assert np.exp(averaged([one, two]))[0] == pytest.approx(product / product.sum())
    assert averaged([one]) is one


@given(arrays(np.float64, (3, 4, 6), elements=floats(-40, 40)))
def test_the_mean_of_teachers_is_a_distribution_and_a_teacher_beside_itself_changes_nothing(logits: np.ndarray) -> None:
    parts = [log_softmax(each) for each in logits]
    assert np.exp(averaged(parts)).sum(axis=1) == pytest.approx(np.ones(4))
    assert averaged([parts[0], parts[0]]) == pytest.approx(parts[0])


def test_a_label_is_contradicted_from_the_threshold_on_and_never_where_there_is_none() -> None:
    found = contradictions(np.array([0.95, 0.9, 0.89, 0.0, np.nan], np.float32), threshold=0.9)
    assert found.tolist() == [True, True, False, False, False]
