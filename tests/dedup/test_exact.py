from __future__ import annotations

import hashlib
import unicodedata
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.dedup.exact import LEADING, TRAILING, exact_duplicates, normalise_text, text_keys
from datapipe.errors import ColumnError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datapipe.storage.arrays import Ids

SAME = [
    ("How do I change my address ?", "how do i change my address"),
    ("  Can\u00a0I\ttop up?\n", "can i top up"),
    ("\u201cHello!\u201d", "hello"),
    ("\u00bfQu\u00e9 tal?", "Que\u0301 tal"),
    ("\ufb01ne\u2026", "fine."),
    ("\uff28\uff45\uff4c\uff4c\uff4f\uff01", "hello"),
    ("STRASSE", "stra\u00dfe"),
    ("so\u00adft\u200b", "soft"),
    ("\u4f60\u597d\u3002", "\u4f60\u597d"),
]
DIFFERENT = [
    ("What is C#?", "What is C?"),
    ("-5", "5"),
    ("great :)", "great :("),
    ("50%", "50"),
    ("...", "?!"),
    ("?!", ""),
    (".5", "5"),
    ("pay in", "pay-in"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_case_spacing_and_closing_punctuation_are_forgotten(one: str, other: str) -> None:
    assert normalise_text(one) == normalise_text(other)
    keys = text_keys([one, other])
    assert keys[0].tolist() == keys[1].tolist()


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_signs_and_brackets_keep_their_meaning(one: str, other: str) -> None:
    assert normalise_text(one) != normalise_text(other)


@given(text=st.text())
def test_a_normalised_text_is_folded_single_spaced_and_bare_at_the_ends(text: str) -> None:
    shown = normalise_text(text)
    assert shown == " ".join(shown.split())
    assert shown == normalise_text(f"\u201c {text} !! ") or not shown.strip(LEADING + TRAILING + " ")
    assert shown == normalise_text(unicodedata.normalize("NFKC", text))


def test_a_key_is_the_blake2b_digest_of_the_normalised_text() -> None:
    digest = hashlib.blake2b(b"hello", digest_size=16).digest()
    assert text_keys(["Hello!"]).astype(">u8").tobytes() == digest


def test_keys_of_a_list_an_array_and_a_chunked_array_are_the_same() -> None:
    texts = ["a", "b", "\ud800"[:0]]
    keys = text_keys(texts)
    assert (keys.shape, keys.dtype.name) == ((3, 2), "uint64")
    np.testing.assert_array_equal(text_keys(pa.array(texts)), keys)
    np.testing.assert_array_equal(text_keys(pa.chunked_array([texts[:1], texts[1:]])), keys)
    assert text_keys([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("column", "kind"), [(pa.array(["a", None]), "null"), (pa.array([b"a", b"b"]), "of type bytes")]
)
def test_rows_without_a_text_are_refused(column: pa.Array, kind: str) -> None:
    row = 1 if kind == "null" else 0
    with pytest.raises(ColumnError, match=f"row {row} is {kind}"):
        text_keys(column)


def pairs_of(batches: list[tuple[Ids, Ids]], scratch: Path) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    found = exact_duplicates(iter(batches), scratch)
    return [(tuple(again), tuple(kept)) for ids, first in found for again, kept in zip(ids, first, strict=True)]


def rows(*ids_and_texts: tuple[int, str]) -> tuple[Ids, Ids]:
    ids = np.array([(7, place) for place, _ in ids_and_texts], np.uint64).reshape(-1, 2)
    return ids, text_keys([text for _, text in ids_and_texts])


def test_all_but_the_lowest_row_id_of_a_text_are_duplicates(tmp_path: Path) -> None:
    batches = [rows((5, "Hi!"), (2, "other")), rows((3, "hi"), (9, "HI"), (8, "alone"), (1, "Other."))]
    assert pairs_of(batches, tmp_path) == [((7, 2), (7, 1)), ((7, 5), (7, 3)), ((7, 9), (7, 3))]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "batches", [[], [rows()], [rows((1, "a")), rows((2, "b"))]], ids=["none", "empty", "all different"]
)
def test_where_nothing_is_repeated_nothing_is_found(batches: list[tuple[Ids, Ids]], tmp_path: Path) -> None:
    assert pairs_of(batches, tmp_path) == []


@given(data=st.data())
def test_duplicates_do_not_hang_on_order_or_cut(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    words = data.draw(st.lists(st.sampled_from("abcdef"), max_size=30))
    order = data.draw(st.permutations(range(len(words))))
    cut = data.draw(st.integers(0, len(words)))
    shuffled = [(place, words[place]) for place in order]
    found = pairs_of([rows(*shuffled[:cut]), rows(*shuffled[cut:])], tmp_path_factory.mktemp("scratch"))
    first: dict[str, int] = {}
    expected = []
    for place, word in enumerate(words):
        if word in first:
            expected.append(((7, place), (7, first[word])))
        first.setdefault(word, place)
    assert found == expected


def test_ids_that_differ_in_the_high_word_alone_are_ordered_by_it(tmp_path: Path) -> None:
    ids = np.array([[2**64 - 1, 0], [1, 2**64 - 1]], np.uint64)
    assert pairs_of([(ids, text_keys(["a", "a"]))], tmp_path) == [((2**64 - 1, 0), (1, 2**64 - 1))]


def test_repeats_in_banking77_are_those_that_a_dictionary_finds(data: Path, tmp_path: Path) -> None:
    texts = pq.read_table(data / "banking77.parquet", columns=["text"])["text"]
    ids = np.stack([np.zeros(len(texts), np.uint64), np.arange(len(texts), dtype=np.uint64)], axis=1)
    keys = text_keys(texts)

    def shards() -> Iterator[tuple[Ids, Ids]]:
        for start in range(0, len(ids), 4096):
            yield ids[start : start + 4096], keys[start : start + 4096]

    first: dict[str, int] = {}
    expected = [
        (place, first[text])
        for place, text in enumerate(map(normalise_text, texts.to_pylist()))
        if first.setdefault(text, place) != place
    ]
    found = [
        (int(a[1]), int(b[1]))
        for again, kept in exact_duplicates(shards(), tmp_path)
        for a, b in zip(again, kept, strict=True)
    ]
    assert found == expected
    assert len(found) == 16
