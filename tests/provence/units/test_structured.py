"""JSON and JSON Lines: members under their openers; what is no JSON goes by lines."""

from __future__ import annotations

import json

from tests.provence.units.readings import parents, read, texts

NOTE = "word " * 40
USERS = {
    "name": "x",
    "users": [{"id": 1, "tags": ["a"]}, {"id": 2, "note": NOTE, "city": {"zip": [7]}}],
    "numbers": list(range(200)),
}


def test_members_stand_under_what_opens_their_object() -> None:
    for whole in (json.dumps(USERS), json.dumps(USERS, indent=2)):
        found = {" ".join(told.split()): parent for told, parent in parents(whole, "json").items()}
        root = next(iter(found))
        assert root.startswith("{")
        assert root.endswith('"name": "x",')
        assert (
            " ".join((found[f'"note": "{NOTE}",'] or "").split()) == '{ "id": 2,' if whole[1] == "\n" else '{"id": 2,'
        )
    compact = parents(json.dumps(USERS), "json")
    assert compact['{"id": 1, "tags": ["a"]},'] == '"users": ['
    assert compact['"users": ['] == '{"name": "x",'
    assert compact['"city": {"zip": [7]}}],'] == '{"id": 2,'


def test_elements_of_a_long_array_are_grouped() -> None:
    numbers = [told for told, parent in parents(json.dumps(USERS), "json").items() if parent == '"numbers": [']
    assert 4 <= len(numbers) <= 6
    assert all(len(told) <= 200 for told in numbers)


def test_a_long_string_is_cut_into_sentences_under_its_key() -> None:
    text = "It is told in one string. " * 30
    found = read(json.dumps({"id": 1, "text": text}), "json")
    assert found[0] == ("value", '{"id": 1,', None)
    assert found[1] == ("value", '"text": "It is told in one string.', '{"id": 1,')
    assert found[2] == ("sentence", "It is told in one string.", '"text": "It is told in one string.')


def test_each_line_of_json_lines_is_read_for_itself() -> None:
    whole = '{"a": 1}\n\n{"a": 2}\n[3]'
    assert read(whole, "json") == [("value", told, None) for told in ('{"a": 1}', '{"a": 2}', "[3]")]
    assert read(whole, "auto") == read(whole, "json")


def test_text_that_is_no_json_goes_by_lines() -> None:
    for whole in ('{"a": 1,\n"b"', '{"a": 1]\nx', "[" * 300 + "]" * 300, "{} {}", '["a\n"b"]', "[1, tru]", '{"a":}x'):
        assert {kind for kind, _, _ in read(whole, "json")} == {"line"}
        assert texts(whole, "json") == whole.split("\n")
