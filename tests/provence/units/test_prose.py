"""Where sentences end: by hand-made examples of many languages, and as people's data sets cut them."""

# ruff: noqa: RUF001  # the marks of many scripts look alike

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from provence.units import split
from tests.provence.units.readings import texts

DATA = Path(__file__).parents[3] / "data"

SENTENCES = {
    "titles and prices": ["Dr. Smith paid $3.50 to Mrs. J. K. Rowling.", "She smiled."],
    "places": ["The U.S. Army left St. Louis.", "It was cold in the U.S.", "The rest stayed."],
    "companies": [
        "The company (Apple Inc.) grew.",
        "So did IBM Corp. in 1990.",
        "He joined Apple Inc.",
        "It had grown.",
    ],
    "time": ["At 5 p.m. he left.", "At 5 a.m. Monday he came.", "We met at 5 p.m.", "He was late."],
    "references": [
        "See Fig. 3, Eq. 4 and vol. 2, pp. 4-5, e.g. this one, i.e. that.",
        "The answer is no.",
        "It works.",
    ],
    "citations": ["It shrank.[1][2]", "It grew.[citation needed]", "Nobody knows."],
    "quotes": ['He said "Stop!" and left.', '"Why?" she asked.', "“No.”", "He ran."],
    "ellipses": ["It works... maybe.", "And then...", "Nothing happened.", "Wait . . . what?"],
    "addresses": ["Visit https://www.example.com/a.b?c=d.", "Use Node.js v1.2.3, or write to a.b@c.org.", "Done!"],
    "enumerators": ["1. First comes this.", "2. Then that.", "A. Last.", "IV. A part.", "2.1. Its part."],
    "marks alone": ["... so he said.", "Well!", "No! ?! — *"],
    "missing space": ["The shop was closed.", "The owner left."],
    "years": ["It began in 1973.", "In 1974 it ended."],
    "names in small letters": ["He has one.", "iPhone users disagree."],
    "emphasis": ["**It is bold.**", "_It is not._", "`Code.`", "Fine."],
    "German": [
        "Das ist z. B. ein Satz.",
        "Am 3. Oktober war Feiertag, am 1. 2. 1970 nicht.",
        "Dr. Müller kam im 19. Jahrhundert.",
        "»Gut.«",
    ],
    "French": ["M. Dupont est arrivé.", "Il a dit « Bonjour. »", "Puis il est parti.", "Pourquoi ?", "Parce que."],
    "Spanish": ["¿Qué es?", "¡Nada!", "El Sr. García llegó."],
    "Russian": ["Это первое предложение.", "Это второе?", "Да!"],
    "Greek": ["Πρώτη πρόταση.", "Δεύτερη πρόταση."],
    "Arabic": ["هل هذا سؤال؟", "نعم.", "هذا جواب."],
    "Hindi": ["यह एक वाक्य है।", "यह दूसरा है॥", "अच्छा?"],
    "Armenian": ["Սա նախադասություն է։", "Սա ևս։"],
    "Tokenised": ["He left .", "`` Why ? ''", "Nobody knew ."],
}
UNSPACED = {
    "Japanese": ["これは文です。", "次の文です！", "「本当？」と彼は言った。", "終わり。"],
    "Chinese": ["他说：“你好。”", "然后走了。", "真的吗？", "是的！"],
}


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences_end_where_a_reader_ends_them(name: str) -> None:
    assert texts(" ".join(SENTENCES[name])) == SENTENCES[name]


@pytest.mark.parametrize("name", UNSPACED)
def test_scripts_without_spaces_are_cut_after_their_marks(name: str) -> None:
    assert texts("".join(UNSPACED[name])) == UNSPACED[name]


def test_scripts_without_marks_are_cut_at_spaces_into_clauses() -> None:
    clause = "นี่คือประโยคหนึ่งที่ยาวพอสมควร"
    found = texts(" ".join([clause] * 20))
    assert len(found) > 3
    assert all(set(told.split()) == {clause} for told in found)


def test_text_without_capitals_is_cut_too() -> None:
    assert texts("hello there. how are you? i am fine, e.g. today.") == [
        "hello there.",
        "how are you?",
        "i am fine, e.g. today.",
    ]


def test_lines_that_were_wrapped_are_joined_and_lines_ended_on_purpose_are_not() -> None:
    wrapped = "The first sentence of this text is long enough to be\nbroken in two by Peter, who wrote\nit."
    assert texts(wrapped) == [wrapped]
    titled = "A short title\nThe first sentence of this text is long. The second one is not."
    assert texts(titled) == ["A short title", "The first sentence of this text is long.", "The second one is not."]
    assert texts("•\nBread, as we said\n\ufffd\nSalt, as they said") == [
        "•\nBread, as we said",
        "\ufffd\nSalt, as they said",
    ]
    assert texts("We need:\n- bread\n- salt\n1) and\n2) more") == ["We need:", "- bread", "- salt", "1) and", "2) more"]


def test_a_blank_line_ends_a_sentence() -> None:
    assert texts("no end\n \nhere\r\n\r\nnor here") == ["no end", "here", "nor here"]


def test_boundaries_agree_with_those_of_squad() -> None:
    rows = pq.read_table(DATA / "squad20_dev.parquet", columns=["context", "sent_start"]).to_pylist()
    gold = {row["context"]: set(row["sent_start"][1:]) for row in rows[::30]}
    found = {context: _starts(context) for context in gold}
    both = sum(len(gold[context] & found[context]) for context in gold)
    assert both / sum(map(len, gold.values())) > 0.99
    assert both / sum(map(len, found.values())) > 0.98


def _starts(context: str) -> set[int]:
    return {unit.start for unit in split(context, kind="prose")[1:]}
