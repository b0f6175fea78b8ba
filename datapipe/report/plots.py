"""Plots as inline SVG.

Each is drawn twice, wide and narrow, so that its text never shrinks with the page; the style sheet shows one of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapipe.report.markup import Html, count, join, number, percent, short, tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapipe.report.facts import ScoreHistogram, StratumFacts

__all__ = ["Frame", "columns_plot", "heading", "histogram_plot", "mini_histogram", "rule", "twice", "written"]


@dataclass(frozen=True)
class Frame:
    """The plot area inside an SVG, in pixels; `floor` is where bars stand."""

    width: int
    height: int
    floor: int
    left: int = 52
    top: int = 24

    @property
    def right(self) -> int:
        """Where the plot area ends."""
        return self.width - 10


def histogram_plot(scores: ScoreHistogram, *, label: str) -> Html:
    """Draw kept and dropped rows a bin, and under it the share kept a bin on the same axis."""
    wide, narrow = Frame(960, 400, floor=262), Frame(380, 340, floor=202)
    return twice(lambda frame: _histogram(scores, frame), wide, narrow, label=label)


def columns_plot(strata: Sequence[StratumFacts], *, label: str) -> Html:
    """Draw one column a stratum in the order given, its kept rows at the foot."""
    wide, narrow = Frame(960, 240, floor=208), Frame(380, 200, floor=168)
    return twice(lambda frame: _columns(strata, frame), wide, narrow, label=label)


def mini_histogram(scores: ScoreHistogram, kept: Sequence[int], dropped: Sequence[int]) -> Html:
    """Draw one stratum on the bins of `scores`, on its own scale of rows, without axes."""
    width, height = 200.0, 56.0
    top = max((k + d for k, d in zip(kept, dropped, strict=True)), default=0) or 1
    step = width / len(kept)
    bars = [
        _stack(place * step, step, k * height / top, d * height / top, floor=height)
        for place, (k, d) in enumerate(zip(kept, dropped, strict=True))
        if k + d
    ]
    low, high = scores.edges[0], scores.edges[-1]
    places = [width * (cut - low) / (high - low) for cut in scores.cuts if low <= cut <= high]
    lines = [rule("cut", x, 0, x, height) for x in places]
    base = rule("axis", 0, height, width, height)
    box = f"0 -1 {width:g} {height + 2:g}"
    return tag("svg", *bars, *lines, base, viewBox=box, class_="mini", aria_hidden="true", preserveAspectRatio="none")


def twice(draw: Callable[[Frame], Html], wide: Frame, narrow: Frame, *, label: str) -> Html:
    """Draw wide and narrow; the style sheet shows one of them."""
    drawn = [
        tag(
            "svg", draw(frame), viewBox=f"0 0 {frame.width} {frame.height}", role="img", aria_label=label, class_=class_
        )
        for frame, class_ in ((wide, "plot wide"), (narrow, "plot narrow"))
    ]
    return join(*drawn)


def _histogram(scores: ScoreHistogram, frame: Frame) -> Html:
    low, high = scores.edges[0], scores.edges[-1]
    strip = Frame(frame.width, frame.height, floor=frame.height - 46, top=frame.floor + 36)
    pairs = list(zip(scores.kept, scores.dropped, strict=True))
    ticks = _ticks(0, max((k + d for k, d in pairs), default=0) or 1, 4, whole=True)

    def across(value: float) -> float:
        return frame.left + (value - low) / (high - low) * (frame.right - frame.left)

    parts = [_row_axis(frame, ticks), _share_axis(strip), heading("rows", 0, frame.top - 13)]
    parts.append(heading("share kept", 0, strip.top - 13))
    for place, (kept, dropped) in enumerate(pairs):
        if kept + dropped:
            says = f"{short(scores.edges[place])} to {short(scores.edges[place + 1])}: {_of(kept, kept + dropped)}"
            x, width = across(scores.edges[place]), across(scores.edges[place + 1]) - across(scores.edges[place])
            share = (strip.floor - strip.top) * kept / (kept + dropped)
            bars = _bar(frame, x, width, kept, dropped, ticks[-1])
            parts.append(tag("g", tag("title", says), bars, _stack(x, width, share, 0, floor=strip.floor)))
    overall = sum(scores.kept) / (sum(k + d for k, d in pairs) or 1)
    level = strip.floor - overall * (strip.floor - strip.top)
    parts.append(rule("mean", strip.left, level, strip.right, level))
    parts.extend(_cut(across(cut), cut, frame, strip) for cut in scores.cuts if low <= cut <= high)
    for value in _ticks(low, high, 8 if frame.width > 600 else 4):  # noqa: PLR2004
        if low <= value <= high:
            parts += [written(_tick(value, high - low), across(value), strip.floor + 18, anchor="middle")]
    caption = f"{scores.metric}, higher is {scores.higher}"
    parts.append(heading(caption, frame.right, frame.height - 6, anchor="end"))
    return join(*parts)


def _columns(strata: Sequence[StratumFacts], frame: Frame) -> Html:
    ticks = _ticks(0, max((s.total for s in strata), default=0) or 1, 3, whole=True)
    step = (frame.right - frame.left) / max(1, len(strata))
    parts = [_row_axis(frame, ticks), heading("rows", 0, frame.top - 13)]
    for place, stratum in enumerate(strata):
        says = f"{stratum.name}: {_of(stratum.kept, stratum.total)}"
        bar = _bar(frame, frame.left + place * step, step, stratum.kept, stratum.dropped, ticks[-1])
        parts.append(tag("g", tag("title", says), bar))
    parts.append(heading("strata, largest first", frame.right, frame.height - 8, anchor="end"))
    return join(*parts)


def _of(kept: int, total: int) -> str:
    return f"{count(kept)} of {count(total)} rows kept ({percent(kept, total)})"


def _row_axis(frame: Frame, ticks: Sequence[float]) -> Html:
    parts = []
    for value in ticks:
        y = frame.floor - value / ticks[-1] * (frame.floor - frame.top)
        parts.append(rule("grid" if value else "axis", frame.left, y, frame.right, y))
        parts.append(written(count(round(value)), frame.left - 8, y + 4, anchor="end"))
    return join(*parts)


def _share_axis(strip: Frame) -> Html:
    parts = []
    for share in (0, 50, 100):
        y = strip.floor - share / 100 * (strip.floor - strip.top)
        parts.append(rule("grid" if share else "axis", strip.left, y, strip.right, y))
        parts.append(written(f"{share} %", strip.left - 8, y + 4, anchor="end"))
    return join(*parts)


def _cut(x: float, value: float, frame: Frame, strip: Frame) -> Html:
    leftward = x > (frame.left + frame.right) / 2
    name = written(
        f"cut at {number(value)}", x + (-6 if leftward else 6), frame.top + 4, anchor="end" if leftward else "start",
        class_="cut-label",
    )  # fmt: skip
    return join(rule("cut", x, frame.top - 6, x, strip.floor), name)


def _bar(frame: Frame, x: float, width: float, kept: int, dropped: int, top: float) -> Html:
    unit = (frame.floor - frame.top) / top
    return _stack(x, width, kept * unit, dropped * unit, floor=frame.floor)


def _stack(x: float, width: float, kept: float, dropped: float, *, floor: float) -> Html:
    gap = min(1.0, 0.12 * width)
    left, wide = x + gap / 2, width - gap
    lower = tag("rect", class_="k", x=left, width=wide, y=floor - kept, height=kept) if kept else None
    upper = tag("rect", class_="d", x=left, width=wide, y=floor - kept - dropped, height=dropped) if dropped else None
    return join(lower, upper)


def rule(class_: str, x1: float, y1: float, x2: float, y2: float) -> Html:
    """Draw a line."""
    return tag("line", class_=class_, x1=x1, y1=y1, x2=x2, y2=y2)


def written(text: str, x: float, y: float, *, anchor: str, class_: str = "tick") -> Html:
    """Write a few words at a place."""
    return tag("text", text, x=x, y=y, text_anchor=anchor, class_=class_)


def heading(text: str, x: float, y: float, *, anchor: str = "start") -> Html:
    """Write what an axis shows."""
    return written(text, x, y, anchor=anchor, class_="axis-title")


def _ticks(low: float, high: float, steps: int, *, whole: bool = False) -> list[float]:
    """Return round values from at or below `low` to at or above `high`, about `steps` steps."""
    rough = (high - low) / steps
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        width = float(math.ceil(width))
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return [place * width for place in range(first, last + 1)]


def _tick(value: float, span: float) -> str:
    decimals = max(0, min(9, 1 - math.floor(math.log10(span))))
    shown = f"{value:,.{decimals}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return "0" if shown == "-0" else shown.replace("-", "\u2212")
