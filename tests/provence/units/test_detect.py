"""Which kind a text is taken for: prose wherever that is in doubt."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from provence.units.detect import detect

ROOT = Path(__file__).parents[3]

KINDS = {
    "prose": [
        "",
        "# one line may be anything",
        "A sentence. [1] And {another}.",
        "One line: x = 1;",
        "We ate:\n- bread, which was old, and salt.\nThen we left.",
        "In 2024-01-01 it began.\nThen it ended.\nNobody knew.",
        "the oxide (O\n3) is a gas and O\n2. It is not.",
        "If it rains,\nwe stay in.\nFor a while (or two).",
        "[not json",
        "{neither}",
    ],
    "markdown": [
        "# Title\n\nText.",
        "Text.\n```\nx\n```",
        "a | b\n--|--\n1 | 2",
        "* a\n* b",
        "1. a\n2. b",
        "See [a](b).\nAnd [c](d).",
    ],
    "code": [
        "#!/bin/sh\nset -e\nfoo() {\n  echo x;\n}",
        "import a\n\n# Why.\ndef f(x):\n    return x",
        "int main() {\n  return 0;\n}",
        "SELECT 1;\nSELECT 2;",
    ],
    "json": ['{"a": 1}', "[]", ' [1, {"b": null}]\n', '{"a": 1}\n{"a": 2}'],
    "log": ["INFO: a\nINFO: b", "10:00:00 a\n10:00:01 b\n  c"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in KINDS.items() for text in texts])
def test_a_text_is_taken_for_what_it_is(kind: str, text: str) -> None:
    assert detect(text) == kind


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in KINDS.items() for text in texts])
@pytest.mark.parametrize("mark", ["\ufeff", "\n\ufeff\ufeff"])
def test_a_byte_order_mark_hides_no_kind(kind: str, text: str, mark: str) -> None:
    assert detect(mark + text) == kind


def test_encyclopaedia_paragraphs_are_prose() -> None:
    contexts = set(pq.read_table(ROOT / "data" / "squad20_dev.parquet", columns=["context"])["context"].to_pylist())
    assert {detect(context) for context in contexts} == {"prose"}


def test_this_project_is_code_and_its_readme_markdown() -> None:
    assert detect((ROOT / "README.md").read_text(encoding="utf-8")) == "markdown"
    assert {detect(path.read_text(encoding="utf-8")) for path in (ROOT / "provence" / "units").glob("*.py")} == {"code"}
