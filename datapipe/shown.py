"""What commands print: values as two columns for people, or one JSON object for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def show_values(values: dict[str, Any], *, as_json: bool, console: Console | None = None) -> None:
    """Print names and values, as JSON where that is asked for."""
    if as_json:
        print_json(values)
        return
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        table.add_row(name.replace("_", " "), f"{value:,}" if number else str(value))
    (console or Console()).print(table)


def print_json(value: dict[str, Any]) -> None:
    """Print one object on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=1, default=str) + "\n")
