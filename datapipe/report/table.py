"""The run in short: for the terminal, for a Markdown artifact, and for a notebook.

`run_table`, `facts_to_markdown` and `facts_to_html` are pure functions of the facts (and of times that are handed in);
`print_summary`, `to_markdown` and `to_html` read the facts of a finished run folder first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from datapipe.errors import SourceError
from datapipe.report.facts import facts_from_json
from datapipe.report.markup import count, cut, percent, plain, tag
from datapipe.report.sections import by_loss, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from rich.console import Console, Group
    from rich.table import Table

    from datapipe.report.facts import RowCounts, RunFacts

__all__ = [
    "facts_to_html",
    "facts_to_markdown",
    "print_summary",
    "read_facts",
    "run_table",
    "to_html",
    "to_markdown",
]

STRATA_SHOWN = 12
NAME_CHARACTERS = 40
BAR_CHARACTERS, BAR_HEAD = 24, "kept, dropped"


FILES = (
    *("kept.parquet", "train.parquet", "selection.parquet", "scores.parquet", "clusters.parquet", "damage.parquet"),
    *("dataset_info.json", "rejected.parquet", "manifest.json", "report.html"),
)
"""What runs leave for their user."""
REPORTS = ("report", "paser_report")
"""Stages that leave the facts of a run."""


class Timing(Protocol):
    """How long a stage took."""

    @property
    def stage(self) -> str:
        """Its name."""

    @property
    def rows(self) -> int:
        """Rows that it put out."""

    @property
    def seconds(self) -> float:
        """Wall seconds."""

    @property
    def reused(self) -> bool:
        """Whether an earlier run had done it."""


class _Lines(NamedTuple):
    """A table as plain strings: the first column is a name, the others are numbers."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]


def run_table(facts: RunFacts, *, timings: Iterable[Timing | Mapping[str, Any]] = ()) -> Group:
    """Return the run for a rich console: where the rows went, the strata, the stages."""
    from rich.console import Group
    from rich.text import Text

    counts = facts.counts
    headline = Text.assemble(
        (count(counts.kept), "bold cyan"), (f" of {count(counts.rows_in)} rows kept", "bold"),
        f" ({percent(counts.kept, counts.rows_in)})  ", (plain(facts.identity.source), "dim"),
    )  # fmt: skip
    why = Text(plain(f"{facts.strategy.name}, {facts.strategy.budget}"), style="dim")
    tables = [_drawn(lines) for lines in (_went(counts), _strata(facts, bars=True), _stages(timings)) if lines.rows]
    blank = Text()
    return Group(headline, why, *(part for table in tables for part in (blank, table)))


def facts_to_markdown(facts: RunFacts, *, timings: Iterable[Timing | Mapping[str, Any]] = ()) -> str:
    """Return the run as Markdown; names are escaped, so that they stay text in their cells."""
    counts = facts.counts
    parts = [
        f"## {_cell(facts.identity.source)}",
        f"**{count(counts.kept)} of {count(counts.rows_in)} rows kept ({percent(counts.kept, counts.rows_in)})**",
        f"{_cell(facts.strategy.name)}, {_cell(facts.strategy.budget)}.",
    ]
    parts += [f"> {_cell(sentence)}" for sentence in facts.strategy.warnings]
    for lines in (_went(counts), _strata(facts, bars=False), _stages(timings)):
        if lines.rows:
            ruler = "| --- |" + " ---: |" * (len(lines.head) - 1)
            body = ["| " + " | ".join(_cell(value) for value in row) + " |" for row in (lines.head, *lines.rows)]
            parts.append("\n".join([f"### {lines.title}", "", body[0], ruler, *body[1:]]))
    parts.append(f"Run `{_cell(facts.identity.digest)}`, seed {facts.identity.seed}.")
    return "\n\n".join(parts) + "\n"


def facts_to_html(facts: RunFacts) -> str:
    """Return the run as a piece of HTML for a notebook: own styles on each element, in light and dark."""
    counts = facts.counts
    share = percent(counts.kept, counts.rows_in)
    kept = tag("b", f"{count(counts.kept)} of {count(counts.rows_in)} rows kept")
    headline = tag("div", kept, f" ({share})", style="font-size:1.25em;margin-bottom:6px")
    pieces = [
        (counts.kept, "#0e8296"),
        (sum(counts.dropped.values()), "#c77f43"),
        (sum(counts.rejected.values()), "#888"),
    ]
    bar = tag(
        "div",
        *(tag("div", style=f"flex:{rows} 0 0;background:{colour}") for rows, colour in pieces if rows),
        style="display:flex;gap:2px;height:10px;max-width:520px;margin-bottom:8px",
        aria_hidden="true",
    )
    tables = []
    for lines in (_went(counts), _strata(facts, bars=False)):
        if lines.rows:
            cells = "text-align:right;padding:2px 14px 2px 0"
            styles = ["text-align:left;padding:2px 14px 2px 0", *[cells] * (len(lines.head) - 1)]
            head = [tag("th", name, scope="col", style=style) for name, style in zip(lines.head, styles, strict=True)]
            body = [
                tag("tr", *(tag("td", value, style=style) for value, style in zip(row, styles, strict=True)))
                for row in lines.rows
            ]
            table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *body), style="font-size:0.92em")
            tables.append(tag("div", table, style="margin-right:40px"))
    chosen = f"{facts.strategy.name}, {facts.strategy.budget}"
    note = f"{facts.identity.source} \u00b7 {chosen} \u00b7 run {facts.identity.digest[:12]}"
    return tag(
        "div", headline, bar, tag("div", *tables, style="display:flex;flex-wrap:wrap;align-items:flex-start"),
        tag("div", note, style="opacity:0.7;font-size:0.85em;margin-top:6px"),
    )  # fmt: skip


