"""A budget is one of three numbers and turns into whole rows by one stated rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers

from datapipe.errors import BudgetError
from datapipe.selection.budget import Budget


@pytest.mark.parametrize(
    ("fraction", "accepted", "rows"),
    [(0.3, 10, 3), (0.3, 5, 2), (0.1, 5, 1), (0.1, 1, 1), (0.1, 0, 0), (0.5, 5, 2), (1, 7, 7)],
)
def test_a_fraction_keeps_the_nearest_whole_number_of_rows_and_at_least_one(
    fraction: float, accepted: int, rows: int
) -> None:
    assert Budget(fraction=fraction).rows_of(accepted) == rows


@given(fraction=floats(0, 1, exclude_min=True), accepted=integers(0, 10**9))
def test_a_fraction_never_keeps_more_rows_than_there_are_and_none_only_of_none(fraction: float, accepted: int) -> None:
    kept = Budget(fraction=fraction).rows_of(accepted)
    assert min(1, accepted) <= kept <= accepted
    assert abs(kept - fraction * accepted) <= 0.5 or kept == 1


def test_a_number_of_rows_is_kept_as_it_is() -> None:
    assert Budget(rows=4).rows_of(4) == 4


def test_more_rows_than_there_are_is_refused_with_both_numbers() -> None:
    with pytest.raises(BudgetError, match=r"budget is 5 rows, but there are only 4 to choose from"):
        Budget(rows=5).rows_of(4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of fraction, rows and tokens; got none of them"),
        ({"fraction": 0.5, "rows": 3}, "got fraction and rows"),
        ({"fraction": 0.0}, "above 0 and not above 1; got 0.0"),
        ({"fraction": 1.5}, "above 0 and not above 1; got 1.5"),
        ({"fraction": float("nan")}, "above 0 and not above 1; got nan"),
        ({"rows": 0}, "budget of rows is at least 1; got 0"),
        ({"tokens": -1}, "budget of tokens is at least 1; got -1"),
    ],
)
def test_a_budget_that_cannot_be_meant_is_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**given)  # type: ignore[arg-type]


def test_a_budget_of_tokens_has_no_number_of_rows() -> None:
    with pytest.raises(BudgetError, match="7 tokens says nothing about rows"):
        Budget(tokens=7).rows_of(10)
