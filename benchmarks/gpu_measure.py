"""What the parts of the GPU benchmark share: texts, batches, timing, and the ceilings of this card.

Times are those of the host around work that ends with the device idle; what waits for the device inside is said where
it is done. Medians over the repeats. A part begins nothing new once the time that the run was given is over.
"""

from __future__ import annotations

import statistics
import time
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, cycle, zip_longest
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.common import ROOT, Row, finished, record
from benchmarks.gpu_models import CONFIGS, MINILM, Model, open_model
from datapipe.weights import embedded_folder
from datapipe.workers.encoders import Encoder, open_encoder
from datapipe.workers.folder import ModelFolder
from datapipe.workers.pack import pack
from datapipe.workers.tokenizer import TextTokenizer
from datapipe.workers.worker import MAX_ITEMS, TOKEN_BUDGET, WINDOW_ITEMS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Int32

NAME = "gpu_embedding"
MODELS = (MINILM, *CONFIGS)
CUDA = torch.device("cuda")
BUDGET = TOKEN_BUDGET["cuda"]

Batch = list["Int32"]


def texts_of() -> dict[str, list[str]]:
    """Texts by data set: short questions, long contexts, and both mixed with answers."""
    short = pq.read_table(ROOT / "data" / "banking77.parquet")["text"].to_pylist()
    long = sorted(set(pq.read_table(ROOT / "data" / "squad20_dev.parquet")["context"].to_pylist()))
    dolly = pq.read_table(ROOT / "data" / "dolly_3k.parquet")
    answers = dolly["instruction"].to_pylist() + dolly["output"].to_pylist()
    mixed = [text for text in chain.from_iterable(zip_longest(short[: 3 * len(long)], long, answers)) if text]
    return {"banking77": short, "squad contexts": long, "mixed": mixed}


