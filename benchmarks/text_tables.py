"""What the rows of a text benchmark come to: results/NAME.json -> NAME_means, NAME_worst and NAME_gaps beside it."""

from __future__ import annotations

import json
from typing import Any

from benchmarks import common
from benchmarks.image_tables import gaps, means


def write(name: str) -> None:
    """Write means of accuracy and of the worst class, and each method against random, with 95 % intervals; print them.

    Args:
        name: Of the benchmark, whose rows have dataset, encoder, fraction, method, seed, accuracy and worst_class.
    """
    rows = common.rows(name)
    tables = {
        f"{name}_means": means(rows),
        f"{name}_worst": means([{**row, "accuracy": row["worst_class"]} for row in rows]),
        f"{name}_gaps": gaps(rows),
    }
    for each, found in tables.items():
        _write(each, found)
        print(common.table(each), end="\n\n")


def _write(name: str, rows: list[dict[str, Any]]) -> None:
    content = json.dumps({"name": name, "rows": rows}, indent=1, ensure_ascii=False)
    (common.RESULTS / f"{name}.json").write_text(content + "\n", encoding="utf-8")
