"""Pruned texts to look at: coloured for a terminal, as one self-contained page, and as values for JSON.

    Shown (name, text, context) -> stretches (a unit, or the white space between two) -> rich Text | HTML

Terminal and page show the whole input: what is kept stands out, what is cut stays readable. Characters that would
steer a terminal or turn the reading direction become U+FFFD.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.text import Text

    from provence.results import PrunedContext, ScoredSentence

__all__ = ["Shown", "details", "page", "plain", "summary", "terminal", "values"]

_UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_KEPT, _CUT = "bold green", "dim"
_REASONS = {
    "threshold": "above the threshold",
    "recall": "above the threshold of the recall",
    "budget": "fits the budget",
    "min_keep": "among the best of its text",
    "first": "first of its text",
    "pinned": "another kept part needs it",
    "repair": "the next kept part refers to it",
    "whole": "nothing of its text was kept, so all is",
}


@dataclass(frozen=True)
class Shown:
    """A text and what was made of it.

    Attributes:
        name: What the text is called.
        text: The input.
        context: The result for it.
    """

    name: str
    text: str
    context: PrunedContext


def values(context: PrunedContext) -> dict[str, Any]:
    """A result as JSON has it, in the names of `/v1/prune`; offsets count code points."""
    return {
        "index": context.index,
        "relevance_score": float(context.relevance_score),
        "pruned_text": context.text,
        **details(context),
    }


def details(context: PrunedContext) -> dict[str, Any]:
    """The same without place, text and score: what was kept of a text, and why."""
    return {
        "kept_spans": [list(span) for span in context.kept_spans],
        "sentences": [
            {
                "start": sentence.start,
                "end": sentence.end,
                "keep_probability": float(sentence.keep_probability),
                "kept": sentence.kept,
                "reason": sentence.reason,
                "kind": sentence.kind,
            }
            for sentence in context.sentences
        ],
        "compression": float(context.compression),
        "tokens": context.tokens,
        "truncated": context.truncated,
    }


def plain(text: str) -> str:
    """Any text without characters that cannot be shown: control, surrogate, bidirectional override."""
    return _UNSHOWN.sub("\ufffd", text.replace("\r\n", "\n"))


def summary(shown: Shown) -> str:
    """How much of a text is left, and its score, in one line."""
    sentences = shown.context.sentences
    kept = sum(sentence.kept for sentence in sentences)
    return (
        f"{kept} of {len(sentences)} parts kept, {100 * shown.context.compression:.0f} % of the characters cut, "
        f"relevance {shown.context.relevance_score:.3f}"
    )


def terminal(shown: Shown) -> Text:
    """The input with kept parts in bold green and cut parts dimmed."""
    from rich.text import Text

    text = Text()
    for part, sentence in _stretches(shown):
        style = "" if sentence is None else _KEPT if sentence.kept else _CUT
        text.append(plain(part), style=style)
    return text


def page(question: str, several: Sequence[Shown], *, model: str) -> str:
    """A page of HTML that needs nothing else: each part shaded by its keep probability, its score where one points.

    Args:
        question: What was asked.
        several: The texts, in the order in which they are to stand.
        model: Name of the model.
    """
    body = "".join(_article(shown) for shown in several) or "<p>No text is left.</p>"
    return _PAGE.format(
        style=_STYLE,
        question=_escape(question),
        texts="one text" if len(several) == 1 else f"{len(several):,} texts",
        model=_escape(model),
        body=body,
    )


def _article(shown: Shown) -> str:
    parts = "".join(_part(part, sentence) for part, sentence in _stretches(shown))
    head = f'<h2>{_escape(shown.name)}</h2><p class="sum">{_escape(summary(shown))}</p>'
    return f'<article>{head}<div class="text" dir="auto">{parts}</div></article>\n'


def _part(part: str, sentence: ScoredSentence | None) -> str:
    if sentence is None:
        return _escape(part)
    name = "mark" if sentence.kept else "s"
    fate = f"kept: {_REASONS.get(sentence.reason, sentence.reason)}" if sentence.kept else "cut"
    tip = _escape(f"{sentence.keep_probability:.3f} {fate} ({sentence.kind.replace('_', ' ')})")
    return f'<{name} style="--p:{sentence.keep_probability:.3f}" title="{tip}">{_escape(part)}</{name}>'


def _stretches(shown: Shown) -> Iterator[tuple[str, ScoredSentence | None]]:
    """The input in pieces: each unit, and what stands between them."""
    reached = 0
    for sentence in shown.context.sentences:
        if sentence.start > reached:
            yield shown.text[reached : sentence.start], None
        yield shown.text[sentence.start : sentence.end], sentence
        reached = sentence.end
    if reached < len(shown.text):
        yield shown.text[reached:], None


def _escape(text: str) -> str:
    return html.escape(plain(text))


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #6b7480; --paper: #fff; --line: #dde2e7; --keep: 34 139 84; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #8b949e; --paper: #14181c; --line: #2b3138; --keep: 63 185 110; }
}
body { margin: 2rem auto; max-width: 52rem; padding: 0 1rem; font: 16px/1.6 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.sum { margin: 0 0 .6rem; color: var(--soft); font-size: .85rem; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
mark { color: inherit; border-radius: .2em; border-bottom: 2px solid rgb(var(--keep));
  background: rgb(var(--keep) / calc(.08 + .35 * var(--p))); }
s { color: var(--soft); text-decoration-color: var(--line); background: rgb(var(--keep) / calc(.25 * var(--p))); }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Pruned context</title>
<style>{style}</style>
</head>
<body>
<header><h1 dir="auto">{question}</h1>
<p class="sum">Of {texts}, pruned by {model}: marked parts are kept, struck ones are cut; the shade is the probability
that a part helps to answer, and pointing at it shows the number.</p></header>
<main>
{body}</main>
</body>
</html>
"""
