"""Sections of plots and counts: each takes the facts and returns markup, empty where there is nothing to show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.report.markup import Html, breakable, count, cut, join, number, percent, short, tag
from datapipe.report.plots import columns_plot, histogram_plot, mini_histogram
from datapipe.report.scatter import map_data, map_ground, map_plot, map_small, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.report.facts import RunFacts, ScoreHistogram, StratumFacts

__all__ = ["and_more", "balance", "by_loss", "kept_of", "row_map", "scores", "strata", "words"]

STRATA_FIRST, STRATA_MOST = 20, 200
"""Strata in the open table, and in the table and the fold under it together."""
COLUMNS_MOST = 240
SAME_BINS = 1.5
"""Medians of fewer bins apart are about the same."""
MULTIPLES = 12
CLASSES_MOST, FEW_CLASSES = 150, 6
NAME_CHARACTERS = 60
NO_STRATUM = "no stratum"

_LEGEND = tag(
    "ul",
    tag("li", "kept", class_="k-fill"),
    tag("li", "dropped", class_="d-fill"),
    class_="legend",
    aria_label="Colours",
)


def words(slug: str) -> str:
    """Return a slug as words: `trim_hard` is `trim hard`."""
    return slug.replace("_", " ")


def by_loss(facts: RunFacts) -> list[StratumFacts]:
    """Return the strata that lost most rows first, then the larger, then by name."""
    return sorted(facts.strata, key=lambda stratum: (-stratum.dropped, -stratum.total, stratum.name))


def scores(facts: RunFacts) -> Html:
    """Show where on the scale of scores the kept rows lie."""
    found = facts.scores
    if found is None or not sum(found.kept) + sum(found.dropped):
        return Html("")
    kept, dropped = _median_bin(found.edges, found.kept), _median_bin(found.edges, found.dropped)
    meaning = "it says nothing about a row" if found.metric == "random" else f"a higher one means {found.higher}"
    says = f"The score is {words(found.metric)}; {meaning}. "
    if kept is None or dropped is None:
        says += "All rows were kept." if dropped is None else "No row was kept."
    elif abs(kept - dropped) < SAME_BINS * (found.edges[1] - found.edges[0]):
        says += f"Kept and dropped rows have about the same median, {number(kept)}: the choice is not by score alone."
    else:
        end = "upper" if kept > dropped else "lower"
        says += (
            f"The median kept row scores {number(kept)}, the median dropped row {number(dropped)}: the choice leans to "
            f"the {end} end."
        )
    if found.cuts:
        says += " The line marks the cut." if len(found.cuts) == 1 else " The lines mark the cuts."
    width = short(found.edges[1] - found.edges[0])
    note = f"Bins of {width}. Below, the share kept in each bin; the dashed line is the share over all."
    if found.missing:
        note += f" {count(found.missing)} rows have no score."
    plot = histogram_plot(found, label=f"Histogram of {words(found.metric)} for kept and dropped rows. {says}")
    return join(
        tag("h2", "Scores", id="scores-title"), tag("p", says), tag("figure", _LEGEND, plot),
        tag("p", note, class_="note"), _bins(found), _multiples(facts, found),
    )  # fmt: skip


def strata(facts: RunFacts) -> Html:
    """Show how much each stratum lost."""
    ordered = by_loss(facts)
    if not ordered:
        return Html("")
    title = tag("h2", "Strata", id="strata-title")
    if len(ordered) == 1:
        only = ordered[0]
        says = f"The choice was made in one stratum, {only.name}: {kept_of(only)}."
        return join(title, tag("p", says))
    shares = [stratum.kept / stratum.total for stratum in ordered if stratum.total]
    says = f"{count(len(ordered))} strata, those that lost most rows first. "
    if shares:
        says += f"The share kept runs from {percent(min(shares), 1)} to {percent(max(shares), 1)}."
    figure = None
    if len(ordered) > 2:  # noqa: PLR2004
        largest = sorted(ordered, key=lambda stratum: (-stratum.total, stratum.name))[:COLUMNS_MOST]
        plot = columns_plot(largest, label=f"Rows a stratum, kept and dropped. {says}")
        left_out = len(ordered) - len(largest)
        note = f"{count(left_out)} smaller strata are not drawn." if left_out else None
        figure = tag("figure", _LEGEND, plot, tag("figcaption", note, class_="note") if note else None)
    first, rest = ordered[:STRATA_FIRST], ordered[STRATA_FIRST:STRATA_MOST]
    top = max(stratum.total for stratum in ordered)
    parts = [title, tag("p", says), figure, _table(first, top, caption="Rows kept and dropped in each stratum")]
    if rest:
        more = _table(rest, top, caption="The other strata")
        parts.append(tag("details", tag("summary", f"{count(len(rest))} more strata"), more))
    return join(*parts, and_more(len(ordered) - STRATA_MOST, "strata, each with fewer rows dropped"))


def balance(facts: RunFacts) -> Html:
    """Show each class's share of the rows before and after."""
    found = facts.balance
    title = tag("h2", "Class balance", id="balance-title")
    if found is None:
        return join(title, tag("p", "The run had no labels, so there is no class balance to show.", class_="soft"))
    before, after = sum(found.before.values()), sum(found.after.values())
    ordered = sorted(found.before, key=lambda name: (-found.before[name], name))
    lost = [name for name in ordered if found.before[name] and not found.after[name]]
    says = (
        f"{count(len(ordered))} classes of {found.column}. The bar is a class's share of the kept rows, the mark its "
        f"share of the accepted rows: a bar that ends at its mark kept its place."
    )
    summary = tag(
        "div",
        tag("div", tag("b", number(found.score_before)), "balance before"),
        tag("div", tag("b", number(found.score_after)), "balance after"),
        tag("div", "mean size ratio over all pairs of classes; 1 is all of one size"),
        class_="balance",
    )
    top = max((max(_ratio(found.before[n], before), _ratio(found.after[n], after)) for n in ordered), default=1) or 1
    items = []
    for name in ordered[:CLASSES_MOST]:
        was, now = found.before[name], found.after[name]
        size = tag("span", f"{count(was)} \u2192 {count(now)}", class_="size")
        span = tag("i", class_="span k-fill", style=f"width:{100 * _ratio(now, after) / top:.2f}%")
        mark = tag("i", class_="was", style=f"left:{100 * _ratio(was, before) / top:.2f}%")
        label = tag("span", cut(name, limit=NAME_CHARACTERS), class_="name", title=name)
        items.append(tag("li", label, size, tag("span", span, mark, class_="track", aria_hidden="true")))
    few = " few" if len(ordered) <= FEW_CLASSES else ""
    warning = f"{count(len(lost))} classes lost all their rows: {cut(', '.join(lost))}." if lost else None
    return join(
        title, tag("p", says), tag("p", tag("b", warning)) if warning else None, summary,
        tag("ol", *items, class_=f"classes{few}"), and_more(len(ordered) - CLASSES_MOST, "smaller classes"),
    )  # fmt: skip


