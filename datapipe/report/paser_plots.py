"""The curve of damage held by a budget, as inline SVG, drawn wide and narrow as all plots are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.report.markup import Html, join, tag
from datapipe.report.plots import Frame, heading, rule, twice, written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.report.paser_facts import CurveFacts

__all__ = ["curve_plot"]

_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def curve_plot(found: CurveFacts, *, label: str) -> Html:
    """Draw the share of the damage that a budget holds: as chosen, at random, and at most."""
    wide, narrow = Frame(960, 380, floor=326), Frame(380, 320, floor=266)
    return twice(lambda frame: _curve(found, frame), wide, narrow, label=label)


def _curve(found: CurveFacts, frame: Frame) -> Html:
    def across(share: float) -> float:
        return frame.left + share * (frame.right - frame.left)

    def up(share: float) -> float:
        return frame.floor - share * (frame.floor - frame.top)

    def path(values: Sequence[float], class_: str) -> Html:
        spots = [f"{across(x):.1f} {up(y):.1f}" for x, y in zip(found.budgets, values, strict=True)]
        return tag("path", d="M" + "L".join(spots), class_=class_)

    parts = [heading("share of all damage held", 0, frame.top - 13)]
    for share in _SHARES:
        parts += [rule("grid" if share else "axis", frame.left, up(share), frame.right, up(share))]
        parts += [written(f"{100 * share:.0f} %", frame.left - 8, up(share) + 4, anchor="end")]
        parts += [written(f"{100 * share:.0f} %", across(share), frame.floor + 18, anchor="middle")]
    for values, class_ in ((found.random, "random"), (found.most, "most"), (found.chosen, "chosen")):
        parts.append(path(values, class_))
    middle = len(found.budgets) // 2
    for values, name, drop in ((found.most, "most damaged", -10), (found.random, "random", 20)):
        parts.append(written(name, across(found.budgets[middle]), up(values[middle]) + drop, anchor="middle"))
    here = min(range(len(found.budgets)), key=lambda each: abs(found.budgets[each] - found.at))
    x, y = across(found.budgets[here]), up(found.chosen[here])
    parts += [tag("circle", cx=x, cy=y, r=6, class_="dot")]
    parts += [written("this run", x + 12, y + 18, anchor="start", class_="said")]
    parts += [heading("budget, share of the pool", frame.right, frame.height - 8, anchor="end")]
    return tag("g", join(*parts), class_="curve")
