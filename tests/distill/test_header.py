"""A store's identity survives its file, and a reader that trains on something else is refused with both sides named."""

from __future__ import annotations

from typing import Any

import pytest

from datapipe.distill.header import SoftLabelHeader, Teacher, id_bits
from datapipe.errors import ConfigError, SoftLabelError


def header(**options: Any) -> SoftLabelHeader:
    settings: dict[str, Any] = {
        "level": "row",
        "mode": "dense",
        "classes": 3,
        "teachers": (Teacher("bert", "abc"), Teacher("head", "def")),
        "preprocessing": "p1",
        "class_names": ("cat", "dog", "eel"),
        **options,
    }
    return SoftLabelHeader(**settings)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "topk", "k": 2, "augmentation_seed": 4, "averaged": "probabilities"},
        {"level": "token", "mode": "sampled", "draws": 50, "classes": 49_152, "class_names": None, "tokenizer": "t"},
    ],
)
def test_a_header_comes_back_from_its_metadata(options: dict[str, Any]) -> None:
    own = header(**options)
    back = SoftLabelHeader.from_metadata(own.to_metadata(), where="s.parquet")
    assert back == own
    assert back.identity == own.identity
    assert header(**options, seed=1).identity != own.identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "topk"}, "k goes with mode 'topk'"),
        ({"mode": "topk", "k": 4}, "k must be 1 ... 3, the number of classes. Got 4"),
        ({"mode": "topk", "k": 0}, "k must be 1 ... 3"),
        ({"k": 2}, "k goes with mode 'topk'"),
        ({"mode": "sampled"}, "draws with 'sampled'"),
        ({"mode": "sampled", "draws": 0}, "draws must be 1 ... 65,535. Got 0"),
        ({"classes": 1, "class_names": None}, "classes must be 2"),
        ({"classes": 129, "class_names": None}, "258 bytes a position; above 128 classes use mode 'topk' or 'sampled'"),
        ({"class_names": ("cat", "dog")}, "a name for each of 3 classes. Got 2 names"),
        ({"teachers": ()}, "need a teacher"),
        ({"tokenizer": "t"}, "labels of tokens need the tokenizer's digest, labels of rows have none"),
        ({"level": "token"}, "labels of tokens need the tokenizer's digest"),
        ({"level": "word"}, "level must be 'row' or 'token'. Got 'word'"),
        ({"mode": "all"}, "mode must be 'dense', 'topk' or 'sampled'. Got 'all'"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        header(**options)


def test_dense_labels_of_many_classes_can_be_meant() -> None:
    assert header(classes=1000, class_names=None, wide=True).classes == 1000


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"teacher": "abc"},
            r"teacher of its labels is \('abc', 'def'\) \(\['bert', 'head'\]\), and \('abc',\) was ask",
        ),
        ({"teacher": ["def", "abc"]}, "make the labels again with that teacher"),
        ({"preprocessing": "p2"}, "preprocessing of its labels is p1, and p2 was asked for; prepare the rows"),
        ({"classes": 4}, "its labels are of 3 classes, and the student has 4"),
        ({"class_names": ["cat", "eel", "dog"]}, "in another order: class 1 is 'dog' in the store and 'eel' for the"),
        ({"class_names": ["cat", "dog"]}, r"its 3 classes are \['cat', 'dog', 'eel'\], and the student's 2 are"),
        ({"tokenizer": "t"}, "tokenizer of its labels is None, and t was asked for; ids of one vocabulary"),
    ],
)
def test_a_reader_that_expects_something_else_is_told_what_both_sides_have(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftLabelError, match=f"s.parquet: .*{message}"):
        header().check(where="s.parquet", **asked)


def test_a_reader_that_expects_what_is_there_or_asks_nothing_is_let_in() -> None:
    header().check(where="s")
    header().check(where="s", teacher=("abc", "def"), preprocessing="p1", classes=3, class_names=["cat", "dog", "eel"])


def test_names_that_are_not_stored_cannot_be_checked() -> None:
    with pytest.raises(SoftLabelError, match="its classes have no names, so their order cannot be checked against"):
        header(class_names=None).check(where="s", class_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "holds no soft labels"),
        ({b"secateur.soft_labels": b"{"}, "not understood"),
        ({b"secateur.soft_labels": b'{"version": 2}'}, "format version 2, and this reader knows 1"),
        (
            {b"secateur.soft_labels": header().to_metadata()[b"secateur.soft_labels"][:-1] + b',"x":1}'},
            "unknown fields",
        ),
        ({b"secateur.soft_labels": b'{"version": 1}'}, "not understood"),
    ],
)
def test_metadata_that_is_no_header_is_refused(metadata: dict[bytes, bytes] | None, message: str) -> None:
    with pytest.raises(SoftLabelError, match=f"s.parquet.*{message}"):
        SoftLabelHeader.from_metadata(metadata, where="s.parquet")


def test_ids_take_sixteen_bits_up_to_65536_classes_and_then_as_many_as_needed() -> None:
    assert [id_bits(classes) for classes in (2, 49_152, 65_536, 65_537, 128_256, 131_072, 131_073, 262_144)] == [
        *[16, 16, 16],
        *[17, 17, 17],
        *[18, 18],
    ]