def row_map(facts: RunFacts) -> Html:
    """Show a sample of the rows in two dimensions."""
    if facts.map is None or not facts.map.points:
        return Html("")
    points = facts.map.points
    spots, height = place(points)
    names = sorted({point.stratum for point in points})
    kept = sum(point.kept for point in points)
    says = (
        "Rows that mean alike lie close together. Good pruning thins each patch and leaves none empty; a patch of one "
        "colour is a kind of row that was kept whole or lost."
    )
    label = f"{facts.map.method} map of {count(len(points))} rows, {count(kept)} kept"
    plot = map_plot(points, spots, names, height=height, label=label)
    options = [tag("option", "all", value="")]
    options += [
        tag("option", cut(name, limit=NAME_CHARACTERS) or NO_STRATUM, value=str(i)) for i, name in enumerate(names)
    ]
    choice = tag("label", "Show", tag("select", *options, id="map-stratum"), data_script=True, hidden=True)
    control = tag("div", _LEGEND, choice if len(names) > 1 else None, class_="controls")
    tip = tag("div", id="map-tip", class_="tip", hidden=True)
    drawn = f"{facts.map.method} of {count(len(points))} rows ({facts.map.note}), {count(kept)} of them kept. "
    note = drawn + "The axes have no unit: only nearness counts."
    box = tag("div", plot, tip, class_="map-box")
    figure = tag("figure", box, tag("figcaption", note, class_="note"))
    small = None
    shown = [stratum for stratum in by_loss(facts) if stratum.name in set(names)][:MULTIPLES]
    if len(names) > 1 and shown:
        cells = [_cell(stratum, map_small(points, spots, stratum.name, height=height)) for stratum in shown]
        heading = tag("h3", "The strata that lost most, each on the same map")
        small = join(map_ground(spots), heading, tag("div", *cells, class_="multiples"))
    data = map_data(points, spots, names, unnamed=NO_STRATUM)
    return join(tag("h2", "Map", id="map-title"), tag("p", says), control, figure, small, data)


