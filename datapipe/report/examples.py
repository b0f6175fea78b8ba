"""Sections of rows to read: kept and dropped examples, and rows taken out for another one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from datapipe.report.markup import Html, breakable, count, cut, join, number, tag
from datapipe.report.sections import NAME_CHARACTERS, and_more, by_loss, kept_of, words

if TYPE_CHECKING:
    from datapipe.report.facts import Example, RunFacts, StratumExamples, StratumFacts

__all__ = ["examples", "matches"]

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")

EXAMPLES_FIRST, EXAMPLES_MOST = 6, 40
"""Strata shown openly, and those and the ones in the fold under them together."""
MATCHES_MOST = 24


def matches(facts: RunFacts) -> Html:
    """Show rows that were taken out for another row, with the evidence."""
    if not facts.matches:
        return Html("")
    ordered = sorted(facts.matches, key=lambda match: (match.similarity, match.rule, match.row_id))
    rows = [
        tag("tr", tag("td", words(match.rule)), tag("td", number(match.similarity), class_="n"),
            _told(match.text, match.image), _told(match.other, match.other_image))
        for match in ordered[:MATCHES_MOST]
    ]  # fmt: skip
    head = [
        tag("th", name, scope="col", class_="n" if name == "Similarity" else None)
        for name in ("Rule", "Similarity", "Row taken out", "Because of")
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    says = "Rows taken out because another row says the same, or an evaluation set holds them; weakest evidence first."
    return join(
        tag("h2", "Matches", id="matches-title"), tag("p", says), tag("div", table, class_="scroll"),
        and_more(max(facts.matched, len(ordered)) - len(rows), "rows taken out"),
    )  # fmt: skip


def examples(facts: RunFacts) -> Html:
    """Show kept and dropped rows side by side, the strata that lost most first."""
    place_of = {stratum.name: index for index, stratum in enumerate(by_loss(facts))}
    found = [group for group in facts.examples if group.kept or group.dropped]
    ordered = sorted(found, key=lambda group: (place_of.get(group.stratum, len(place_of)), group.stratum))
    if not ordered:
        return Html("")
    known = {stratum.name: stratum for stratum in facts.strata}
    groups = [_group(group, known.get(group.stratum)) for group in ordered[:EXAMPLES_MOST]]
    search = tag(
        "div", tag("label", "Find in examples", tag("input", type="search", id="search")),
        tag("span", id="found", class_="soft", role="status"), class_="controls", data_script=True, hidden=True,
    )  # fmt: skip
    says = "A few rows of each stratum, drawn by hash order. Read across: would you have made the same choice?"
    parts = [tag("h2", "Examples", id="examples-title"), tag("p", says), search, *groups[:EXAMPLES_FIRST]]
    if groups[EXAMPLES_FIRST:]:
        more = f"Examples of {count(len(groups) - EXAMPLES_FIRST)} more strata"
        parts.append(tag("details", tag("summary", more), *groups[EXAMPLES_FIRST:]))
    return join(*parts, and_more(len(ordered) - EXAMPLES_MOST, "strata"))


def _group(group: StratumExamples, stratum: StratumFacts | None) -> Html:
    known = tag("small", kept_of(stratum)) if stratum else None
    sides = [
        tag("div", tag("h4", title), tag("ul", *(_row(row) for row in rows), class_="rows"), class_=class_)
        for title, rows, class_ in (("Kept", group.kept, "kept"), ("Dropped", group.dropped, "dropped"))
        if rows
    ]
    heading = tag("h3", breakable(cut(group.stratum, limit=NAME_CHARACTERS)), known)
    return tag("div", heading, tag("div", *sides, class_="pair"), class_="stratum")


def _told(text: str, image: str | None) -> Html:
    """A cell with what a row says and shows."""
    return tag("td", picture(image, text or "image"), cut(text) if text or image is None else None, dir="auto")


def _row(row: Example) -> Html:
    score = tag("span", f"score {number(row.score)}") if row.score is not None else None
    shown = picture(row.image, f"row {row.row_id[:12]}")
    text = tag("p", cut(row.text), dir="auto") if row.text or shown is None else None
    small = tag("small", score, tag("code", row.row_id[:12], title=row.row_id))
    return tag("li", shown, text, small, class_="pictured" if shown is not None else None)


def picture(image: str | None, alt: str) -> Html | None:
    """Show a JPEG in base64; None where there is none, or it is something else."""
    if image is None or not _BASE64.fullmatch(image):
        return None
    return tag("img", src=f"data:image/jpeg;base64,{image}", alt=cut(alt), loading="lazy", class_="thumb")
