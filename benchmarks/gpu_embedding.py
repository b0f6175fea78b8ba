"""Tokens embedded a second on a GPU, and the share of what its matrix units do: padded against unpadded, and variants.

    python -m benchmarks.gpu_embedding                           # every part, what is not measured yet
    python -m benchmarks.gpu_embedding --part bulk --part worker
    python -m benchmarks.gpu_embedding --table

Parts, each with rows of its own:
    ceilings   what the card does: bfloat16 products of 8192^3 and of each model's own shapes, copies, transfers
    bulk       each model on each data set: unpadded, padded after sorting by length, padded in order of arrival, and
               transformers' own model padded after sorting
    variants   what was tried on the unpadded path: steps by torch, by our kernels and by torch.compile, both attention
               kernels, GELU in the product's epilogue, batch sizes; and each kernel alone
    profile    where the device's time goes
    online     1, 8 and 32 texts a batch: eager, by graphs, compiled; alone and beside bulk
    worker     strings, or token ids, to vectors through a worker, on one GPU and on all

Lengths are those of real texts (banking77 questions, squad contexts, both mixed with dolly answers), cut to what the
model takes; precision is bfloat16. A padded batch holds tokens in place of padding and masks none, so that all else is
equal; filling it is not timed. In bulk, batches are queued without waiting, as two lanes do. Useful operations are
those of products and attention for real tokens; the ceiling is the 8192^3 product of the same run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks import gpu_online, gpu_variants, gpu_worker
from benchmarks.common import RESULTS, rows, table
from benchmarks.gpu_measure import (
    CUDA,
    MODELS,
    NAME,
    Bench,
    batches_as_they_come,
    batches_of,
    filled,
    rates,
    seconds,
)
from benchmarks.gpu_variants import embed_all
from datapipe.workers.encoders.foreign import ForeignEncoder
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from benchmarks.common import Row

PARTS = ("ceilings", "bulk", "variants", "profile", "online", "worker")
LAYOUTS = ("unpadded", "padded, sorted", "padded, as they come", "transformers, padded, sorted")
COLUMNS = [
    *(
        "part",
        "model",
        "data",
        "layout",
        "variant",
        "what",
        "head",
        "window",
        "length",
        "texts",
        "beside",
        "items",
        "devices",
    ),
    *("tokens_per_second", "useful_tflops", "share_of_ceiling", "times_padded", "p50_seconds", "p95_seconds", "tflops"),
    *("bytes_per_second", "varlen", "tiled_64_64", "cosine_to_float32_least", "same_bits_as_eager", "gpu"),
]


def bulk(bench: Bench) -> None:
    """Each model on each data set, in each layout."""
    for name in MODELS:
        for data in bench.texts:
            whole: Row = {"part": "bulk", "model": name, "data": data}
            for layout in LAYOUTS if data == "mixed" else LAYOUTS[:3]:
                bench.measure(whole | {"layout": layout}, partial(_bulk, bench, name, data, layout))


def _bulk(bench: Bench, name: str, data: str, layout: str) -> Row:
    model, ids, encoder = bench.model(name), bench.token_ids(name, data), bench.encoder(name)
    batches = batches_as_they_come(ids) if "come" in layout else batches_of(ids, padded=layout != "unpadded")
    if layout.startswith("transformers"):
        encoder = ForeignEncoder(ModelFolder(name, model.folder), device=CUDA, dtype=torch.bfloat16)
    elif layout != "unpadded":
        batches = [filled(batch) for batch in batches]
    computed = sum(max(map(len, b)) * len(b) if layout != "unpadded" else sum(map(len, b)) for b in batches)
    row = rates(bench, model, ids, seconds(lambda: embed_all(encoder, batches), bench.repeats))
    return row | {"batches": len(batches), "computed_tokens": computed}


def compare(found: list[Row]) -> list[Row]:
    """Bulk rows with how many times faster unpadded is than each other layout."""
    speed = {(row["model"], row["data"], row["layout"], row["gpu"]): row["tokens_per_second"] for row in found}
    return [
        row | {"times_padded": speed[row["model"], row["data"], "unpadded", row["gpu"]] / row["tokens_per_second"]}
        for row in found
        if (row["model"], row["data"], "unpadded", row["gpu"]) in speed
    ]


def summary() -> str:
    """A short table for the end of the output."""
    found = rows(NAME)
    lines = [f"{_rate(row)} unpadded is {row['times_padded']:.2f} x" for row in compare(_of(found, "bulk"))]
    lines += [f"{_rate(row)} cosine {row['cosine_to_float32_least']:.6f}" for row in _of(found, "variants")]
    lines += [
        f"{row['model']:15} {row['texts']:3} texts beside {row['beside']:8} {row['variant']:9} "
        f"p50 {row['p50_seconds'] * 1e3:7.3f} ms  p95 {row['p95_seconds'] * 1e3:7.3f} ms"
        for row in _of(found, "online")
    ]
    lines += [f"{_rate(row)}" for row in _of(found, "worker")]
    return "\n".join(lines)


def _of(found: list[Row], part: str) -> list[Row]:
    return [row for row in found if row["part"] == part]


def _rate(row: Row) -> str:
    what = row.get("layout") or row.get("variant") or f"worker, {row.get('items')}, {row.get('devices')} GPU"
    speed, share = row["tokens_per_second"] / 1e6, row["share_of_ceiling"]
    return f"{row['model']:15} {row['data']:14} {what:29} {speed:7.2f} M tokens/s {share:6.1%}"


def main() -> None:
    """Measure what is not measured yet, then print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="Only this part; may be given again.")
    parser.add_argument("--tokens", type=int, default=1 << 20, help="Real tokens of a bulk measurement.")
    parser.add_argument("--repeats", type=int, default=5, help="Times that each bulk measurement is taken.")
    parser.add_argument("--minutes", type=float, default=3.6, help="After so long no measurement begins.")
    parser.add_argument("--compiled", action="store_true", help="Also measure torch.compile, which takes a minute.")
    parser.add_argument("--again", action="store_true", help="Measure finished rows again.")
    parser.add_argument("--table", action="store_true", help="Only print the rows as a Markdown table.")
    options = parser.parse_args()
    if options.table:
        print(table(NAME, COLUMNS))
        return
    if not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA device")
    ends = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), ends, options.tokens, options.repeats, options.again)
        for part in options.part or PARTS:
            begin = time.perf_counter()
            run(part, bench, compiled=options.compiled)
            print(f"-- {part}: {time.perf_counter() - begin:.1f} s", flush=True)
    out = Path(os.environ.get("OUT", RESULTS))
    if out.resolve() != RESULTS.resolve():
        shutil.copy(RESULTS / f"{NAME}.json", out)
    print(summary())
    if bench.left:
        print(f"out of time, left for another run: {len(bench.left)} rows, from {bench.left[0]}")
    if bench.failed:
        parser.exit(1, "\n".join(["failed:", *bench.failed, ""]))


def run(part: str, bench: Bench, *, compiled: bool) -> None:
    """Measure one part."""
    if part == "ceilings":
        gpu_variants.ceilings(bench)
    elif part == "bulk":
        bulk(bench)
    elif part == "variants":
        gpu_variants.variants(bench, compiled=compiled)
        gpu_variants.attention_rates(bench)
        gpu_variants.step_rates(bench)
    elif part == "profile":
        gpu_variants.profile(bench)
    elif part == "online":
        gpu_online.online(bench, compiled=compiled)
    else:
        gpu_worker.worker(bench)


if __name__ == "__main__":
    main()
