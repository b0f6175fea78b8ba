"""What a pruned text looks like in a terminal, on a page and in JSON."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from provence.render import Shown, details, page, plain, summary, terminal, values
from provence.results import PrunedContext, ScoredSentence

TEXT = "Roses need sun.  The café opened in 1921. <b>Prune</b> in March."


def shown(text: str, *bounds: tuple[int, int, float, str], name: str = "notes.txt") -> Shown:
    """A text with such units: start, end, probability, and the reason why it is kept, if it is."""
    sentences = tuple(ScoredSentence(start, end, share, bool(why), why) for start, end, share, why in bounds)
    kept = [sentence for sentence in sentences if sentence.kept]
    spans = tuple((sentence.start, sentence.end) for sentence in kept)
    left = "".join(text[start:end] for start, end in spans)
    cut = 1 - len(left) / len(text) if text else 0.0
    return Shown(name, text, PrunedContext(3, left, spans, sentences, 1.25, cut, 17))


EXAMPLE = shown(TEXT, (0, 15, 0.25, ""), (17, 41, 0.03, ""), (42, 64, 0.875, "threshold"))


def test_the_terminal_shows_the_whole_text_with_what_is_kept_standing_out() -> None:
    text = terminal(EXAMPLE)
    assert text.plain == TEXT
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 15, "dim"),
        (17, 41, "dim"),
        (42, 64, "bold green"),
    ]
    screen = Console(file=StringIO(), force_terminal=True, color_system="standard", width=200)
    screen.print(text)
    assert "\x1b[1;32m<b>Prune</b> in March.\x1b[0m" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_the_line_of_a_text_counts_its_parts() -> None:
    assert summary(EXAMPLE) == "1 of 3 parts kept, 66 % of the characters cut, relevance 1.250"


def test_a_text_cannot_steer_the_terminal_or_turn_its_direction() -> None:
    text = "a\x1b[2Jb\u202ec\r\nd\x9be"
    assert terminal(shown(text, (0, len(text), 0.5, "first"))).plain == "a\ufffd[2Jb\ufffdc\nd\ufffde"
    assert plain("tab\tand\nline") == "tab\tand\nline"


def test_the_page_marks_kept_parts_strikes_cut_ones_and_says_score_and_reason() -> None:
    written = page("When to prune <roses>?", [EXAMPLE], model="default")
    assert "When to prune &lt;roses&gt;?" in written
    assert '<s style="--p:0.250" title="0.250 cut (sentence)">Roses need sun.</s>  <s ' in written
    assert (
        '<mark style="--p:0.875" title="0.875 kept: above the threshold (sentence)">'
        "&lt;b&gt;Prune&lt;/b&gt; in March.</mark>"
    ) in written
    assert "Of one text, pruned by default" in written


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    written = page("q", [EXAMPLE, EXAMPLE], model="m")
    assert "Of 2 texts" in written
    assert "default-src 'none'" in written
    assert not re.search(r"<script|<link|<img|url\(|https?:|@import", written)


class Reader(HTMLParser):
    """Reads a page as a browser does: the text of each article, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        if ("class", "text") in attrs:
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "div" in self.open:
            self.texts[-1] += data


@given(text=st.text(max_size=60), name=st.text(max_size=9), question=st.text(max_size=9), cut=st.integers(0, 60))
def test_any_text_is_on_the_page_as_it_is(text: str, name: str, question: str, cut: int) -> None:
    half = min(cut, len(text))
    bounds = [(start, end, 0.5, why) for start, end, why in ((0, half, ""), (half, len(text), "first")) if start < end]
    reader = Reader()
    reader.feed(page(question, [shown(text, *bounds, name=name)], model="{model}"))
    reader.close()
    assert not reader.open
    assert reader.texts == [plain(text)]


def test_a_page_of_nothing_says_so() -> None:
    assert "No text is left." in page("q", [], model="m")


def test_values_are_what_json_has() -> None:
    told = values(EXAMPLE.context)
    assert json.loads(json.dumps(told)) == told
    assert told["index"] == 3
    assert told["pruned_text"] == "<b>Prune</b> in March."
    assert told["kept_spans"] == [[42, 64]]
    assert told["sentences"][2] == {
        "start": 42,
        "end": 64,
        "keep_probability": 0.875,
        "kept": True,
        "reason": "threshold",
        "kind": "sentence",
    }
    assert details(EXAMPLE.context).keys() == {"kept_spans", "sentences", "compression", "tokens", "truncated"}