def print_summary(run: Path, *, timings: Iterable[Timing | Mapping[str, Any]] = (), console: Console) -> None:
    """Print the finished run in folder `run`, and where its files are.

    Raises:
        SourceError: The folder holds no finished run.
    """
    from rich.text import Text

    console.print(run_table(read_facts(run), timings=timings))
    console.print()
    for name in FILES:
        if (run / name).exists():
            console.print(Text(str(run / name), style="dim"), soft_wrap=True)


def to_markdown(run: Path, *, timings: Iterable[Timing | Mapping[str, Any]] = ()) -> str:
    """Return the finished run in folder `run` as Markdown. Raises `SourceError` where there is none."""
    return facts_to_markdown(read_facts(run), timings=timings)


def to_html(run: Path) -> str:
    """Return the finished run in folder `run` for a notebook. Raises `SourceError` where there is none."""
    return facts_to_html(read_facts(run))


def read_facts(run: Path) -> RunFacts:
    """Return the facts behind the page of the finished run in folder `run`.

    Raises:
        SourceError: The folder holds no finished run, or the facts of its report stage are gone or damaged.
    """
    from datapipe.storage.verify import read_run_manifest

    keys = [stage["key"] for stage in read_run_manifest(run)["stages"] if stage["name"] in REPORTS]
    if not keys:
        raise SourceError(f"the run in {run} has no report stage; finish it by running curate again")
    path = run / "stages" / keys[-1] / "facts.json"
    try:
        return facts_from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{path} cannot be read ({reason}); run curate again to make it") from error


def _went(counts: RowCounts) -> _Lines:
    rows = [("kept", counts.kept), *_by_size("dropped", counts.dropped), *_by_size("rejected", counts.rejected)]
    shown: list[tuple[str, ...]] = [(name, count(n), percent(n, counts.rows_in)) for name, n in rows]
    return _Lines("Rows", ("outcome", "rows", "of rows in"), [*shown, ("rows in", count(counts.rows_in), "")])


def _by_size(kind: str, reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return [(f"{kind}: {words(reason)}", rows) for reason, rows in ordered if rows]


def _strata(facts: RunFacts, *, bars: bool) -> _Lines:
    head = ("stratum", "rows", "kept", "share", *([BAR_HEAD] if bars else []))
    ordered = by_loss(facts) if len(facts.strata) > 1 else []
    top = max((stratum.total for stratum in ordered), default=0) or 1
    rows: list[tuple[str, ...]] = []
    for stratum in ordered[:STRATA_SHOWN]:
        name = cut(stratum.name, limit=NAME_CHARACTERS)
        numbers = (count(stratum.total), count(stratum.kept), percent(stratum.kept, stratum.total))
        rows.append((name, *numbers, *([_bar(stratum.kept, stratum.total, top)] if bars else [])))
    if len(ordered) > STRATA_SHOWN:
        rest = ordered[STRATA_SHOWN:]
        total, kept = sum(stratum.total for stratum in rest), sum(stratum.kept for stratum in rest)
        name = f"and {count(len(rest))} more"
        rows.append((name, count(total), count(kept), percent(kept, total), *([""] if bars else [])))
    return _Lines("Strata that lost most", head, rows)


def _bar(kept: int, total: int, top: int) -> str:
    width = max(1, round(BAR_CHARACTERS * total / top)) if total else 0
    filled = round(width * kept / total) if total else 0
    return "\u2588" * filled + "\u2591" * (width - filled)


def _stages(timings: Iterable[Timing | Mapping[str, Any]]) -> _Lines:
    rows: list[tuple[str, ...]] = []
    for entry in timings:
        stage, done, seconds, reused = _timing(entry)
        speed = count(round(done / seconds)) if seconds > 0 and not reused else "\u2013"
        rows.append((stage, count(done), "done before" if reused else f"{seconds:,.1f}", speed))
    return _Lines("Stages", ("stage", "rows", "seconds", "rows/s"), rows)


def _timing(entry: Timing | Mapping[str, Any]) -> tuple[str, int, float, bool]:
    # A flow's tasks hand over JSON.
    if isinstance(entry, Mapping):
        return str(entry["stage"]), int(entry["rows"]), float(entry["seconds"]), bool(entry["reused"])
    return entry.stage, entry.rows, entry.seconds, entry.reused


def _drawn(lines: _Lines) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=lines.title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for place, name in enumerate(lines.head):
        table.add_column(Text(name), justify="right" if place and name != BAR_HEAD else "left", overflow="fold")
    for row in lines.rows:
        table.add_row(*(_value(value, row) for value in row))
    return table


def _value(value: str, row: Sequence[str]) -> Any:
    from rich.text import Text

    if row[0] == "kept":
        return Text(value, style="cyan")
    bar = Text(plain(value))
    bar.highlight_regex("\u2588+", "cyan")
    bar.highlight_regex("\u2591+", "yellow")
    return bar


def _cell(text: str) -> str:
    """Return text that Markdown leaves alone."""
    shown = " ".join(plain(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", shown)
