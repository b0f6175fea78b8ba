"""What every page of a run has: the document around it, its head, the reasons, and what the run hangs on.

RunFacts -> head, why, identity -> document -> page. No request leaves the page: styles, script and plots stand in it,
and its content policy lets nothing else load or run, so a row of hostile text could not do so even if it got through
the escaping.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import TYPE_CHECKING

from datapipe.report.markup import Html, count, join, number, percent, tag
from datapipe.report.sections import words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.report.facts import RowCounts, RunFacts, StrategyFacts

__all__ = ["document", "head", "identity", "laid_out", "why"]


def laid_out(facts: RunFacts, parts: Mapping[str, Html | None], *, kind: str, styles: Sequence[str] = ()) -> str:
    """Return the page: head, links to the sections that there are, the sections.

    Args:
        facts: What the run knows of itself.
        parts: Sections by name, in order; one that is empty is left out.
        kind: What the page is, such as `curation report`.
        styles: Style sheets of this room besides the common one.
    """
    shown = {name: part for name, part in parts.items() if part}
    links = [tag("a", name, href=f"#{name.lower()}") for name in shown]
    sections = [
        tag("section", part, id=name.lower(), aria_labelledby=f"{name.lower()}-title") for name, part in shown.items()
    ]
    footer = tag(
        "footer", "Made by secateur from the run's own facts: the same run gives the same page, byte for byte."
    )
    body = tag("main", head(facts, kind=kind), tag("nav", *links, aria_label="Sections"), *sections, footer)
    return "<!doctype html>\n" + document(f"{facts.identity.source} \u2013 {kind}", body, styles=styles)


def document(title: str, body: Html, *, styles: Sequence[str] = ()) -> Html:
    """Return the whole document, with the styles and the script in it."""
    style = Html("".join(_asset(name) for name in ("page.css", *styles)))
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'"
    )
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", style),
    )
    return tag("html", top, tag("body", body, tag("script", script)), lang="en")


def _asset(name: str) -> Html:
    return Html(resources.files("datapipe.report").joinpath(name).read_text(encoding="utf-8"))


def head(facts: RunFacts, *, kind: str) -> Html:
    """Return the head of the page: rows kept of rows in, where the others went, and the figures."""
    counts = facts.counts
    headline = tag(
        "p",
        tag("b", count(counts.kept)), f" of {count(counts.rows_in)} rows kept ",
        tag("span", f"({percent(counts.kept, counts.rows_in)})", class_="share"),
        class_="headline",
    )  # fmt: skip
    title = tag("h1", facts.identity.source)
    overline = tag("p", f"{kind.capitalize()} \u00b7 {facts.strategy.name}, {facts.strategy.budget}", class_="overline")
    return tag("header", title, overline, headline, *_whole(counts), _figures(facts))


def _whole(counts: RowCounts) -> tuple[Html, Html]:
    """Draw all rows as one bar, and its key, which holds the numbers."""
    pieces = [("kept", counts.kept, "k-fill", 1.0)]
    dropped = sorted(counts.dropped.items(), key=lambda item: (-item[1], item[0]))
    rejected = sorted(counts.rejected.items(), key=lambda item: (-item[1], item[0]))
    # One colour for all that was dropped, paler for each further reason.
    pieces += [
        (f"dropped: {words(why)}", rows, "d-fill", max(0.3, 1 - 0.28 * i)) for i, (why, rows) in enumerate(dropped)
    ]
    pieces += [
        (f"rejected: {words(why)}", rows, "r-fill", max(0.3, 1 - 0.28 * i)) for i, (why, rows) in enumerate(rejected)
    ]
    pieces = [piece for piece in pieces if piece[1]]
    bar = [
        tag("i", class_=fill, style=f"flex:{rows} 0 0;--strength:{strength:.2f}") for _, rows, fill, strength in pieces
    ]
    key = [
        tag("li", tag("b", count(rows)), f" {name} ({percent(rows, counts.rows_in)})",
            class_=fill, style=f"--strength:{strength:.2f}")
        for name, rows, fill, strength in pieces
    ]  # fmt: skip
    return tag("div", *bar, class_="whole", aria_hidden="true"), tag("ul", *key, class_="key")


def _figures(facts: RunFacts) -> Html:
    counts = facts.counts
    dropped, rejected = sum(counts.dropped.values()), sum(counts.rejected.values())
    figures = [
        ("Rows in", count(counts.rows_in), f"{count(counts.accepted)} accepted"),
        ("Dropped", count(dropped), f"{percent(dropped, counts.accepted)} of the accepted rows"),
        ("Rejected", count(rejected), "unusable, with a reason each" if rejected else "every row was usable"),
    ]
    if counts.tokens is not None and counts.tokens_kept is not None:
        share = percent(counts.tokens_kept, counts.tokens)
        figures.append(("Tokens kept", count(counts.tokens_kept), f"{share} of {count(counts.tokens)}"))
    if counts.duplicates:
        figures.append(("Duplicates", count(counts.duplicates), "accepted rows that repeat another"))
    if counts.truncated:
        figures.append(("Truncated", count(counts.truncated), "texts longer than the model reads"))
    if facts.balance:
        before, after = facts.balance.score_before, facts.balance.score_after
        figures.append(("Class balance", number(after), f"was {number(before)}; 1 is classes of one size"))
    cells = [tag("div", tag("dt", name), tag("dd", value, tag("small", note))) for name, value, note in figures]
    return tag("dl", *cells, class_="figures")


def why(strategy: StrategyFacts) -> Html:
    """Return the section that says how rows were chosen, with warnings first."""
    warnings = [tag("li", sentence, class_="warning") for sentence in strategy.warnings]
    evidence = [tag("li", sentence) for sentence in strategy.why]
    lede = tag("p", "The strategy was ", tag("b", strategy.name), f" with a budget of {strategy.budget}.")
    listed = tag("ul", *warnings, *evidence, class_="why") if warnings or evidence else None
    return join(tag("h2", "Why these rows", id="why-title"), lede, listed)


def identity(facts: RunFacts) -> Html:
    """Return the section of options, models and versions."""
    own = facts.identity
    rows: list[tuple[str, Html]] = [("Run", tag("code", own.digest)), ("Seed", join(str(own.seed)))]
    if own.model is not None:
        rows.append(("Model", join(own.model)))
    if own.model_digest is not None:
        rows.append(("Model digest", tag("code", own.model_digest)))
    for key in sorted(own.config):
        value = json.dumps(own.config[key], ensure_ascii=False, sort_keys=True, default=str)
        rows.append((words(key), tag("code", value.strip('"'))))
    versions = ", ".join(f"{name} {own.versions[name]}" for name in sorted(own.versions))
    if versions:
        rows.append(("Versions", join(versions)))
    listed = [join(tag("dt", name), tag("dd", value)) for name, value in rows]
    lede = tag(
        "p", "What the result hangs on. The same source, options, model and versions give the same rows; ",
        tag("code", "datapipe verify"), " checks every file of the run against its digest.",
    )  # fmt: skip
    return join(tag("h2", "The run", id="run-title"), lede, tag("dl", *listed, class_="facts"))
