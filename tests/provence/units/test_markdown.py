"""Markdown: what is a unit, what belongs to it, and which unit gives another its sense."""

from __future__ import annotations

from tests.provence.units.readings import parents, read

GUIDE = """\
---
title: Guide
---
# Guide

Two sentences. They are
wrapped.

Install
-------
You need:

- Python. It is free.
  Get it.
  - version 3.11
  - version 3.12

    Either will do.
- a computer

Run this:

```bash
pip install x
```

| name | size |
|------|-----:|
| a    | 1    |
| b    | 2    |

***

# Other
1. one
2. two

> Quoted. Twice.
"""


def test_every_block_becomes_units_under_what_gives_them_sense() -> None:
    assert read(GUIDE, "markdown") == [
        ("value", "---\ntitle: Guide\n---", None),
        ("heading", "# Guide", None),
        ("sentence", "Two sentences.", "# Guide"),
        ("sentence", "They are\nwrapped.", "# Guide"),
        ("heading", "Install\n-------", "# Guide"),
        ("sentence", "You need:", "Install\n-------"),
        ("item", "- Python. It is free.\n  Get it.", "You need:"),
        ("item", "- version 3.11", "- Python. It is free.\n  Get it."),
        ("item", "- version 3.12", "- Python. It is free.\n  Get it."),
        ("sentence", "Either will do.", "- version 3.12"),
        ("item", "- a computer", "You need:"),
        ("sentence", "Run this:", "Install\n-------"),
        ("code", "```bash\npip install x\n```", "Run this:"),
        ("table_header", "| name | size |\n|------|-----:|", "Install\n-------"),
        ("table_row", "| a    | 1    |", "| name | size |\n|------|-----:|"),
        ("table_row", "| b    | 2    |", "| name | size |\n|------|-----:|"),
        ("line", "***", None),
        ("heading", "# Other", None),
        ("item", "1. one", "# Other"),
        ("item", "2. two", "# Other"),
        ("sentence", "> Quoted.", "# Other"),
        ("sentence", "Twice.", "# Other"),
    ]


def test_auto_takes_it_for_markdown() -> None:
    assert read(GUIDE, "auto") == read(GUIDE, "markdown")


def test_a_long_fence_is_cut_into_blocks_under_its_first_line() -> None:
    blocks = [f"x{place} = '{'a' * 100}'\ny{place} = 1" for place in range(6)]
    found = read("Thus:\n```python\n" + "\n\n".join(blocks) + "\n```\nEnd.", "markdown")
    assert found[1] == ("code", "```python", "Thus:")
    assert [told for _, told, _ in found[2:-1]] == [*blocks[:-1], blocks[-1] + "\n```"]
    assert {parent for _, _, parent in found[2:-1]} == {"```python"}
    assert found[-1] == ("sentence", "End.", None)


def test_an_open_fence_reaches_to_the_end_and_hides_headings() -> None:
    assert read("~~~\n# no heading\n```\n- no item", "markdown") == [
        ("code", "~~~\n# no heading\n```\n- no item", None)
    ]


def test_a_list_without_colon_is_led_in_by_the_sentence_right_above_it() -> None:
    assert parents("Some\n* a\n* b", "markdown")["* b"] == "Some"
    assert parents("Some.\n\n* a\n* b", "markdown")["* b"] is None


def test_a_long_item_is_cut_into_sentences_under_its_first() -> None:
    sentence = "This is one of many sentences in it."
    found = read("- " + " ".join([sentence] * 15), "markdown")
    assert found[0] == ("item", "- " + sentence, None)
    assert set(found[1:]) == {("sentence", sentence, "- " + sentence)}


def test_indented_code_is_code_and_a_year_is_no_item() -> None:
    assert read(
        "Do so:\n\n    a = 1\n    b = 2\n\nThe war that they all had feared began in\n1974. It ended.", "markdown"
    ) == [
        ("sentence", "Do so:", None),
        ("code", "a = 1\n    b = 2", "Do so:"),
        ("sentence", "The war that they all had feared began in\n1974.", None),
        ("sentence", "It ended.", None),
    ]