@dataclass
class Bench:
    """A run of the benchmark.

    Attributes:
        scratch: Where folders of random models lie.
        ends: When nothing new begins (`time.monotonic`).
        tokens: Real tokens of a bulk measurement of MiniLM; the larger models get half.
        repeats: Times that a bulk measurement is taken.
        again: Whether finished rows are measured again.
        left: What there was no time for.
        failed: What raised an error.
        exact: Vectors of a sample by model and data set, in float32.
    """

    scratch: Path
    ends: float
    tokens: int
    repeats: int
    again: bool
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    exact: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    _encoders: dict[str, Encoder] = field(default_factory=dict)
    _models: dict[str, Model] = field(default_factory=dict)

    def measure(self, config: Row, run: Callable[[], Row]) -> None:
        """Record and show what `run` finds, unless it is known or the time is over; what fails stops nothing else."""
        whole = {**config, "gpu": torch.cuda.get_device_name(), "dtype": "bfloat16"}
        words = " · ".join(str(value) for value in config.values())
        if finished(NAME, whole) and not self.again:
            return
        if time.monotonic() > self.ends:
            self.left.append(words)
            return
        try:
            row = run()
        except Exception as error:  # noqa: BLE001 - the machine is lent by the minute
            self.failed.append(f"{words}: {type(error).__name__}: {error}")
            traceback.print_exc()
            return
        record(NAME, row, whole)
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
        print(words, shown, flush=True)

    def model(self, name: str) -> Model:
        """A model, its folder made if it is not there."""
        if name not in self._models:
            self._models[name] = open_model(name, self.scratch)
        return self._models[name]

    def encoder(self, name: str) -> Encoder:
        """Its encoder on the GPU in bfloat16, loaded once."""
        if name not in self._encoders:
            folder = ModelFolder(name, self.model(name).folder)
            self._encoders[name] = open_encoder(folder, device=CUDA, dtype=torch.bfloat16)
            torch.cuda.synchronize()  # other streams read its tensors
        return self._encoders[name]

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        """Texts by data set."""
        return texts_of()

    def token_ids(self, name: str, data: str, *, tokens: int | None = None) -> Batch:
        """Token ids of a data set's texts, cut for a model, repeated in turn up to so many tokens."""
        key = (data, self.model(name).max_length)
        if key not in self._ids:
            folder = ModelFolder(MINILM, embedded_folder("all-MiniLM-L6-v2"))
            encoded = TextTokenizer(folder, max_length=key[1]).encode(self.texts[data])
            self._ids[key] = [text.ids for text in encoded]
        left = tokens or (self.tokens if name == MINILM else self.tokens // 2)
        found: Batch = []
        for ids in cycle(self._ids[key]):
            if left <= 0:
                return found
            found.append(ids)
            left -= len(ids)
        return found

    @cached_property
    def _ids(self) -> dict[tuple[str, int], Batch]:
        return {}

    @cached_property
    def ceiling(self) -> float:
        """TFLOP/s of a bfloat16 product of 8192^3 on random data, now."""
        return product_rate(8192, 8192, 8192)


def batches_of(ids: Batch, *, padded: bool = False, budget: int = BUDGET, window: int = WINDOW_ITEMS) -> list[Batch]:
    """Batches as a worker cuts them: windows of items, each sorted by length."""
    found = []
    for start in range(0, len(ids), window):
        part = ids[start : start + window]
        lengths = [len(text) for text in part]
        cut = pack(lengths, token_budget=budget, max_items=MAX_ITEMS, padded=padded)
        found += [[part[index] for index in batch] for batch in cut]
    return found


def batches_as_they_come(ids: Batch, *, budget: int = BUDGET) -> list[Batch]:
    """Batches in the order of the texts, each as many as fit when padded."""
    found: list[Batch] = []
    longest = 0
    for text in ids:
        longest = max(longest, len(text))
        if found and longest * (len(found[-1]) + 1) <= budget:
            found[-1].append(text)
        else:
            found.append([text])
            longest = len(text)
    return found


def filled(batch: Batch) -> Batch:
    """The texts of a batch, each as long as the longest: what a padded batch makes the device compute."""
    longest = max(len(text) for text in batch)
    return [np.resize(text, longest) for text in batch]


def seconds(run: Callable[[], object], repeats: int, *, warm: int = 1) -> list[float]:
    """Times of a run, the device idle before and after each."""
    for _ in range(warm):
        run()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return found


def device_time(run: Callable[[], object], *, least: float = 0.05) -> float:
    """Median seconds of a short piece of device work, by events, over at least `least` seconds."""
    run()
    torch.cuda.synchronize()
    found: list[float] = []
    while sum(found) < least or len(found) < 5:
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(5)]
        for begin, end in pairs:
            begin.record()
            run()
            end.record()
        torch.cuda.synchronize()
        found += [begin.elapsed_time(end) / 1000 for begin, end in pairs]
    return statistics.median(found)


def product_rate(rows: int, inner: int, columns: int, *, transposed: bool = True, biased: bool = False) -> float:
    """TFLOP/s of a bfloat16 product on random data; `transposed` keeps the right side as (columns, inner)."""
    left = torch.randn(rows, inner, device=CUDA, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=CUDA, dtype=torch.bfloat16)
    right = right.t().contiguous().t() if transposed else right
    bias = torch.randn(columns, device=CUDA, dtype=torch.bfloat16)
    run = (lambda: torch.addmm(bias, left, right)) if biased else (lambda: torch.mm(left, right))
    return 2 * rows * inner * columns / device_time(run) / 1e12


def rates(bench: Bench, model: Model, real: Sequence[Int32], times: Sequence[float]) -> Row:
    """Tokens and texts a second, useful operations a second, and their share of the ceiling."""
    took = statistics.median(times)
    lengths, counts = np.unique([len(text) for text in real], return_counts=True)
    work = sum(model.operations(int(length)) * int(count) for length, count in zip(lengths, counts, strict=True))
    useful, tokens = work / took / 1e12, int(lengths @ counts)
    return {
        "tokens_per_second": tokens / took,
        "texts_per_second": len(real) / took,
        "useful_tflops": useful,
        "ceiling_tflops": bench.ceiling,
        "share_of_ceiling": useful / bench.ceiling,
        "seconds": [round(value, 5) for value in times],
        "tokens": tokens,
        "texts": len(real),
    }
