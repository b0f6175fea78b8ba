"""Rows embedded a second: this project's worker against sentence-transformers, same weights, same process.

    python -m benchmarks.embedding                     # this machine's CPU
    python -m benchmarks.embedding --device cuda --texts 20000
    python -m benchmarks.embedding --table

Texts: banking77 (short), squad contexts (long), and both mixed with dolly answers; repeated in turn where a data set is
smaller than --texts. sentence-transformers `encode` runs in float32, its default, and in bfloat16 where the device has
instructions for it, each first at every batch size on a quarter of the texts, then at its default of 32 and at its
best; the faster of the two is its row. Methods are timed in turns, and a speed-up is the median over the turns of time
against time in the same turn. Both sides start from Python strings and end with one float32 matrix in the texts' order.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from itertools import chain, cycle, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from benchmarks.common import ROOT, Row, finished, processor, record, table
from datapipe.embedding.text import count_tokens, embed_texts
from datapipe.weights import embedded_folder
from datapipe.workers.device import cpu_flags
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import ModelSpec
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapipe.storage.arrays import Float32

NAME = "embedding"
MODEL = "all-MiniLM-L6-v2"
OURS, THEIRS = "secateur", "sentence-transformers"
MAX_TOKENS = 256
DEFAULT_BATCH = 32
BATCHES = {"cpu": (16, 32, 64, 128), "cuda": (32, 128, 512, 2048)}
COLUMNS = [
    *("data", "device", "method", "dtype", "batch", "texts", "rows_per_second", "tokens_per_second"),
    *("times_st_float32_default", "times_st_float32_best", "times_st_bfloat16_best", "cosine_mean", "cosine_least"),
]


@dataclass(frozen=True)
class Method:
    """One way to embed."""

    name: str
    dtype: str
    batch: str
    run: Callable[[Sequence[str]], Float32]


def data_sets(count: int) -> dict[str, list[str]]:
    """Texts of the shipped data, repeated in turn up to `count`."""
    short = pq.read_table(ROOT / "data" / "banking77.parquet")["text"].to_pylist()
    long = sorted(set(pq.read_table(ROOT / "data" / "squad20_dev.parquet")["context"].to_pylist()))
    answers = pq.read_table(ROOT / "data" / "dolly_3k.parquet")["output"].to_pylist()
    mixed = [text for text in chain.from_iterable(zip_longest(short[: 3 * len(long)], long, answers)) if text]
    whole = {"banking77": short, "squad contexts": long, "mixed": mixed}
    return {name: list(islice(cycle(texts), count)) for name, texts in whole.items()}


def plain_copy(folder: Path) -> None:
    """Write the embedded model with its weights multiplied out to float32, for sentence-transformers."""
    embedded = ModelFolder(MODEL, embedded_folder(MODEL))
    shutil.copytree(embedded.root, folder, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in embedded.tensors().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def sentence_transformers(folder: Path, device: str, dtype: str) -> Callable[..., Float32]:
    """`encode` of a fresh model, with the batch size as an argument."""
    model = SentenceTransformer(str(folder), device=device, model_kwargs={"dtype": getattr(torch, dtype)})

    def run(texts: Sequence[str], *, batch: int) -> Float32:
        found = model.encode(list(texts), batch_size=batch, convert_to_tensor=True, show_progress_bar=False)
        return found.float().cpu().numpy()

    return run


def ours(folder: Path, device: str, dtype: str) -> Callable[[Sequence[str]], Float32]:
    """`embed_texts` on a worker of this process."""
    worker = LocalWorker([ModelSpec(MODEL, str(folder), dtype=dtype)], device=device)
    return lambda texts: embed_texts(worker, texts, model=MODEL).vectors


def seconds(method: Method, texts: Sequence[str], device: str) -> tuple[float, Float32]:
    """Time of one run, the device idle before and after."""
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    vectors = method.run(texts)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, vectors


def dtypes(device: str) -> tuple[str, ...]:
    """Precisions that the device has instructions for."""
    native = device == "cuda" or bool({"amx_bf16", "avx512_bf16"} & cpu_flags())
    return ("float32", "bfloat16") if native else ("float32",)


def methods(folder: Path, device: str, texts: Sequence[str]) -> list[Method]:
    """Ours in each precision, sentence-transformers in each at its default and at its best batch size."""
    found = [Method(OURS, dtype, "", ours(folder, device, dtype)) for dtype in dtypes(device)]
    sample = texts[: max(2 * DEFAULT_BATCH, len(texts) // 4)]
    for dtype in dtypes(device):
        encode = sentence_transformers(folder, device, dtype)
        sized = [Method(THEIRS, dtype, str(batch), partial(encode, batch=batch)) for batch in BATCHES[device]]
        sized[0].run(sample[:DEFAULT_BATCH])
        times = [seconds(method, sample, device)[0] for method in sized]
        best = sized[int(np.argmin(times))]
        found += [method for method in sized if method is best or method.batch == str(DEFAULT_BATCH)]
    return found


def speedups(times: list[list[float]], chosen: list[Method], place: int) -> dict[str, float]:
    """How many times faster one method is than each kind of sentence-transformers, medians over the turns."""
    found = {}
    for key, dtype, batch in (
        ("times_st_float32_default", "float32", str(DEFAULT_BATCH)),
        ("times_st_float32_best", "float32", None),
        ("times_st_bfloat16_best", "bfloat16", None),
    ):
        others = [
            other
            for other, method in enumerate(chosen)
            if method.name == THEIRS and method.dtype == dtype and batch in {None, method.batch}
        ]
        if others:
            found[key] = statistics.median(min(turn[other] for other in others) / turn[place] for turn in times)
    return found


def measure(data: str, texts: list[str], *, folder: Path, device: str, repeats: int, again: bool) -> None:
    """Time all methods in turns on one data set and record a row for each; the cosines are to the first of theirs."""
    whole = {"data": data, "texts": len(texts), "device": device, "repeats": repeats, "model": MODEL}
    if device == "cpu":
        whole["processor"] = f"{processor()}, {os.cpu_count()} cores"
    configs = [{**whole, "method": name, "dtype": dtype} for name in (OURS, THEIRS) for dtype in dtypes(device)]
    if not again and all(finished(NAME, config) for config in configs):
        print(f"{data}: measured already")
        return
    chosen = methods(folder, device, texts)
    vectors = [method.run(texts) for method in chosen]
    reference = next(v for method, v in zip(chosen, vectors, strict=True) if method.name == THEIRS)
    times = [[seconds(method, texts, device)[0] for method in chosen] for _ in range(repeats)]
    tokens = int(np.minimum(count_tokens("default", texts), MAX_TOKENS).sum())
    for place, method in enumerate(chosen):
        own = [turn[place] for turn in times]
        if method.name == THEIRS and min(own) > min(turn[other] for turn in times for other in same(chosen, method)):
            continue
        cosine = np.einsum("ij,ij->i", vectors[place], reference) / np.linalg.norm(vectors[place], axis=1)
        row: Row = {
            "batch": method.batch,
            "rows_per_second": len(texts) / statistics.median(own),
            "tokens_per_second": tokens / statistics.median(own),
            "seconds": [round(value, 4) for value in own],
            "cosine_mean": float(cosine.mean()),
            "cosine_least": float(cosine.min()),
            **speedups(times, chosen, place),
        }
        record(NAME, row, {**whole, "method": method.name, "dtype": method.dtype})
        print(f"{data}: {method.name} {method.dtype} {method.batch}: {row['rows_per_second']:,.0f} rows/s", flush=True)


def same(chosen: list[Method], method: Method) -> list[int]:
    """Places of the methods that differ from one at most in batch size."""
    return [at for at, other in enumerate(chosen) if (other.name, other.dtype) == (method.name, method.dtype)]


def main() -> None:
    """Measure what is not measured yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--texts", type=int, default=1000, help="Texts of each data set.")
    parser.add_argument("--repeats", type=int, default=5, help="Turns.")
    parser.add_argument("--again", action="store_true", help="Measure finished rows again.")
    parser.add_argument("--table", action="store_true", help="Only print the table.")
    options = parser.parse_args()
    if not options.table:
        with tempfile.TemporaryDirectory() as scratch:
            plain_copy(Path(scratch))
            for data, texts in data_sets(options.texts).items():
                measure(
                    data,
                    texts,
                    folder=Path(scratch),
                    device=options.device,
                    repeats=options.repeats,
                    again=options.again,
                )
    print(table(NAME, COLUMNS))


if __name__ == "__main__":
    main()