def _table(rows: Sequence[StratumFacts], top: int, *, caption: str) -> Html:
    scored = any(stratum.mean_score is not None for stratum in rows)
    head = [
        tag("th", "Stratum", scope="col"),
        tag("th", "Kept and dropped", scope="col", class_="bar"),
    ]
    head += [tag("th", name, scope="col", class_="n") for name in ("Rows", "Kept", "Share")]
    if scored:
        head.append(tag("th", "Mean score", scope="col", class_="n"))
    lines = []
    for stratum in rows:
        kept = (
            tag("i", class_="k-fill", style=f"width:{100 * _ratio(stratum.kept, top):.2f}%") if stratum.kept else None
        )
        lost = (
            tag("i", class_="d-fill", style=f"width:{100 * _ratio(stratum.dropped, top):.2f}%")
            if stratum.dropped
            else None
        )
        cells = [
            tag("th", breakable(cut(stratum.name, limit=NAME_CHARACTERS)), scope="row"),
            tag("td", tag("div", kept, lost), class_="bar"),
            tag("td", count(stratum.total), class_="n"),
            tag("td", count(stratum.kept), class_="n"),
            tag("td", percent(stratum.kept, stratum.total), class_="n"),
        ]
        if scored:
            cells.append(tag("td", number(stratum.mean_score), class_="n"))
        lines.append(tag("tr", *cells))
    table = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *lines))
    return tag("div", table, class_="scroll")


def _bins(found: ScoreHistogram) -> Html:
    head = [tag("th", name, scope="col", class_="n") for name in ("From", "To", "Kept", "Dropped")]
    lines = [
        tag("tr", *(tag("td", value, class_="n") for value in (number(low), number(high), count(kept), count(dropped))))
        for low, high, kept, dropped in zip(found.edges, found.edges[1:], found.kept, found.dropped, strict=False)
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *lines))
    return tag("details", tag("summary", "The plot as a table"), tag("div", table, class_="scroll"))


def _multiples(facts: RunFacts, found: ScoreHistogram) -> Html | None:
    shown = [stratum for stratum in by_loss(facts) if stratum.scores is not None][:MULTIPLES]
    if len(facts.strata) < 2 or not shown:  # noqa: PLR2004
        return None
    cells = [_cell(stratum, mini_histogram(found, *stratum.scores)) for stratum in shown if stratum.scores]
    heading = tag("h3", "The same in the strata that lost most")
    span = f"{short(found.edges[0])} to {short(found.edges[-1])}"
    note = tag("p", f"All panels span {span}; each has its own height.", class_="note")
    return join(heading, note, tag("div", *cells, class_="multiples"))


def _cell(stratum: StratumFacts, plot: Html) -> Html:
    name = cut(stratum.name, limit=NAME_CHARACTERS)
    return tag("figure", tag("figcaption", tag("span", name, title=stratum.name), tag("small", kept_of(stratum))), plot)


def kept_of(stratum: StratumFacts) -> str:
    """Return `68 of 227 kept (30.0 %)`."""
    return f"{count(stratum.kept)} of {count(stratum.total)} kept ({percent(stratum.kept, stratum.total)})"


def and_more(rest: int, what: str) -> Html | None:
    """Return `and 12 more strata` where something is left out."""
    return tag("p", f"and {count(rest)} more {what}", class_="note") if rest > 0 else None


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _median_bin(edges: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the middle of the bin that holds the median row."""
    half, seen = sum(counts) / 2, 0
    for index, rows in enumerate(counts):
        seen += rows
        if seen and seen >= half:
            return (edges[index] + edges[index + 1]) / 2
    return None
