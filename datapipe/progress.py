"""How a run tells how far it is: one bar a stage on a terminal, plain lines elsewhere, nothing by default."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_LINE_SECONDS = 5.0


class Progress(Protocol):
    """What a pipeline calls while it runs; any thread may call `advance`."""

    def start(self, stage: str, *, total: int | None) -> None:
        """A stage begins; `total` rows are ahead, None where nobody knows yet."""

    def advance(self, rows: int) -> None:
        """`rows` more rows of the current stage are through."""

    def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None:
        """The stage is done; `reused` where an earlier run had done it already."""


class Silent:
    """Says nothing."""

    def start(self, stage: str, *, total: int | None) -> None:
        """Do nothing."""

    def advance(self, rows: int) -> None:
        """Do nothing."""

    def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None:
        """Do nothing."""


class Only:
    """Passes on what concerns one stage.

    Args:
        stage: The stage to tell of.
        progress: Who is told.
    """

    def __init__(self, stage: str, progress: Progress) -> None:
        self._stage, self._progress, self._running = stage, progress, False

    def start(self, stage: str, *, total: int | None) -> None:
        """Pass on the start of the stage."""
        self._running = stage == self._stage
        if self._running:
            self._progress.start(stage, total=total)

    def advance(self, rows: int) -> None:
        """Pass on rows of the stage."""
        if self._running:
            self._progress.advance(rows)

    def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None:
        """Pass on the end of the stage."""
        if self._running:
            self._progress.finish(stage, rows=rows, seconds=seconds, reused=reused)


class Lines:
    """One line when a stage ends, and one every five seconds while it runs: for logs and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._lock = threading.Lock()
        self._stage = ""
        self._total: int | None = None
        self._rows = 0
        self._last = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()

    def start(self, stage: str, *, total: int | None) -> None:
        """Remember the stage; its first line comes after five seconds."""
        with self._lock:
            self._stage, self._total, self._rows, self._last = stage, total, 0, time.monotonic()

    def advance(self, rows: int) -> None:
        """Count, and print a line where five seconds have passed since the last one."""
        with self._lock:
            self._rows += rows
            now = time.monotonic()
            if now - self._last >= _LINE_SECONDS:
                self._last = now
                of = f" of {self._total:,}" if self._total else ""
                self._say(f"{self._stage:<8} {self._rows:>12,}{of} rows")

    def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None:
        """Print the stage's last line."""
        with self._lock:
            self._say(f"{stage:<8} {rows:>12,} rows  " + ("done before" if reused else f"{seconds:.1f} s"))

    def _say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Bars:
    """A rich progress bar a stage."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bars: RichProgress = RichProgress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("rows"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, stage: str, *, total: int | None) -> None:
        """Open a bar; it pulses while `total` is unknown."""
        self._task = self._bars.add_task(stage, total=total, note="")

    def advance(self, rows: int) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, rows)

    def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None:
        """Fill the bar."""
        if self._task is not None:
            note = "done before" if reused else ""
            self._bars.update(self._task, total=max(rows, 1), completed=max(rows, 1), note=note)
            self._bars.stop_task(self._task)


def for_terminal(console: Console) -> AbstractContextManager[Bars] | AbstractContextManager[Lines]:
    """Bars where `console` is a terminal, lines on the same stream elsewhere."""
    return Bars(console) if console.is_terminal else Lines(console.file)  # type: ignore[arg-type]
