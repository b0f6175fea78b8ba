"""Seconds that `import datapipe` and `import provence` add to an empty interpreter, and what they pull in."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.common import record, table

RUNS = 7
HEAVY = ("torch", "polars", "transformers", "prefect", "ray", "langchain_core", "umap", "sklearn", "pyarrow", "numpy")


def seconds(statement: str) -> float:
    """Wall seconds of one fresh interpreter that runs `statement`."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure, interleaved, and record medians."""
    statements = {
        "(nothing)": "pass",
        "datapipe": "import datapipe",
        "provence": "import provence",
        "polars": "import polars",
    }
    times: dict[str, list[float]] = {name: [] for name in statements}
    for _ in range(RUNS):
        for name, statement in statements.items():
            times[name].append(seconds(statement))
    base = statistics.median(times["(nothing)"])
    for name in ("datapipe", "provence", "polars"):
        code = f"import sys, {name}; print(*sorted({HEAVY!r} & sys.modules.keys()))".replace("('", "{'").replace(
            "')", "'}"
        )
        pulled = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
        added = [value - base for value in times[name]]
        row = {
            "module": name,
            "seconds_added_median": round(statistics.median(added), 4),
            "seconds_added_max": round(max(added), 4),
            "pulls_in": ", ".join(pulled) or "none of " + ", ".join(HEAVY),
        }
        record("import_time", row, {"module": name, "runs": RUNS})
    print(table("import_time"))


if __name__ == "__main__":
    main()
