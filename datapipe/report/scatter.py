"""The map of rows as inline SVG: one dot a row, drawn as zero-length strokes, some ten bytes each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

from datapipe.report.markup import Html, number, plain, tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.report.facts import MapPoint

__all__ = ["dots", "map_data", "map_ground", "map_plot", "map_small", "place"]

WIDTH, MARGIN = 1000, 16
HEIGHTS = (360, 720)
"""Least and most; in between, the map is as high as its points ask for."""
SIDES = ((False, "d"), (True, "k"))
"""Dropped first, so that kept points lie on top."""

Spots: TypeAlias = "Sequence[tuple[int, int]]"


def place(points: Sequence[MapPoint]) -> tuple[list[tuple[int, int]], int]:
    """Return the points in pixels and the height; one scale for both axes, so that distances keep their meaning."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    west, south, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    tall = round(min(max(2 * MARGIN + (WIDTH - 2 * MARGIN) * height / (width or 1), HEIGHTS[0]), HEIGHTS[1]))
    scale = min((WIDTH - 2 * MARGIN) / (width or 1), (tall - 2 * MARGIN) / (height or 1))
    left, foot = (WIDTH - scale * width) / 2, (tall + scale * height) / 2
    spots = [(round(left + scale * (x - west)), round(foot - scale * (y - south))) for x, y in zip(xs, ys, strict=True)]
    return spots, tall


def map_plot(points: Sequence[MapPoint], spots: Spots, names: Sequence[str], *, height: int, label: str) -> Html:
    """Draw all points, one path a stratum and side; `names` numbers the strata for the script."""
    numbers = {name: index for index, name in enumerate(names)}
    layers = []
    for side, class_ in SIDES:
        groups: dict[int, list[tuple[int, int]]] = {}
        for point, spot in zip(points, spots, strict=True):
            if point.kept is side:
                groups.setdefault(numbers[point.stratum], []).append(spot)
        paths = [tag("path", d=dots(groups[index]), data_s=str(index)) for index in sorted(groups)]
        layers.append(tag("g", *paths, class_=f"dots {class_}"))
    ring = tag("circle", class_="ring", r=0)
    return tag(
        "svg", *layers, ring, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=label, class_="map", id="rows-map"
    )


def map_ground(spots: Spots) -> Html:
    """Draw every point in one quiet colour, once, for each `map_small` to stand on."""
    path = tag("path", d=dots(spots), id="ground", class_="ground")
    return tag("svg", tag("defs", path), width="0", height="0", class_="defs", aria_hidden="true")


def map_small(points: Sequence[MapPoint], spots: Spots, stratum: str, *, height: int) -> Html:
    """Draw the points of one stratum over the ground."""
    own = [(point.kept, spot) for point, spot in zip(points, spots, strict=True) if point.stratum == stratum]
    layers = [
        tag("g", tag("path", d=dots([spot for kept, spot in own if kept is side])), class_=f"dots {class_}")
        for side, class_ in SIDES
    ]
    box = f"0 0 {WIDTH} {height}"
    return tag("svg", tag("use", href="#ground"), *layers, viewBox=box, class_="map small", aria_hidden="true")


def map_data(points: Sequence[MapPoint], spots: Spots, names: Sequence[str], *, unnamed: str) -> Html:
    """Return what the script needs to name the point under the pointer, as a block of data."""
    numbers = {name: index for index, name in enumerate(names)}
    data = {
        "spots": [list(spot) for spot in spots],
        "kept": [int(point.kept) for point in points],
        "stratum": [numbers[point.stratum] for point in points],
        "score": [number(point.score) for point in points],
        "names": [plain(name) or unnamed for name in names],
    }
    # In a script element only `<` could end the data.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", Html(text), type="application/json", id="map-data")


def dots(spots: Spots) -> str:
    """Return the points as a path of zero-length strokes."""
    return "".join(f"M{x} {y}h0" for x, y in spots)
