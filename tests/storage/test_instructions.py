"""Pools of instructions in every usual shape, read as instruction, input, response and what was said before."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import ColumnError
from datapipe.storage.instructions import Pair, PoolColumns, columns_of, read_pairs

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "When?"}
SAID = {"role": "assistant", "content": "In winter."}
MORE = {"role": "user", "content": "Why then?"}
LAST = {"role": "assistant", "content": "They sleep."}


def read(rows: list[dict[str, Any]], asked: PoolColumns | None = None, **options: Any) -> tuple[list[Pair], Any]:
    table = pa.Table.from_pylist(rows)
    return read_pairs(table, columns_of(table.column_names, asked), **{"max_chars": 100, **options})


def chat(*messages: dict[str, str]) -> list[dict[str, Any]]:
    return [{"messages": list(messages)}]


def test_the_last_turn_of_a_chat_is_the_row_and_what_stands_before_is_its_history() -> None:
    pairs, refused = read(chat(SYSTEM, ASKED, SAID, MORE, LAST))
    assert pairs == [Pair("Why then?", "", "They sleep.", history=(SYSTEM, ASKED, SAID))]
    assert refused == {}


def test_chats_as_sharegpt_has_them_read_alike() -> None:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    said = [{"from": names[m["role"]], "value": m["content"]} for m in (SYSTEM, ASKED, SAID, MORE, LAST)]
    assert read([{"conversations": said}])[0] == read(chat(SYSTEM, ASKED, SAID, MORE, LAST))[0]


def test_a_chat_that_ends_with_a_question_loses_it() -> None:
    assert read(chat(ASKED, SAID, MORE))[0] == [Pair("When?", "", "In winter.")]


def test_system_messages_come_first_and_are_one() -> None:
    late = {"role": "system", "content": "And kind."}
    pairs, _ = read(chat(SYSTEM, ASKED, SAID, late, MORE, LAST))
    assert pairs[0].history[0] == {"role": "system", "content": "Be brief.\n\nAnd kind."}
    assert [each["role"] for each in pairs[0].history] == ["system", "user", "assistant"]


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(min_size=1, max_size=5)), min_size=1, max_size=5))
def test_history_and_row_together_are_the_whole_chat(turns: list[tuple[str, str]]) -> None:
    names = ("user", "assistant")
    messages = [{"role": role, "content": f"x{text}"} for turn in turns for role, text in zip(names, turn, strict=True)]
    (pair,), _ = read(chat(*messages))
    read_back = [each["content"] for each in pair.history] + [pair.instruction, pair.response]
    assert read_back == [each["content"] for each in messages]


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        ([], "no_turns", "It holds nothing"),
        ([SYSTEM], "no_turns", "It holds system"),
        ([ASKED], "no_turns", "It holds user"),
        ([SAID, ASKED, SAID], "turns_out_of_order", "by turns. It holds assistant, user, assistant"),
        ([ASKED, ASKED, SAID], "turns_out_of_order", "It holds user, user, assistant"),
        ([{"role": "tool", "content": "x"}], "no_turns", "a message of role 'tool' with str content"),
        ([{"role": "user", "content": None}, SAID], "no_turns", "role 'user' with NoneType content"),
        ([ASKED, {"role": "assistant", "content": " "}], "empty_text", "the response holds white space only"),
        ([ASKED, {"role": "assistant", "content": "x" * 99}], "text_too_long", "hold 104 characters, more than 100"),
    ],
)
def test_chats_without_a_turn_to_learn_from_are_refused(messages: list[Any], reason: str, detail: str) -> None:
    table = pa.table(
        {"messages": pa.array([messages], pa.list_(pa.struct([("role", "string"), ("content", "string")])))}
    )
    pairs, refused = read_pairs(table, columns_of(["messages"]), max_chars=100)
    assert pairs == []
    assert refused[0][0] == reason
    assert detail in refused[0][1]


def test_a_long_history_refuses_no_row() -> None:
    pairs, refused = read(chat(ASKED, {"role": "assistant", "content": "x" * 500}, MORE, LAST))
    assert (len(pairs), refused) == (1, {})


def test_files_of_several_shapes_are_one_pool() -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "Sum up.", "input": "A text.", "output": "Text."},
        {"question": "1 + 1?", "answer": "2"},
        {"messages": [ASKED, SAID]},
        {"instruction": "No answer."},
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    pairs, refused = read([{name: row.get(name) for name in names} for row in rows])
    assert [(pair.instruction, pair.input, pair.response) for pair in pairs] == [
        ("Sum up.", "A text.", "Text."),
        ("1 + 1?", "", "2"),
        ("When?", "", "In winter."),
    ]
    assert refused == {3: ("null_text", "column 'output' is null")}


def test_a_row_says_where_it_comes_from_or_its_file_does() -> None:
    rows = [{"question": "a", "answer": "b", "source": "forum", "set": 7}]
    rows.append({"question": "a", "answer": "b", "source": None, "set": None})
    assert [pair.source for pair in read(rows, source="file")[0]] == ["forum", "file"]
    assert [pair.source for pair in read(rows, PoolColumns(source="set"), source="file")[0]] == ["7", "file"]
    with pytest.raises(ColumnError, match="source column 'kind' is not in the pool; its columns are question, answer"):
        read(rows, PoolColumns(source="kind"))


def test_columns_of_all_shapes_are_found_and_named_ones_alone_are_taken() -> None:
    found = columns_of(["question", "answer", "instruction", "output", "input", "messages"])
    assert (found.instruction, found.input, found.response) == ("instruction", "input", "output")
    assert found.others == (PoolColumns(instruction="question", response="answer"), PoolColumns(messages="messages"))
    named = columns_of(["question", "answer", "output"], PoolColumns(instruction="question", response="output"))
    assert named == PoolColumns(instruction="question", response="output")
