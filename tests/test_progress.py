"""How a run tells how far it is: plain lines for logs, bars for terminals, one stage where only one is asked for."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from datapipe.progress import Bars, Lines, Only, for_terminal

if TYPE_CHECKING:
    from datapipe.progress import Progress


def tell(shown: Progress) -> None:
    """A run of two stages, the second of which was done before."""
    shown.start("ingest", total=None)
    shown.advance(1500)
    shown.advance(500)
    shown.finish("ingest", rows=2000, seconds=1.25, reused=False)
    shown.start("embed", total=2000)
    shown.finish("embed", rows=2000, seconds=0.0, reused=True)


def test_where_there_is_no_terminal_a_stage_ends_in_one_plain_line() -> None:
    stream = io.StringIO()
    with for_terminal(Console(file=stream)) as shown:
        assert isinstance(shown, Lines)
        tell(shown)
    assert stream.getvalue().splitlines() == [
        "ingest          2,000 rows  1.2 s",
        "embed           2,000 rows  done before",
    ]


def test_a_long_stage_prints_a_line_now_and_then_with_the_rows_that_are_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 2.0, 6.0, 7.0, 12.0])
    monkeypatch.setattr("datapipe.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    shown = Lines(stream)
    shown.start("embed", total=4000)
    for _ in range(4):
        shown.advance(1000)
    assert stream.getvalue().splitlines() == [
        "embed           2,000 of 4,000 rows",
        "embed           4,000 of 4,000 rows",
    ]


def test_a_terminal_gets_a_bar_a_stage() -> None:
    stream = io.StringIO()
    with for_terminal(Console(file=stream, force_terminal=True, width=100)) as shown:
        assert isinstance(shown, Bars)
        tell(shown)
    last = stream.getvalue()
    assert "2000/2000" in last
    assert "ingest" in last
    assert "done before" in last


@pytest.mark.parametrize(("stage", "expected"), [("embed", 1), ("ingest", 1), ("score", 0)])
def test_a_task_that_brings_one_stage_up_to_date_tells_of_that_one(stage: str, expected: int) -> None:
    stream = io.StringIO()
    tell(Only(stage, Lines(stream)))
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == [stage] * expected
