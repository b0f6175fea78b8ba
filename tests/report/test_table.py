from __future__ import annotations

import json
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from datapipe.errors import SourceError
from datapipe.report.facts import facts_to_json
from datapipe.report.table import (
    facts_to_html,
    facts_to_markdown,
    print_summary,
    read_facts,
    run_table,
    to_html,
    to_markdown,
)
from tests.report.sample import make_facts
from tests.report.test_page import HOSTILE, Page

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Stage:
    stage: str
    rows: int
    seconds: float
    reused: bool


TIMINGS = (
    Stage("embed", 300, 2.0, reused=False),
    {"stage": "score", "rows": 300, "seconds": 0.01, "reused": True},
    Stage("fit", 0, 0.0, reused=False),
)


def shown(facts_text: str = "card", *, strata: int = 3) -> str:
    console = Console(file=StringIO(), width=110, color_system=None)
    console.print(run_table(make_facts(facts_text, strata=strata), timings=TIMINGS))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def finished_run(folder: Path) -> Path:
    stage = folder / "stages" / "report-0123"
    stage.mkdir(parents=True)
    (stage / "facts.json").write_bytes(facts_to_json(make_facts()))
    for name in ("kept.parquet", "report.html"):
        (folder / name).touch()
    manifest = {"outputs": [], "config": {}, "stages": [{"name": "report", "key": stage.name}]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_terminal_shows_where_the_rows_went_and_how_fast() -> None:
    text = shown()
    assert text.startswith("90 of 306 rows kept (29.4 %)  card\n")
    rows = lines_of(text)
    assert ["dropped:", "over", "budget", "212", "69.3", "%"] in rows
    assert ["rows", "in", "306"] in rows
    assert ["embed", "300", "2.0", "150"] in rows
    assert ["score", "300", "done", "before", "\u2013"] in rows
    assert ["fit", "0", "0.0", "\u2013"] in rows


def test_the_terminal_sums_up_the_strata_it_does_not_show() -> None:
    assert next(row for row in lines_of(shown(strata=20)) if row[:1] == ["and"])[:3] == ["and", "8", "more"]


def test_rich_markup_in_a_name_is_text() -> None:
    assert "[red]x[/] 2" in shown("[red]x[/]")


def test_markdown_keeps_a_hostile_name_in_its_cell() -> None:
    name = "a|b\n# c `d` <img>"
    text = facts_to_markdown(make_facts(name), timings=TIMINGS)
    row = next(line for line in text.splitlines() if line.startswith("| a\\|b"))
    assert row == "| a\\|b # c \\`d\\` &lt;img&gt; 2 | 102 | 30 | 29.4 % |"
    assert "<img>" not in text
    assert "| embed | 300 | 2.0 | 150 |" in text


def test_a_notebook_gets_one_closed_element_without_scripts() -> None:
    page = Page(facts_to_html(make_facts(HOSTILE)))
    assert page.open == []
    assert page.elements[0][0] == "div"
    assert not {"script", "style", "img"} & set(page.tags)
    assert page.tags == Page(facts_to_html(make_facts("a"))).tags


def test_a_finished_run_is_shown_from_its_folder(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    console = Console(file=StringIO(), width=20)
    print_summary(run, console=console)
    assert isinstance(console.file, StringIO)
    files = [str(run / name) for name in ("kept.parquet", "manifest.json", "report.html")]
    assert console.file.getvalue().splitlines()[-3:] == files
    assert read_facts(run) == make_facts()
    assert to_markdown(run) == facts_to_markdown(make_facts())
    assert to_html(run) == facts_to_html(make_facts())


def test_a_folder_without_a_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no finished run"):
        to_html(tmp_path)


def test_a_run_whose_facts_are_gone_or_damaged_says_what_to_do(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    path = run / "stages" / "report-0123" / "facts.json"
    path.write_text("{}")
    with pytest.raises(SourceError, match=r"facts\.json cannot be read \(.*run curate again to make it"):
        read_facts(run)
    path.unlink()
    with pytest.raises(SourceError, match="run curate again to make it"):
        read_facts(run)
