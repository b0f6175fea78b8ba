"""A pilot finds a window where one is better, and calls noise noise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from datapipe.advisor.curve import fit_curve
from datapipe.advisor.interval import paired
from datapipe.advisor.pilot import run_pilot
from datapipe.errors import MetricError

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32


def blobs(rows: int, *, noise: float, wrong: float, seed: int = 0) -> tuple[Float32, list[str]]:
    """Four classes on the sphere; a part of the labels is wrong."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, rows)
    points = np.eye(16)[codes] + noise * rng.normal(size=(rows, 16)) / 4
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    codes = np.where(rng.random(rows) < wrong, rng.integers(0, 4, rows), codes)
    return points.astype(np.float32), [f"class {code}" for code in codes]


def test_where_the_hardest_rows_are_wrong_a_window_behind_them_wins() -> None:
    vectors, labels = blobs(1200, noise=1.0, wrong=0.4)
    pilot = run_pilot(vectors, labels, keep=0.1, rows=100_000)
    assert pilot.start is not None
    assert pilot.start >= 0.4
    assert pilot.windows[0].gain.below
    assert "windows allowed for" in pilot.told()


def test_labels_without_meaning_make_no_window_a_win() -> None:
    vectors, _ = blobs(600, noise=1.0, wrong=0.0)
    for seed in range(4):
        labels = [f"class {code}" for code in np.random.default_rng(seed).integers(0, 4, 600)]
        pilot = run_pilot(vectors, labels, keep=0.3, seed=seed)
        assert pilot.start is None
        assert "no window is advised" in pilot.told()


def test_a_pilot_gives_the_same_again() -> None:
    vectors, labels = blobs(300, noise=1.0, wrong=0.1)
    pilots = [run_pilot(vectors, labels, keep=0.2, rows=900, threads=count) for count in (1, 1, 3)]
    assert pilots[0] == pilots[1] == pilots[2]


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [(50, 2, "the sample has 50 rows with 2"), (200, 1, "the sample has 200 rows with 1")],
)
def test_too_few_rows_or_one_class_are_refused(rows: int, classes: int, message: str) -> None:
    vectors, _ = blobs(rows, noise=1.0, wrong=0.0)
    with pytest.raises(MetricError, match=message):
        run_pilot(vectors, [str(at % classes) for at in range(rows)], keep=0.2)
    with pytest.raises(MetricError, match="a label a row"):
        run_pilot(vectors, ["a"], keep=0.2)


def test_an_interval_widens_for_comparisons_and_for_splits_that_share_rows() -> None:
    differences = [1.0, 2.0, 3.0, 2.0, 2.0]
    plain = paired(differences)
    assert plain.mean == 2.0
    assert plain.half_width == pytest.approx(2.776 * math.sqrt(0.5 / 5), rel=5e-3)
    assert plain.above
    assert paired(differences, comparisons=5).half_width > plain.half_width
    assert paired(differences, overlap=1 / 3).half_width == pytest.approx(
        plain.half_width * math.sqrt((0.2 + 1 / 3) / 0.2)
    )
    assert paired([1.0]).half_width == math.inf
    assert not paired([1.0]).above


@pytest.mark.parametrize("form", ["power", "exponential"])
@pytest.mark.parametrize("floor", [0.02, 0.1])
def test_a_curve_finds_the_law_that_made_the_errors(form: str, floor: float) -> None:
    def law(rows: int) -> float:
        return floor + (2 * rows**-0.5 if form == "power" else 0.5 * math.exp(-0.002 * rows))

    sizes = [100, 200, 400, 800, 1600]
    noise = np.random.default_rng(0).normal(1, 0.002, (8, 5))
    curve = fit_curve(sizes, np.array([law(size) for size in sizes]) * noise, at=3200)
    assert curve.form == form
    assert curve.error == pytest.approx(law(3200), rel=0.1)
    assert curve.low <= curve.error <= curve.high
