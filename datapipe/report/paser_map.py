"""The map of a pool: the same rows by what was chosen, by damage and by skill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.report.markup import Html, count, cut, join, number, tag
from datapipe.report.scatter import WIDTH, dots, map_data, map_plot, place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.report.facts import MapPoint
    from datapipe.report.paser_facts import RecoveryFacts
    from datapipe.report.scatter import Spots

__all__ = ["skill_map"]

NAME_CHARACTERS = 60
CLASSES = 5
_GOLDEN_ANGLE = 137.508
_LEGEND = tag(
    "ul", tag("li", "taken", class_="k-fill"), tag("li", "left", class_="d-fill"), class_="legend", aria_label="Colours"
)


def skill_map(facts: RecoveryFacts) -> Html:
    """Show a sample of the rows in two dimensions, three times; empty where there is no map."""
    if facts.run.map is None or not facts.run.map.points:
        return Html("")
    found = facts.run.map
    points = found.points
    spots, height = place(points)
    names = [skill.name for skill in facts.skills]
    label = f"{found.method} map of {count(len(points))} instructions, {count(sum(p.kept for p in points))} taken"
    options = [tag("option", "all", value="")]
    options += [tag("option", cut(name, limit=NAME_CHARACTERS), value=str(i)) for i, name in enumerate(names)]
    choice = tag("label", "Show", tag("select", *options, id="map-stratum"), data_script=True, hidden=True)
    control = tag("div", _LEGEND, choice if len(names) > 1 else None, class_="controls")
    tip = tag("div", id="map-tip", class_="tip", hidden=True)
    box = tag("div", map_plot(points, spots, names, height=height, label=label), tip, class_="map-box")
    says = (
        "Instructions that mean alike lie close together. More is taken where the damage is, but a skill that lost "
        "nothing should not be left without a row."
    )
    note = f"{found.method} of {count(len(points))} rows ({found.note}). The axes have no unit: only nearness counts."
    small = tag("div", _by_damage(points, spots, height), _by_skill(points, spots, names, height), class_="maps")
    return join(
        tag("h2", "Map", id="map-title"), tag("p", says), control,
        tag("figure", box, tag("figcaption", note, class_="note")), small,
        map_data(points, spots, names, unnamed="no skill"),
    )  # fmt: skip


def _by_damage(points: Sequence[MapPoint], spots: Spots, height: int) -> Html:
    """Five equal classes from the least to the most damaged; rows that were not measured are quiet."""
    values = np.array([np.nan if point.score is None else point.score for point in points])
    known = np.isfinite(values)
    edges = np.quantile(values[known], np.linspace(0, 1, CLASSES + 1)) if known.any() else np.zeros(CLASSES + 1)
    classes = np.where(known, np.clip(np.searchsorted(edges[1:-1], values, side="right"), 0, CLASSES - 1) + 1, 0)
    paths = [
        tag("path", d=dots([spot for spot, one in zip(spots, classes, strict=True) if one == own]), class_=f"h{own}")
        for own in range(CLASSES + 1)
        if (classes == own).any()
    ]
    says = "By damage, in fifths of the rows: "
    says += " / ".join(number(float(edge)) for edge in edges[1:-1]) if known.any() else "none was measured"
    drawing = tag("svg", tag("g", *paths, class_="dots heat"), viewBox=f"0 0 {WIDTH} {height}", aria_hidden="true")
    return tag("figure", tag("figcaption", says), drawing)


def _by_skill(points: Sequence[MapPoint], spots: Spots, names: Sequence[str], height: int) -> Html:
    paths, labels = [], []
    for number_, name in enumerate(names):
        own = [spot for point, spot in zip(points, spots, strict=True) if point.stratum == name]
        if not own:
            continue
        hue = number_ * _GOLDEN_ANGLE % 360
        paths.append(tag("path", d=dots(own), style=f"stroke:hsl({hue:.0f} 48% 52%)"))
        x, y = (sorted(values)[len(own) // 2] for values in zip(*own, strict=True))
        labels.append(tag("text", str(number_), tag("title", name), x=x, y=y + 12, text_anchor="middle"))
    drawing = tag("svg", tag("g", *paths, class_="dots"), *labels, viewBox=f"0 0 {WIDTH} {height}", aria_hidden="true")
    return tag("figure", tag("figcaption", "By skill; the numbers are those of the table"), drawing)
