"""Packing is pure: these properties hold for any lengths and budgets."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis.strategies import booleans, integers, lists

from datapipe.errors import ConfigError
from datapipe.workers.pack import pack

LENGTHS = lists(integers(1, 512), max_size=300)
BUDGETS = integers(1, 8192)
ITEMS = integers(1, 64)


def cost(lengths: list[int], batch: list[int], *, padded: bool) -> int:
    chosen = [lengths[index] for index in batch]
    return max(chosen) * len(chosen) if padded else sum(chosen)


def test_pack_puts_the_longest_first_and_counts_padding() -> None:
    assert pack([3, 9, 4, 9], token_budget=18, max_items=10) == [[1, 3], [2, 0]]


def test_pack_counts_tokens_only_where_nothing_is_padded() -> None:
    assert pack([3, 9, 4, 9], token_budget=22, max_items=10, padded=False) == [[1, 3, 2], [0]]


@given(lengths=LENGTHS, token_budget=BUDGETS, max_items=ITEMS, padded=booleans())
def test_pack_puts_every_item_in_exactly_one_batch(
    lengths: list[int], token_budget: int, max_items: int, *, padded: bool
) -> None:
    batches = pack(lengths, token_budget=token_budget, max_items=max_items, padded=padded)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths=LENGTHS, token_budget=BUDGETS, max_items=ITEMS, padded=booleans())
def test_pack_keeps_both_limits_except_for_an_oversize_item_which_is_alone(
    lengths: list[int], token_budget: int, max_items: int, *, padded: bool
) -> None:
    for batch in pack(lengths, token_budget=token_budget, max_items=max_items, padded=padded):
        assert len(batch) <= max_items
        assert cost(lengths, batch, padded=padded) <= token_budget or len(batch) == 1


@given(lengths=LENGTHS, token_budget=BUDGETS, max_items=ITEMS, padded=booleans())
def test_pack_orders_by_length_and_breaks_ties_by_index(
    lengths: list[int], token_budget: int, max_items: int, *, padded: bool
) -> None:
    batches = pack(lengths, token_budget=token_budget, max_items=max_items, padded=padded)
    order = [index for batch in batches for index in batch]
    assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


@given(lengths=LENGTHS, token_budget=BUDGETS, max_items=ITEMS, padded=booleans())
def test_pack_opens_a_batch_only_where_the_item_did_not_fit_the_one_before(
    lengths: list[int], token_budget: int, max_items: int, *, padded: bool
) -> None:
    batches = pack(lengths, token_budget=token_budget, max_items=max_items, padded=padded)
    for before, after in pairwise(batches):
        with_next = [*before, after[0]]
        assert len(with_next) > max_items or cost(lengths, with_next, padded=padded) > token_budget


@given(lengths=LENGTHS, token_budget=BUDGETS)
def test_pack_says_the_same_of_equal_input(lengths: list[int], token_budget: int) -> None:
    first = pack(lengths, token_budget=token_budget, max_items=32)
    assert pack(tuple(lengths), token_budget=token_budget, max_items=32) == first


@pytest.mark.parametrize(
    ("lengths", "token_budget", "max_items", "message"),
    [
        ([1], 0, 1, r"token_budget and max_items of pack must be at least 1\. Got 0 and 1"),
        ([1], 1, 0, r"token_budget and max_items of pack must be at least 1\. Got 1 and 0"),
        ([4, 0, 2], 8, 8, r"the length of item 1 must be at least 1\. Got 0"),
    ],
)
def test_pack_refuses_what_cannot_be_packed(
    lengths: list[int], token_budget: int, max_items: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pack(lengths, token_budget=token_budget, max_items=max_items)
