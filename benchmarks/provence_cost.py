"""What pruning saves at the reader, against what the pruner costs, per million tokens of context.

    python -m benchmarks.provence_cost [--reader-price 0.1 1 3] [--cpu-hour 0.1] [--gpu-hour 3]

Made from `provence_speed.json` (documents a second, text to text, with their mean tokens) and the default's share of
characters removed at 90 % recall in `provence_quality.json`; characters stand for tokens. Prices are arguments, in
dollars: of a million input tokens of the reader, and of an hour of the machine that prunes. Break-even is the share
that must be removed for the pruner to pay for itself; `net` is what is saved of each dollar of context after its cost.
"""

from __future__ import annotations

import argparse

from benchmarks.common import Row, record, rows, table

NAME = "provence_cost"
COLUMNS = [
    *("model", "device", "dtype", "reader_price", "hour_price", "pruner_price", "break_even", "removed", "net"),
]


def removed_at_90(method: str) -> float:
    """Share of characters that the model cuts at 90 % recall, mean over the sets."""
    found = [row for row in rows("provence_quality") if row.get("what") == "macro" and row["method"] == method]
    return float(found[-1]["mean"])


def costs(speed: Row, *, reader_price: float, hour_price: float, removed: float) -> Row:
    """Prices in dollars a million tokens, shares 0-1."""
    tokens_per_hour = speed["documents_per_s"] * speed["mean_tokens"] * 3600
    pruner_price = hour_price / tokens_per_hour * 1e6
    return {
        "model": speed["model"],
        "device": speed["device"],
        "dtype": speed["dtype"],
        "reader_price": reader_price,
        "hour_price": hour_price,
        "pruner_price": pruner_price,
        "break_even": pruner_price / reader_price,
        "removed": removed,
        "net": removed - pruner_price / reader_price,
    }


def main() -> None:
    """Record a row for each measured speed of ours and each price of a reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader-price", type=float, nargs="+", default=[0.1, 1.0, 3.0])
    parser.add_argument("--cpu-hour", type=float, default=0.1)
    parser.add_argument("--gpu-hour", type=float, default=3.0)
    parser.add_argument("--method", default="student", help="whose row of provence_quality is used")
    arguments = parser.parse_args()
    removed = removed_at_90(arguments.method)
    best: dict[tuple[str, str], Row] = {}
    for row in rows("provence_speed"):
        key = (row["model"], row["device"])
        if row["way"] == "ours" and row["documents_per_s"] > best.get(key, {}).get("documents_per_s", 0.0):
            best[key] = row
    for speed in best.values():
        hour_price = arguments.gpu_hour if speed["device"] == "cuda" else arguments.cpu_hour
        for reader_price in arguments.reader_price:
            row = costs(speed, reader_price=reader_price, hour_price=hour_price, removed=removed)
            prices = {"reader_price": reader_price, "hour_price": hour_price}
            record(NAME, row, {"model": speed["model"], "device": speed["device"], **prices})
    print(table(NAME, COLUMNS))


if __name__ == "__main__":
    main()
