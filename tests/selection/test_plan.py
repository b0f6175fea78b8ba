"""A plan refuses settings that are unknown, contradict each other, or would do nothing."""

from __future__ import annotations

from typing import Any

import pytest

from datapipe.errors import SelectionError
from datapipe.selection.plan import Plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "best"}, "order is one of hard, easy, random, weighted; got 'best'"),
        ({"strata": "bins"}, "strata is one of none, score_width, score_count, group; got 'bins'"),
        ({"quota": "fair"}, "quota is one of proportional, equal, fill, given; got 'fair'"),
        ({"trim_hard": 1.0}, "fractions that leave rows; got 1.0 and 0.0"),
        ({"trim_hard": 0.5, "trim_easy": 0.5}, "fractions that leave rows; got 0.5 and 0.5"),
        ({"trim_easy": -0.1}, "fractions that leave rows"),
        ({"strata": "score_width", "bins": 1}, "bins lies within 2 and 1000; got 1"),
        ({"bins": 10}, "bins = 10 has no effect with strata = 'none'"),
        ({"quota": "equal"}, "quota = 'equal' needs strata"),
        ({"strata": "group", "floor_ratio": 0.2}, "floor_ratio = 0.2 has no effect with quota = 'proportional'"),
        ({"beta": (1.0, 2.0)}, "beta = .* has no effect with order = 'hard'"),
        (
            {"order": "weighted", "beta": (0.0, 1.0)},
            "beta is a finite sharpness above 0 and a reach within 0 and 1; got",
        ),
        ({"mix_random": 1.1}, "lie within 0 and 1; got 0.5 and 1.1"),
        ({"order": "random", "mix_random": 0.1}, "mix_random has no effect on a random order"),
        ({"strata": "group", "quota": "fill", "mix_random": 0.6}, "together exceed the budget"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        Plan(**{"order": "hard", **settings})
