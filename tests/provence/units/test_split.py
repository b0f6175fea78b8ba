"""What holds for every text of every kind: order, cover, parents, size; and that no text takes more than its time."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis.strategies import lists, sampled_from, text

from datapipe.errors import ConfigError
from provence.units import TextKind, Unit, split
from provence.units.spans import LONGEST
from provence.units.unit import TEXT_KINDS

if TYPE_CHECKING:
    from types import FrameType

PARTS = [
    *".!?\"“”'«»「」()[]{}|,:;#=-*_>`~…،।。",
    *" \t\n\r\0\x0b\x0c\x1c\x85\u2028\u2029\u200b\u200d\u0301\ufe0f\ufeff",
    *"aA1éß日א🙂",
    "\r\n", "\n\n", "    ", "- ", "1. ", "## ", "---", "===\n", "```\n", "~~~\n", "|a|b|\n|-|-|\n", '"a": ', "[1, 2]",
    "def f(x):\n", "    return 1\n", "2024-01-01 10:00:00 INFO x\n", "\tat x.y(z)\n", "e.g. ", "The ", "Dr. ",
    "x" * 700, " " * 300, "[note 1]", "null", "\\", '\\"', "'''", "/*", "}\n",
]  # fmt: skip
ADVERSARIAL = ["a.", "(", "\n|", "#", "```\n", "[", "1.", '"', "“"]
MANY_UNITS = ["a\n\n", "? ", '{"a":', "a\n---\n", "[]", "e.g. ", "a: "]


def assert_units_of(units: list[Unit], whole: str) -> None:
    at = 0
    for place, unit in enumerate(units):
        own = whole[unit.start : unit.end]
        assert at <= unit.start < unit.end
        assert not whole[at : unit.start].strip()
        assert own == own.strip()
        assert len(own) <= LONGEST
        assert unit.parent is None or 0 <= unit.parent < place
        at = unit.end
    assert not whole[at:].strip()


def calls(whole: str, kind: TextKind) -> int:
    """Calls of functions, Python's and C's, that a text of this kind costs."""
    count = 0

    def tally(frame: FrameType, event: str, arg: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    sys.setprofile(tally)
    try:
        split(whole, kind=kind)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("kind", TEXT_KINDS)
@given(parts=lists(sampled_from(PARTS), max_size=60))
def test_units_and_gaps_are_the_text(kind: TextKind, parts: list[str]) -> None:
    whole = "".join(parts)
    assert_units_of(split(whole, kind=kind), whole)


@pytest.mark.parametrize("kind", TEXT_KINDS)
@given(whole=text(max_size=200))
def test_any_unicode_text_is_covered(kind: TextKind, whole: str) -> None:
    assert_units_of(split(whole, kind=kind), whole)


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize("whole", ["", " ", "\n\t\u2028 "])
def test_a_text_without_visible_characters_has_no_units(kind: TextKind, whole: str) -> None:
    assert split(whole, kind=kind) == []


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize("part", ["word ", "x", "é\u0301", "日本、", "a\n", "\u0301"])
def test_no_unit_is_huge(kind: TextKind, part: str) -> None:
    whole = part * 3000
    assert_units_of(split(whole, kind=kind), whole)


def test_a_sentence_without_end_is_cut_at_clauses_and_never_before_a_combining_mark() -> None:
    clauses = "one two three four, " * 100
    assert all(clauses[unit.end - 1] == "," for unit in split(clauses, kind="prose"))
    marked = "e\u0301" * 1201
    assert all(marked[unit.start] == "e" for unit in split(marked, kind="prose"))


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        ("prose", "One. Two."),
        ("markdown", "# Head\n\nOne. Two."),
        ("code", "def f():\n    return 1"),
        ("json", '{"id": 1, "names": ["a", "b"], "text": "' + "x" * 300 + '"}'),
        ("log", "INFO a\n  b\nINFO c"),
    ],
)
def test_a_byte_order_mark_belongs_to_the_first_unit_and_changes_nothing_else(kind: TextKind, whole: str) -> None:
    first, *rest = split(whole, kind=kind)
    moved = [replace(unit, start=unit.start + 1, end=unit.end + 1) for unit in rest]
    assert split("\ufeff" + whole, kind=kind) == [replace(first, start=0, end=first.end + 1), *moved]


@pytest.mark.parametrize("kind", TEXT_KINDS)
@given(parts=lists(sampled_from(PARTS), max_size=20), marks=sampled_from(["\ufeff", " \ufeff\n\ufeff"]))
@settings(max_examples=30)
def test_behind_byte_order_marks_the_units_and_gaps_are_the_text_too(
    kind: TextKind, parts: list[str], marks: str
) -> None:
    whole = marks + "".join(parts)
    assert_units_of(split(whole, kind=kind), whole)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ADVERSARIAL)
def test_a_megabyte_of_anything_is_read(part: str) -> None:
    whole = part * (1_000_000 // len(part))
    assert len(split(whole)) >= len(whole) // LONGEST


@pytest.mark.timeout(60)
def test_many_short_paragraphs_are_read_as_markdown() -> None:
    assert len(split("a\n\n" * 20_000, kind="markdown")) == 20_000


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize("part", ADVERSARIAL + MANY_UNITS)
def test_four_times_the_text_is_four_times_the_work(part: str, kind: TextKind) -> None:
    assert calls(part * 4000, kind) <= 4.4 * calls(part * 1000, kind) + 500


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="kind is 'html': a text is read as one of auto, prose"):
        split("a", kind="html")  # type: ignore[arg-type]
