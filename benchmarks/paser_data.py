"""Instructions of seven kinds for the recovery benchmark, cut into a pool, rows to choose by, and rows to test on.

    T0, GSM8K, CodeAlpaca, GPTeacher, Dolly, Alpaca, multiple choice -> pool | validation | test -> one Parquet file

A question stands in one part only. The training splits of GSM8K and of the multiple-choice sets are for the pool and
for validation, their test splits for the test.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

POOL_ROWS = {"t0": 4500, "gsm8k": 4000, "code": 3800, "tools": 4500, "roleplay": 1400, "dolly": 2400, "alpaca": 4500}
VALIDATION_ROWS, TEST_ROWS = 100, 240
"""Of each source."""
CHOICES = {
    "validation": {("commonsenseqa", "train"): 300, ("boolq", "train"): 300},
    "test": {("commonsenseqa", "dev"): 600, ("boolq", "test"): 600, ("piqa", "dev"): 600},
}
_MOST_CHARS = 6000
_SCHEMA = pa.schema(
    [
        ("part", pa.string()),
        ("source", pa.string()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("response", pa.string()),
        ("choices", pa.list_(pa.string())),
        ("label", pa.int32()),
    ]
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Data:
    """What the benchmark reads, as lists of rows.

    Attributes:
        pool: Rows to choose from.
        validation: Rows to choose settings by.
        test: Rows that are read once.
        questions: Multiple choice by `validation` and `test`.
    """

    pool: list[Row]
    validation: list[Row]
    test: list[Row]
    questions: dict[str, list[Row]]


def read(path: Path) -> Data:
    """Read what `pack` wrote."""
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in pq.read_table(path).to_pylist():
        parts[row["part"]].append(row)
    asked = {}
    for part in CHOICES:
        asked[part] = [
            {"task": row["source"], "passage": row["input"], "question": row["instruction"], **row}
            for row in parts[f"choice_{part}"]
        ]
    return Data(parts["pool"], parts["validation"], parts["test"], asked)


def pack(folder: Path, out: Path, *, scale: float = 1.0) -> dict[str, dict[str, int]]:
    """Write the Parquet file; returns rows by part and source.

    Args:
        folder: Where t0_50k.parquet, gsm8k.parquet, codealpaca.parquet, gpteacher.parquet, dolly_3k.parquet,
            alpaca_subset.parquet and choice_evals.parquet lie.
        out: File to be written.
        scale: Part of all rows, for a rehearsal.
    """
    rows: list[Row] = []
    for source, whole in POOL_ROWS.items():
        held = {"validation": round(scale * VALIDATION_ROWS), "test": round(scale * TEST_ROWS)}
        drawn = _distinct(_SOURCES[source](folder), salt=source)
        for part, count in [*held.items(), ("pool", round(scale * whole))]:
            own = [row for row in drawn if row.get("split") in {None, _SPLIT_OF[part]}][:count]
            taken = {id(row) for row in own}
            drawn = [row for row in drawn if id(row) not in taken]
            rows += [{"part": part, "source": source, **_texts(row)} for row in own]
    rows += _questions(folder, scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), out, compression="zstd", compression_level=19)
    counted: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        counted[row["part"]][row["source"]] += 1
    return {part: dict(of) for part, of in counted.items()}


_SPLIT_OF = {"pool": "train", "validation": "train", "test": "test"}


def _distinct(rows: Iterator[Row], *, salt: str) -> list[Row]:
    """Rows of different questions, in an order that depends on their content alone."""
    found: dict[str, Row] = {}
    for row in rows:
        texts = _texts(row)
        length = sum(map(len, texts.values()))
        if texts["instruction"].strip() and texts["response"].strip() and length <= _MOST_CHARS:
            found.setdefault(_key(salt, texts["instruction"].strip(), texts["input"].strip()), row)
    return [found[key] for key in sorted(found)]


def _key(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _texts(row: Row) -> dict[str, str]:
    return {name: row.get(name) or "" for name in ("instruction", "input", "response")}


def _file(folder: Path, name: str) -> list[Row]:
    found: list[Row] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def _t0(folder: Path) -> Iterator[Row]:
    for row in _file(folder, "t0_50k"):
        yield {"instruction": row["prompt"], "response": row["completion"]}


def _gsm8k(folder: Path) -> Iterator[Row]:
    for row in _file(folder, "gsm8k"):
        yield {"instruction": row["question"], "response": row["answer"], "split": row["split"]}


def _alpaca(folder: Path) -> Iterator[Row]:
    for row in _file(folder, "alpaca_subset"):
        if row["in_random_9k"]:
            yield {"instruction": row["instruction"], "input": row["input"], "response": row["output"]}


def _like_alpaca(name: str, category: str | None = None) -> Any:
    def read_rows(folder: Path) -> Iterator[Row]:
        for row in _file(folder, name):
            if category is None or row["category"] == category:
                yield {"instruction": row["instruction"], "input": row["input"], "response": row["output"]}

    return read_rows


_SOURCES = {
    "t0": _t0,
    "gsm8k": _gsm8k,
    "code": _like_alpaca("codealpaca", "new_codealpaca"),
    "tools": _like_alpaca("gpteacher", "toolformer"),
    "roleplay": _like_alpaca("gpteacher", "roleplay"),
    "dolly": _like_alpaca("dolly_3k"),
    "alpaca": _alpaca,
}


def _questions(folder: Path, scale: float) -> list[Row]:
    rows = []
    for each in _file(folder, "choice_evals"):
        asked = {"part": "", "source": each["task"], "instruction": each["question"], "input": each["passage"]}
        rows.append({**asked, "response": "", "choices": each["choices"], "label": each["label"], "cut": each["split"]})
    rows.sort(key=lambda row: _key(row["source"], row["instruction"], row["input"], json.dumps(row["choices"])))
    found = []
    for part, wanted in CHOICES.items():
        for (task, cut), count in wanted.items():
            own = [row for row in rows if (row["source"], row["cut"]) == (task, cut)]
            found += _without_cut(own[: round(scale * count)], f"choice_{part}")
    return found


def _without_cut(rows: Sequence[Row], part: str) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "cut"} | {"part": part} for row in rows]
