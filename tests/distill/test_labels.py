"""A teacher's classes are matched by name or by a map, and never guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis.strategies import permutations

from datapipe.distill.labels import class_places, read_label_map
from datapipe.errors import ConfigError, SoftLabelError

if TYPE_CHECKING:
    from pathlib import Path

RUN = ["card", "cash", "loan"]


@given(permutations(RUN))
def test_the_same_names_in_another_order_are_put_into_the_order_of_the_run(names: list[str]) -> None:
    places = class_places("t", names, RUN, count=3)
    assert [names[place] for place in places] == RUN


def test_a_map_says_which_class_is_which_by_name_or_by_place() -> None:
    by_name = class_places("t", ["C", "A", "B"], RUN, count=3, mapping={"A": "card", "B": "cash", "C": "loan"})
    assert by_name.tolist() == [1, 2, 0]
    assert class_places("t", None, RUN, count=3, mapping=["loan", "card", "cash"]).tolist() == [1, 2, 0]


def test_a_teacher_without_names_is_taken_by_number_only_where_the_labels_are_numbers() -> None:
    assert class_places("t", None, ["0", "1", "2"], count=3).tolist() == [0, 1, 2]
    with pytest.raises(SoftLabelError, match="label map"):
        class_places("t", None, RUN, count=3)


def test_other_classes_are_refused_with_both_lists_and_the_remedy() -> None:
    with pytest.raises(SoftLabelError) as caught:
        class_places("big", ["card", "cash", "mortgage", "tax"], RUN, count=4)
    told = str(caught.value)
    assert "teacher big has 4 classes, ['card', 'cash', 'mortgage', 'tax']" in told
    assert "the run 3, ['card', 'cash', 'loan']" in told
    assert "it has no ['loan']" in told
    assert "the run has no ['mortgage', 'tax']" in told
    assert "--label-map" in told


def test_two_classes_of_one_name_are_refused() -> None:
    with pytest.raises(SoftLabelError, match="has 3 classes"):
        class_places("t", ["card", "cash", "cash"], RUN, count=3)
    with pytest.raises(SoftLabelError, match="has 3 classes"):
        class_places("t", ["a", "b", "c"], RUN, count=3, mapping={"a": "card", "b": "cash", "c": "cash"})


def test_a_map_that_does_not_fit_is_refused() -> None:
    with pytest.raises(SoftLabelError, match=r"the label map lacks \['b', 'c'\]"):
        class_places("t", ["a", "b", "c"], RUN, count=3, mapping={"a": "card"})
    with pytest.raises(SoftLabelError, match="names 2 classes"):
        class_places("t", None, RUN, count=3, mapping=["card", "cash"])
    with pytest.raises(SoftLabelError, match="tells no names"):
        class_places("t", None, RUN, count=3, mapping={"a": "card"})


@pytest.mark.parametrize(
    ("body", "told"), [("[1, 2]", "Got list"), ('{"a": 1}', "Got dict"), ("3", "Got int"), ("[", "is not JSON")]
)
def test_a_file_that_is_no_map_is_refused_by_name(tmp_path: Path, body: str, told: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(body)
    with pytest.raises(ConfigError, match=told):
        read_label_map(path)
    with pytest.raises(ConfigError, match="cannot read the label map"):
        read_label_map(tmp_path / "none.json")


def test_a_map_is_an_object_or_a_list(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"a": "card"}')
    assert read_label_map(path) == {"a": "card"}
    path.write_text('["card"]')
    assert read_label_map(path) == ["card"]
