from __future__ import annotations

import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.report.markup import breakable, count, cut, escape, join, number, percent, plain, short, tag


def test_strings_are_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b", tag("br"), None, class_="x", data_n=0.5, hidden=True, id=None) == (
        '<p class="x" data-n="0.5" hidden>a &lt; b<br></p>'
    )
    assert join("&", tag("i")) == "&amp;<i></i>"


@given(text=st.text())
def test_escaped_text_reads_as_the_text(text: str) -> None:
    assert html.unescape(escape(text)) == plain(text)


def test_characters_that_hide_or_turn_text_are_shown_as_such() -> None:
    assert plain("a\x00b\u202ec\ud800d\te") == "a\ufffdb\ufffdc\ufffdd\te"


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [(3925, 13083, "30.0 %"), (0, 5, "0.0 %"), (5, 5, "100.0 %"), (1, 10**6, "< 0.1 %"), (10**6 - 1, 10**6, "> 99.9 %"),
     (0, 0, "\u2013")],
)  # fmt: skip
def test_a_share_is_never_rounded_to_all_or_nothing(part: int, whole: int, expected: str) -> None:
    assert percent(part, whole) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.41234, "0.412"), (12.412, "12.4"), (1204.3, "1,204"), (0.0, "0.000"), (-0.5, "\u22120.500"),
     (1e-6, "1.0e\u221206"), (None, "\u2013"), (float("nan"), "\u2013")],
)  # fmt: skip
def test_scores_have_three_significant_decimals(value: float | None, expected: str) -> None:
    assert number(value) == expected


def test_whole_numbers_have_separators_and_round_ones_no_zeros() -> None:
    assert (count(13083), short(0.05), short(1200.0), short(-2.5)) == ("13,083", "0.05", "1,200", "\u22122.5")


@given(text=st.text(max_size=600), limit=st.integers(5, 240))
def test_a_cut_text_fits_its_limit_and_is_the_beginning(text: str, limit: int) -> None:
    shown = cut(text, limit=limit)
    assert len(shown) <= limit + 1
    assert "\n" not in shown
    assert " ".join(text.split()).startswith(shown.removesuffix("\u2026"))


def test_names_may_break_after_underscores() -> None:
    assert breakable("card_arrival<_") == "card_<wbr>arrival&lt;_"
