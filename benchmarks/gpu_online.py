"""The online part of the GPU benchmark: how long a batch of 1, 8 or 32 texts takes, from token ids to vectors.

Eager, by graphs, and compiled; with the device to itself, and beside a stream of lower priority that computes bulk
batches all the time. Each measurement goes through many batches of different texts, after one pass that records or
compiles; the device is waited for after each batch, as a caller does.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu_measure import CUDA, batches_of
from benchmarks.gpu_models import MINILM
from benchmarks.gpu_variants import compiled_once, embed_all, least_cosine
from datapipe.workers.encoders.graphs import replaying
from datapipe.workers.encoders.pooling import pool
from datapipe.workers.encoders.transfer import to_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.common import Row
    from benchmarks.gpu_measure import Batch, Bench

ROUNDS = 120
SIZES = (1, 8, 32)
COMPILED = (MINILM,)
"""Models that are compiled too; the compilation takes longer than all the rest."""


def online(bench: Bench, *, compiled: bool) -> None:
    """Measure what is not measured yet."""
    for name in (MINILM, "BERT-base", "ModernBERT-base"):
        for beside in ("nothing", "bulk"):
            for texts in SIZES:
                for variant in ("eager", "graphs", *(("compiled",) if compiled and name in COMPILED else ())):
                    config: Row = {
                        "part": "online",
                        "model": name,
                        "texts": texts,
                        "beside": beside,
                        "variant": variant,
                    }
                    bench.measure(config, partial(_measure, bench, name, texts, beside, variant))


def _measure(bench: Bench, name: str, texts: int, beside: str, variant: str) -> Row:
    encoder = bench.encoder(name)
    ids = bench.token_ids(name, "mixed", tokens=texts * ROUNDS * 100)
    order = np.random.default_rng(0).permutation(len(ids))[: texts * ROUNDS].reshape(-1, texts)
    batches = [[ids[place] for place in sorted(some, key=lambda at: -len(ids[at]))] for some in order]
    run = compiled_once(encoder).hidden if variant == "compiled" else encoder.hidden

    def vectors(batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            return pool(run(batch), [len(text) for text in batch], mode="mean", normalised=True)

    eager = [embed_all(encoder, [batch]) for batch in batches[:50]]
    with _bulk(bench, name) if beside == "bulk" else nullcontext():
        stream = torch.cuda.Stream(CUDA, priority=-1)
        with torch.cuda.stream(stream), replaying(enabled=variant == "graphs"):
            begin = time.perf_counter()
            first = [vectors(batch) for batch in batches]
            stream.synchronize()
            warm = time.perf_counter() - begin
            times = []
            for batch in batches:
                begin = time.perf_counter()
                to_host(vectors(batch))
                times.append(time.perf_counter() - begin)
    pairs = list(zip(first, eager, strict=False))
    return {
        "p50_seconds": float(np.quantile(times, 0.5)),
        "p95_seconds": float(np.quantile(times, 0.95)),
        "first_pass_seconds": warm,
        "tokens": int(np.mean([sum(map(len, batch)) for batch in batches])),
        "same_bits_as_eager": float(np.mean([torch.equal(given, expected) for given, expected in pairs])),
        "cosine_to_eager_least": min(least_cosine(given, expected) for given, expected in pairs),
    }


@contextmanager
def _bulk(bench: Bench, name: str) -> Iterator[None]:
    """Two threads that keep a stream of ordinary priority full, as the bulk lanes of a worker do."""
    encoder, over = bench.encoder(name), threading.Event()
    batches = batches_of(bench.token_ids(name, "mixed", tokens=500_000))
    stream = torch.cuda.Stream(CUDA)

    def work(first: int) -> None:
        with torch.cuda.stream(stream):
            place = first
            while not over.is_set():
                batch = batches[place % len(batches)]
                to_host(embed_all(encoder, [batch]))
                place += 1

    threads = [threading.Thread(target=work, args=(first,)) for first in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
