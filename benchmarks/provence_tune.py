"""Where the time of a DeBERTa-v3-large shape goes on a GPU, and what ways to compute its attention give.

    python -m benchmarks.provence_tune --out FILE      # about a minute on an H100

Texts are those of `provence_speed`, cut into the batches that a worker makes of a window; the model has the shape's
layers, but fewer of them. Every variant is compared with the sums in float32 before it is timed. `useful` arithmetic is
that of `provence_speed`, without tokenising and decisions: what it loses against that is the host's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import provence_speed as speed
from benchmarks.common import Row, environment
from datapipe.workers.encoders import relative_kernel
from datapipe.workers.encoders.attention import TILE, Spans
from datapipe.workers.encoders.relative import Distances, Relative, attend_relative
from datapipe.workers.encoders.relative_kernel import Tiling
from datapipe.workers.folder import ModelFolder
from datapipe.workers.pack import pack
from provence.families import open_model
from provence.prepare import Preparer
from provence.task import PruneItem, PruneTask
from provence.tokens import UnitTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CUDA = torch.device("cuda")
LAYERS, DIM, INNER, HEADS = 4, 1024, 4096, 16
WEIGHTS = 4 * DIM * DIM + 2 * DIM * INNER
TOKENS = 65_536
ROUNDS = 3
OWN = "the encoder's own"
VARIANTS: dict[str, Tiling | None] = {
    OWN: None,
    "2 stages": Tiling(stages=2),
    "spaced 4, 2 stages": Tiling(spaced=4, stages=2),
    "spaced 8": Tiling(spaced=8),
    "spaced 8, 2 stages": Tiling(spaced=8, stages=2),
    "spaced 8, 3 stages": Tiling(spaced=8, stages=3),
    "32 keys": Tiling(keys=32),
    "2 tiles, 8 warps": Tiling(tiles=2, warps=8),
    "128 keys": Tiling(keys=128),
}


class Window:
    """A few layers of the shape, and the batches that a worker makes of a window of items."""

    def __init__(self, place: Path) -> None:
        speed.write_deberta(place, layers=LAYERS)
        folder = ModelFolder("tune", place)
        self.model = open_model(folder, device=CUDA, dtype=torch.bfloat16, max_length=None)
        self.preparer = Preparer(UnitTokenizer(folder), self.model.conduct, max_length=512)
        items = [PruneItem(question, text) for question, text in speed.pairs_of(PruneTask.window_items)]
        fresh, prepared = seconds(lambda: self.preparer.prepare_many(items))
        cached, _ = seconds(lambda: self.preparer.prepare_many(items))
        self.host = {"prepare_fresh_us": 1e6 * fresh / len(items), "prepare_cached_us": 1e6 * cached / len(items)}
        windows = [window.ids for text in prepared for window in text.windows]
        lengths = [len(ids) for ids in windows]
        chunks = pack(lengths, token_budget=TOKENS, max_items=len(windows), padded=False)
        self.batches = [[windows[place] for place in chunk] for chunk in chunks]
        self.lengths = lengths
        self.useful = speed.flops_of(lengths, layers=LAYERS, dim=DIM, weights=LAYERS * WEIGHTS)

    def run(self) -> None:
        """All batches."""
        for batch in self.batches:
            self.model.heads(batch)


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """On the host's clock, and what came out."""
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def device_ms(call: Callable[[], Any], *, rounds: int = ROUNDS) -> list[float]:
    """Milliseconds between two events around the call, several times, after one that does not count."""
    call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return times


@contextmanager
def chosen(tiling: Tiling | None) -> Iterator[None]:
    """Attention of encoders the way of a variant."""
    kernel = relative_kernel.attend_relative_tiled
    if tiling is not None:
        relative_kernel.attend_relative_tiled = partial(kernel, tiling=tiling)
    try:
        yield
    finally:
        relative_kernel.attend_relative_tiled = kernel


def distance(tiling: Tiling | None) -> float:
    """How far attention is from its sums in float32, relative to them, over texts of many lengths."""
    generator = torch.Generator(device=CUDA).manual_seed(time.time_ns() % 2**31)
    lengths = sorted(torch.randint(1, 512, (48,)).tolist(), reverse=True)
    distances = Distances.of(buckets=256, furthest=512, positions=512, device=CUDA)
    head = DIM // HEADS
    keys, queries = torch.randn((2, HEADS, 512, head), device=CUDA, generator=generator).bfloat16() * 0.1
    qkv = torch.randn((sum(lengths), 3 * DIM), device=CUDA, generator=generator).bfloat16()
    spans = Spans.of([torch.zeros(length, dtype=torch.int32).numpy() for length in lengths], CUDA)
    relative = Relative(distances, keys, queries, scale=(3 * head) ** -0.5)
    wide = Relative(distances, keys.float(), queries.float(), relative.scale)
    exact = attend_relative(qkv.float(), spans, wide, heads=HEADS)
    with chosen(tiling):
        found = relative_kernel.attend_relative_tiled(qkv, spans, relative, heads=HEADS, tile=TILE)
    return float((found.float() - exact).norm() / exact.norm())


