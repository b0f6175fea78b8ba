"""Conformal risk control: the promise holds on data that was not calibrated on."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import ConfigError
from provence.calibration import Calibration, calibrate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Float32

DIGEST = "a" * 64


def made(gold: Sequence[Sequence[float] | Float32]) -> Calibration:
    return calibrate(gold, model="m", digest=DIGEST, domain="news")


class Recall:
    """Mean share of a question's answering units above a threshold."""

    def __init__(self, questions: list[Float32]) -> None:
        self._values = np.concatenate(questions)
        self._shares = np.concatenate([np.full(len(values), 1 / len(values) / len(questions)) for values in questions])

    def at(self, threshold: float) -> float:
        return float(self._shares[self._values > np.float32(threshold)].sum())


def drawn(rng: np.random.Generator, questions: int) -> list[Float32]:
    """Probabilities of 1-4 answering units a question, near each other within a question, a tenth of them low."""
    counts = rng.integers(1, 5, questions)
    logits = np.repeat(rng.normal(1.5, 1.5, questions), counts) + rng.normal(0, 1, counts.sum())
    logits -= 4 * (rng.random(len(logits)) < 0.1)
    return np.split((1 / (1 + np.exp(-logits))).astype(np.float32), np.cumsum(counts)[:-1])


def test_the_threshold_keeps_what_was_asked_for_of_the_calibration_questions() -> None:
    calibration = made([[0.9], [0.8], [0.7], [0.6], [0.5], [0.4], [0.3], [0.2], [0.1]])
    # One of nine may be lost at a recall of 0.8: 9/10 * 1/9 + 1/10 <= 0.2. So the threshold lies just below 0.2.
    threshold = calibration.threshold_for(0.8)
    assert 0.19 < threshold < 0.2
    assert 0.09 < calibration.threshold_for(0.9) < 0.1
    assert calibration.questions == 9


@pytest.mark.parametrize(("target", "questions"), [(0.9, 50), (0.9, 400), (0.95, 200), (0.5, 20)])
def test_the_expected_recall_of_new_questions_is_at_least_the_target_and_not_far_above(
    target: float, questions: int
) -> None:
    rng = np.random.default_rng(7)
    splits = 150
    fresh = Recall(drawn(rng, 20_000))
    achieved = [fresh.at(made(drawn(rng, questions)).threshold_for(target)) for _ in range(splits)]
    error = np.std(achieved) / np.sqrt(splits) + 0.002  # of the splits, and of the fresh questions
    assert np.mean(achieved) >= target - 2 * error
    assert np.mean(achieved) <= target + 2 / (questions + 1) + 2 * error  # as the theory says


def test_questions_without_an_answering_unit_are_left_out() -> None:
    assert made([[], [0.5], []]).questions == 1
    with pytest.raises(ConfigError, match="no question has a unit that answers it"):
        made([[], []])


def test_too_few_questions_for_a_recall_are_refused_with_how_many_it_needs() -> None:
    calibration = made([[0.5]] * 50)
    with pytest.raises(ConfigError, match=r"0.99 needs a calibration on at least 99 questions.* 'news' has 50.*0.9804"):
        calibration.threshold_for(0.99)
    assert calibration.threshold_for(0.98) < 0.5
    assert made([[0.5]] * 99).threshold_for(0.99) < 0.5
    for wrong in (0, 1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="target_recall must lie between 0 and 1"):
            calibration.threshold_for(wrong)


def test_hopeless_units_bring_the_threshold_below_every_probability() -> None:
    threshold = made([[0.0]] * 40).threshold_for(0.9)
    assert np.float32(0) > np.float32(threshold)


@given(
    gold=st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=4), min_size=20, max_size=60),
    targets=st.tuples(st.floats(0.1, 0.94), st.floats(0.1, 0.94)),
)
def test_a_higher_target_never_raises_the_threshold_and_the_inequality_holds(
    gold: list[list[float]], targets: tuple[float, float]
) -> None:
    calibration = made(gold)
    low, high = sorted(targets)
    assert calibration.threshold_for(high) <= calibration.threshold_for(low)
    n = len(gold)
    for target in targets:
        threshold = calibration.threshold_for(target)
        lost = 1 - Recall([np.array(values, np.float32) for values in gold]).at(threshold)
        assert n / (n + 1) * lost + 1 / (n + 1) <= 1 - target + 1e-6


def test_a_calibration_comes_back_from_its_file(tmp_path: Path) -> None:
    calibration = made([[0.25, 0.5], [0.75]] * 10)
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration


def test_another_model_is_refused() -> None:
    calibration = made([[0.5]])
    calibration.check(DIGEST)
    with pytest.raises(ConfigError, match=r"'news' was made with m of digest aaaaaaaaaaaa….* has digest bbbbbbbbbbbb"):
        calibration.check("b" * 64)
    with pytest.raises(ConfigError, match=r"a calibration is for the rule 'mean'\. Got 'share'"):
        replace(calibration, rule="share")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be an object of format 1. Got format None"),
        ('{"format": 2}', "Got format 2"),
        ('{"format": 1}', "is damaged"),
        ({"risks": [0.5, 0.1]}, "is damaged .*one risk a threshold"),
        ({"thresholds": [0, 0.5], "risks": [0, 2]}, "risks of a calibration must begin at 0, never fall"),
        ({"thresholds": [0.1, 0.5], "risks": [0, 0]}, "thresholds of a calibration must begin at 0"),
        ({"joint": "no"}, "joint of a calibration must be true or false. Got 'no'"),
        ({"questions": 0}, "needs at least one question"),
        ({"surplus": 1}, "is damaged .*surplus"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str | dict[str, object], message: str) -> None:
    path = tmp_path / "calibration.json"
    made([[0.5]]).save(path)
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(ConfigError, match=message):
        Calibration.load(path)


def test_it_is_bound_to_how_the_texts_were_shown_and_an_old_file_is_of_plain_passages(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    plain = made([[0.5]])
    plain.check_shown(joint=False, titles=False)
    with pytest.raises(ConfigError, match=r"made without joint, .* leave joint out, or .* \(.* --joint\)"):
        plain.check_shown(joint=True, titles=False)
    with pytest.raises(ConfigError, match=r"made without titles, .* \(provence calibrate --titles\)"):
        plain.check_shown(joint=False, titles=True)
    other = replace(plain, joint=True, titles=True)
    other.save(path)
    assert Calibration.load(path) == other
    with pytest.raises(ConfigError, match=r"made with titles, .* give titles, or .* without \(provence calibrate\)"):
        other.check_shown(joint=True, titles=False)
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in {"joint", "titles"}}))
    assert Calibration.load(path) == plain


def test_a_missing_file_and_impossible_probabilities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing.json cannot be read \(No such file"):
        Calibration.load(tmp_path / "nothing.json")
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="probabilities of question 1 must lie between 0 and 1"):
            made([[0.5], [0.2, wrong]])
