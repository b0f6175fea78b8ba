"""What is recommended for which fraction, and what a file of curves must look like."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis.strategies import floats

from datapipe.distill.alpha import CURVES, AlphaCurve, read_curves, recommended_alpha
from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

LINE = AlphaCurve(points=((0.1, 1.0, 0.8, 1.0), (1.0, 0.5, 0.3, 0.6)), fitted=True, rests_on="a test", classes=10)


def test_the_fewer_rows_are_kept_the_more_the_teacher_counts_and_the_ends_are_held() -> None:
    found = [recommended_alpha(fraction, curves=[LINE]) for fraction in (0.02, 0.1, 0.55, 1.0)]
    assert [round(each.value, 6) for each in found] == [1.0, 1.0, 0.75, 0.5]
    assert [(round(each.low, 6), round(each.high, 6)) for each in found[1:]] == [(0.8, 1.0), (0.55, 0.8), (0.3, 0.6)]
    assert {(each.fitted, each.rests_on) for each in found} == {(True, "a test")}


def test_what_comes_with_the_package_says_what_it_rests_on_and_covers_every_fraction() -> None:
    assert read_curves(CURVES)
    for fraction in (0.01, 0.05, 0.1, 0.3, 0.5, 0.7, 1.0):
        found = recommended_alpha(fraction)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.rests_on
        assert found.fraction == fraction


def test_the_curve_of_the_nearest_noise_and_then_of_the_nearest_number_of_classes_counts() -> None:
    many = AlphaCurve(points=((1.0, 0.6, 0.5, 0.7),), fitted=True, rests_on="many classes", classes=100)
    noisy = AlphaCurve(points=((1.0, 0.9, 0.8, 1.0),), fitted=True, rests_on="noise", classes=10, noise=0.4)
    curves = [LINE, many, noisy]
    assert recommended_alpha(1.0, classes=77, curves=curves).rests_on == "many classes"
    assert recommended_alpha(1.0, classes=12, curves=curves).rests_on == "a test"
    assert recommended_alpha(1.0, classes=12, noise=0.35, curves=curves).rests_on == "noise"


def test_wrong_labels_take_weight_from_the_label_in_proportion() -> None:
    found = recommended_alpha(1.0, noise=0.4, curves=[LINE])
    assert found.value == pytest.approx(1 - 0.5 * 0.6)
    assert "40% of wrong labels" in found.rests_on


@given(floats(1e-6, 1), floats(1e-6, 1), floats(0, 0.99))
def test_alpha_is_a_weight_and_never_rises_with_the_fraction(one: float, two: float, noise: float) -> None:
    few, many = (recommended_alpha(each, noise=noise) for each in sorted((one, two)))
    assert 0 <= few.low <= few.value <= few.high <= 1
    assert many.value <= few.value + 1e-12


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"fraction": 0.0}, "fraction must be above 0"),
        ({"fraction": float("nan")}, "fraction must be above 0"),
        ({"fraction": 0.5, "classes": 1}, "classes must be at least 2, got 1"),
        ({"fraction": 0.5, "noise": 1.0}, "noise must be a share"),
        ({"fraction": 0.5, "curves": []}, "no curves"),
    ],
)
def test_what_is_out_of_range_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        recommended_alpha(**given)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("{", "holds no curves of alpha"),
        ('{"curves": [{"points": {}, "fitted": true, "rests_on": ""}]}', "has no points"),
        ('{"curves": [{"points": {"2": [1, 1, 1]}, "fitted": true, "rests_on": ""}]}', r"a fraction in \(0, 1\]"),
        ('{"curves": [{"points": {"1": [1, 2, 3]}, "fitted": true, "rests_on": ""}]}', "must lie between its ends"),
        ('{"curves": [{"fitted": true, "rests_on": ""}]}', "KeyError: 'points'"),
    ],
)
def test_a_damaged_file_of_curves_is_refused_by_name(tmp_path: Path, body: str, told: str) -> None:
    path = tmp_path / "alpha.json"
    path.write_text(body)
    with pytest.raises(ConfigError, match=told) as caught:
        read_curves(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read the curves"):
        read_curves(tmp_path / "none.json")


def test_a_file_of_curves_is_read_in_the_order_of_the_fractions(tmp_path: Path) -> None:
    path = tmp_path / "alpha.json"
    points = {"1.0": [0.5, 0.4, 0.6], "0.05": [0.95, 0.9, 1.0]}
    path.write_text(json.dumps({"curves": [{"points": points, "fitted": True, "rests_on": "x", "classes": 10}]}))
    (curve,) = read_curves(path)
    assert [each[0] for each in curve.points] == [0.05, 1.0]
    assert curve.classes == 10
