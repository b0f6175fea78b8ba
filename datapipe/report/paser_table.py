"""The skills of a selection for recovery as a table for a terminal: what each lost, and what it got."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.report.markup import count, cut, number
from datapipe.report.paser_facts import skill_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

__all__ = ["print_skills"]

SKILLS_SHOWN = 24
NAME_CHARACTERS = 44


def print_skills(clusters: Sequence[Mapping[str, Any]], *, console: Console) -> None:
    """Print the skills, the most damaged first.

    Args:
        clusters: Rows of `clusters.parquet`.
        console: Where.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    ordered = sorted(clusters, key=lambda row: (-(row["cds"] or 0.0), row["cluster"]))
    table = Table(title="Skills, the most damaged first", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for place, name in enumerate(("skill", "damage", "95 % interval", "rows", "budget", "taken")):
        table.add_column(name, justify="right" if place else "left")
    for row in ordered[:SKILLS_SHOWN]:
        words = tuple(word for word in row["name"].split(", ") if word)
        name = cut(skill_name(row["cluster"], words), limit=NAME_CHARACTERS)
        budget = "\u2013" if row["budget"] is None else count(round(row["budget"]))
        interval = f"{number(row['low'])} to {number(row['high'])}"
        table.add_row(Text(name), number(row["cds"]), interval, count(row["rows"]), budget, count(row["taken"]))
    console.print(table)
    if len(ordered) > SKILLS_SHOWN:
        console.print(f"and {count(len(ordered) - SKILLS_SHOWN)} more, in clusters.parquet")
