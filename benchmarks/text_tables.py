"""What the rows of a text benchmark come to: results/NAME.json -> NAME_means, NAME_worst and NAME_gaps beside it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.image_tables import gaps, means

if TYPE_CHECKING:
    from collections.abc import Callable


def write(name: str, *, current: Callable[[dict[str, Any]], bool] = bool) -> None:
    """Write means of accuracy and of the worst class, and each method against random, with 95 % intervals; print them.

    Args:
        name: Of the benchmark, whose rows have dataset, encoder, fraction, method, seed, accuracy and worst_class.
        current: Which rows count; the others are of settings that are no more, and are in no table.
    """
    rows = [row for row in common.rows(name) if current(row)]
    _write(name, common.rows(name))
    tables = {
        f"{name}_means": means(rows),
        f"{name}_worst": means(rows, of="worst_class"),
        f"{name}_gaps": gaps(rows),
    }
    for each, found in tables.items():
        _write(each, found)
        print(common.table(each), end="\n\n")


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    content = f'{{"name": {json.dumps(name)}, "rows": [\n{lines}\n]}}\n'
    (common.RESULTS / f"{name}.json").write_text(content, encoding="utf-8")