def profile(window: Window, *, most: int = 14) -> dict[str, float]:
    """Milliseconds of the kernels that take most, a layer and a full batch, and of what the device stood idle."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
        window.run()
        torch.cuda.synchronize()
    share = 1e-3 / LAYERS / (sum(window.lengths) / TOKENS)
    spent = {event.key[:90]: event.self_device_time_total * share for event in profiled.key_averages()}
    busy = sum(spent.values())
    found = dict(sorted(spent.items(), key=lambda pair: -pair[1])[:most])
    return {**found, "all": busy, "wall": statistics.median(device_ms(window.run)) * 1e3 * share}


def pieces() -> dict[str, float]:
    """Rates of what a layer is made of, by itself, over a full batch: TFLOP/s of products, ms and TB/s of the rest."""
    found: dict[str, float] = {}
    narrow, wide = (torch.randn(TOKENS, width, device=CUDA).bfloat16() for width in (DIM, INNER))
    sums = torch.randn(TOKENS, DIM, device=CUDA)
    weight = torch.ones(DIM, device=CUDA)
    for name, operand, width in (
        ("qkv", narrow, 3 * DIM),
        ("out", narrow, DIM),
        ("up", narrow, INNER),
        ("down", wide, DIM),
    ):
        matrix = (torch.randn(width, operand.shape[1], device=CUDA) * 0.02).bfloat16().t()
        bias = torch.randn(width, device=CUDA).bfloat16()
        ms = statistics.median(device_ms(partial(torch.addmm, bias, operand, matrix), rounds=5))
        found[f"{name}_tflops"], found[f"{name}_ms"] = 2e-9 * TOKENS * operand.shape[1] * width / ms, ms
    gelu = statistics.median(device_ms(lambda: torch.ops.aten.gelu_(wide), rounds=5))
    found["gelu_ms"], found["gelu_tb_s"] = gelu, 2e-9 * wide.nbytes / gelu
    from datapipe.workers.encoders.kernels import add_norm

    norm = partial(add_norm, sums, narrow, None, weight, weight, 1e-7, dtype=torch.bfloat16)
    ms = statistics.median(device_ms(norm, rounds=5))
    found["add_norm_ms"], found["add_norm_tb_s"] = ms, 12e-9 * sums.numel() / ms
    up, down = ((torch.randn(DIM, INNER, device=CUDA) * 0.02).bfloat16() for _ in range(2))
    biases = [torch.zeros(width, device=CUDA).bfloat16() for width in (INNER, DIM)]

    def halves(rows: int) -> None:
        for part in torch.split(narrow, rows):
            inner = torch.ops.aten.gelu_(torch.addmm(biases[0], part, up))
            torch.addmm(biases[1], inner, down.t())

    for rows in (TOKENS, 8192, 4096):  # below, what lies between both products stays in the cache
        found[f"second_half_{rows}_rows_ms"] = statistics.median(device_ms(partial(halves, rows), rounds=5))
    source = torch.randn(1 << 28, device=CUDA)
    found["copy_tb_s"] = 2e-9 * source.nbytes / min(device_ms(partial(torch.clone, source), rounds=5))
    found["product_tflops"] = speed.product_rate("cuda", "bfloat16") / 1e12
    return found


def main() -> None:
    """Compare, time, profile; everything found goes to the file after each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=80.0, help="seconds after which no variant begins")
    arguments = parser.parse_args()
    begun, rows = time.monotonic(), []

    def keep(row: Row) -> None:
        rows.append(row)
        arguments.out.write_text(json.dumps({"rows": rows, **environment()}, indent=1))
        shown = {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}
        print(f"{time.monotonic() - begun:5.1f} s", json.dumps(shown), flush=True)

    with tempfile.TemporaryDirectory() as place:
        window = Window(Path(place) / "model")
    keep({"what": "host", **window.host, "batches": [len(batch) for batch in window.batches]})
    best, fastest = "", 1e9
    for name, tiling in VARIANTS.items():
        if time.monotonic() - begun > arguments.limit:
            keep({"what": "variant", "name": name, "left_out": "no time"})
            continue
        row: Row = {"what": "variant", "name": name, "tiling": None if tiling is None else asdict(tiling)}
        try:
            row["relative_error"] = distance(tiling)
            with chosen(tiling):
                times = device_ms(window.run)
        except Exception as error:  # noqa: BLE001 - the machine is lent by the minute
            keep({**row, "failed": f"{type(error).__name__}: {error}"[:500]})
            continue
        ms = statistics.median(times)
        keep({**row, "ms": times, "useful_tflops": 1e-9 * window.useful / ms})
        if row["relative_error"] < 1e-2 and ms < fastest:
            best, fastest = name, ms
    for name in (OWN, best):
        with chosen(VARIANTS[name]):
            keep({"what": "profile, ms a layer of 65,536 tokens", "name": name, **profile(window)})
    keep({"what": "pieces", **pieces()})
    keep({"what": "best", "name": best})


if __name__ == "__main__":
    main()
