"""Windows: each unit scored once, with its neighbours in view, whatever the title."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from provence.windows import Frame, Window, lay_windows, text_room

if TYPE_CHECKING:
    from datapipe.storage.arrays import Int32

FRAME = Frame(np.array([1], np.int32), np.array([2, 2], np.int32), np.array([3], np.int32))
QUESTION = np.array([10, 11, 12], np.int32)
NO_TITLE = np.empty(0, np.int32)


def lay(lengths: list[int], *, room: int, title: Int32 = NO_TITLE) -> tuple[list[Window], Int32, list[int]]:
    """Windows with that much room for a text whose tokens count up from 1,000."""
    bounds = list(accumulate(lengths, initial=0))
    units = np.arange(1000, 1000 + bounds[-1], dtype=np.int32)
    longest = room + FRAME.length + len(QUESTION) + len(title)
    return lay_windows(FRAME, QUESTION, title, units, bounds, max_length=longest), units, bounds


def scored(window: Window) -> list[tuple[int, list[int]]]:
    """Units of a window with the tokens scored for each."""
    cuts = [window.start, *(window.start + np.cumsum(window.lengths))]
    return [(window.first + place, window.ids[a:b].tolist()) for place, (a, b) in enumerate(pairwise(cuts))]


def seen(window: Window) -> set[int]:
    """Tokens of the text in a window."""
    return {int(token) for token in window.ids if token >= 1000}


def test_a_text_that_fits_is_one_window_as_the_tokenizer_puts_a_pair_together() -> None:
    (window,), _, _ = lay([2, 3], room=5)
    assert window.ids.tolist() == [1, 10, 11, 12, 2, 2, 1000, 1001, 1002, 1003, 1004, 3]
    assert scored(window) == [(0, [1000, 1001]), (1, [1002, 1003, 1004])]


def test_windows_overlap_by_a_unit_on_both_sides() -> None:
    windows, _, _ = lay([2] * 6, room=8)
    assert [[unit for unit, _ in scored(window)] for window in windows] == [[0, 1, 2], [3, 4, 5]]
    assert [window.ids[6:-1].tolist() for window in windows] == [list(range(1000, 1008)), list(range(1004, 1012))]


def test_a_text_without_tokens_has_one_window_in_which_nothing_is_scored() -> None:
    for lengths in ([], [0], [0, 0]):
        (window,), _, _ = lay(lengths, room=5)
        assert window.ids.tolist() == [1, 10, 11, 12, 2, 2, 3]
        assert window.lengths.sum() == 0


def test_a_title_stands_at_the_head_of_every_window_and_moves_no_score() -> None:
    """OpenProvence shifts the ranges of tokens by the title's length, so it keeps the wrong sentence."""
    title = np.array([20, 21, 22, 23], np.int32)
    bare, _, _ = lay([2] * 6, room=8)
    titled, _, _ = lay([2] * 6, room=8, title=title)
    assert [scored(window) for window in titled] == [scored(window) for window in bare]
    assert all(window.ids[6:10].tolist() == title.tolist() for window in titled)


def test_a_unit_longer_than_a_window_is_cut_into_stretches_that_see_what_is_around_them() -> None:
    windows, _, _ = lay([3, 20, 3], room=8)
    tokens = [token for window in windows for unit, found in scored(window) if unit == 1 for token in found]
    assert tokens == list(range(1003, 1023))
    inner = [window for window in windows if [unit for unit, _ in scored(window)] == [1]]
    assert len(inner) >= 3
    for window in inner[1:]:
        assert scored(window)[0][1][0] - 1 in seen(window)


def test_a_question_leaves_a_quarter_of_the_window_to_the_text() -> None:
    assert text_room(512, FRAME) == 127
    assert text_room(5, FRAME) == 1


@given(lengths=st.lists(st.integers(0, 30), max_size=30), room=st.integers(1, 40), title=st.integers(0, 5))
def test_every_token_is_scored_exactly_once_for_its_unit(lengths: list[int], room: int, title: int) -> None:
    windows, units, bounds = lay(lengths, room=room, title=np.arange(20, 20 + title, dtype=np.int32))
    pairs = [(unit, token) for window in windows for unit, found in scored(window) for token in found]
    want = [(unit, 1000 + token) for unit, n in enumerate(lengths) for token in range(bounds[unit], bounds[unit] + n)]
    assert pairs == want
    assert all(len(window.ids) <= room + FRAME.length + len(QUESTION) + title for window in windows)
    assert {token for window in windows for token in seen(window)} == set(units.tolist())


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), room=st.integers(8, 40))
def test_every_unit_sees_its_neighbours_whole_where_the_three_fit_and_their_nearest_tokens_where_not(
    lengths: list[int], room: int
) -> None:
    windows, _, bounds = lay(lengths, room=room)
    for window in windows:
        view = seen(window)
        for unit, tokens in scored(window):
            around = bounds[max(unit - 1, 0)], bounds[min(unit + 2, len(lengths))]
            if around[1] - around[0] <= room:
                assert set(range(1000 + around[0], 1000 + around[1])) <= view
            else:
                near = set(range(tokens[0] - room // 4, tokens[-1] + 1 + room // 4))
                inside = set(range(1000 + around[0], 1000 + around[1]))
                assert near & inside <= view
