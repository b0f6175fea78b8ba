"""Write the tables of the README from the results: `python -m benchmarks.readme`.

Each block between `<!-- bench:NAME -->` and `<!-- end -->` becomes the table of `results/NAME.json`.
"""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.common import table

README = Path(__file__).resolve().parent.parent / "README.md"
BLOCK = re.compile(r"(<!-- bench:(\w+) -->\n)(.*?)(<!-- end -->)", flags=re.DOTALL)


COLUMNS = {
    "embedding": [
        *("data", "device", "method", "dtype", "batch", "rows_per_second", "times_st_float32_default"),
        *("times_st_float32_best", "times_st_bfloat16_best", "cosine_least"),
    ],
}
"""What the README shows of a benchmark; everything where it is not named here."""


def filled(text: str) -> str:
    """Return `text` with every block's table made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{table(found[2], COLUMNS.get(found[2]))}\n{found[4]}", text)


def main() -> None:
    """Rewrite the README."""
    README.write_text(filled(README.read_text()))


if __name__ == "__main__":
    main()
