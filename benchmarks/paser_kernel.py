"""Divergence of two language models over the whole vocabulary, from hidden states: this project against others.

    python -m benchmarks.paser_kernel --liger liger_kernel-*.whl      # on a GPU
    python -m benchmarks.paser_kernel --case toy                      # rehearsal, anywhere

    states and heads of both, bfloat16 -> the ways below, in turns -> ms (median), GiB beyond the inputs, error in nats

Ways: `ours` (chunks of logits in two reused buffers, one Triton kernel over their rows), `ours, two streams` (the rows
of a chunk beside the products of the next), `torch` (all logits at once), `products` (the two matrix products alone, in
the same chunks and into the same float32 buffers), `products, bfloat16` (into bfloat16), `liger` (LinkedIn's fused
linear JSD, which also makes gradients and gives one number). Errors are against float64 on the same bfloat16 inputs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common import Row, record, table
from datapipe.paser.divergence import LN_2, rows_divergence, token_divergence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "paser_kernel"
CASES = {"large": (8192, 4096, 128_256), "small": (16_384, 576, 49_152), "toy": (300, 32, 1000)}
"""Tokens, width of a state, vocabulary."""
LOGIT_BYTES = (512 << 20, 256 << 20, 128 << 20)
"""Of a buffer of logits; the first is what `CausalModel` has on a GPU."""
TILES = ((4096, 8), (2048, 4), (2048, 8), (4096, 16), (8192, 16), (16_384, 32))
"""Columns that a program reads at a time, and its warps; the first is what the kernel has."""
SAMPLE = 256
REPEATS = 15
COLUMNS = [
    *("case", "way", "tile", "buffer_mib", "ms", "times_products", "times_torch", "gib_beyond_inputs", "error_nats"),
    *("identical_nats",),
]


class ProductHead:
    """A head that is one matrix, as `CausalModel` runs it: float32 logits into memory that stays."""

    def __init__(self, weight: torch.Tensor, *, nbytes: int = LOGIT_BYTES[0]) -> None:
        self.weight, self.vocabulary = weight, len(weight)
        self.chunk_rows = max(16, nbytes // (4 * self.vocabulary))
        self._buffers = [torch.empty((0, self.vocabulary), device=weight.device)] * 2

    def logits(self, states: torch.Tensor, *, buffer: int = 0) -> torch.Tensor:
        """Logits of the token after each state, float32 (rows, vocabulary)."""
        if len(self._buffers[buffer]) < len(states):
            shape = (min(self.chunk_rows, max(len(states), 1)), self.vocabulary)
            self._buffers[buffer] = torch.empty(shape, device=states.device)
        out = self._buffers[buffer][: len(states)]
        if states.is_cuda:
            return torch.mm(states, self.weight.t(), out_dtype=torch.float32, out=out)
        return out.copy_(states.float() @ self.weight.float().t())


@dataclass(frozen=True)
class Case:
    """Inputs: the pruned model's states and head are the original's with noise."""

    states_o: torch.Tensor
    states_p: torch.Tensor
    head_o: torch.Tensor
    head_p: torch.Tensor
    targets: torch.Tensor

    @classmethod
    def of(cls, name: str, device: str, *, spread: float = 4.0) -> Case:
        """Logits are normal with this standard deviation: a few tokens of the vocabulary have most of the mass."""
        tokens, dim, vocabulary = CASES[name]
        draws = torch.Generator(device).manual_seed(0)
        normal = {"generator": draws, "device": device}
        states = torch.randn(tokens, dim, **normal)
        head = torch.randn(vocabulary, dim, **normal) * (spread / dim**0.5)
        moved = states + 0.2 * torch.randn(tokens, dim, **normal)
        other = head + 0.05 * head.std() * torch.randn(vocabulary, dim, **normal)
        half = [each.bfloat16() for each in (states, moved, head, other)]
        return cls(*half, torch.randint(0, vocabulary, (tokens,), **normal))

    def exact(self, rows: int = SAMPLE) -> torch.Tensor:
        """Divergence of the first tokens in float64."""
        wide = [each[:rows].double() for each in (self.states_o, self.states_p)]
        a, b = (
            (states @ head.double().t()).log_softmax(1)
            for states, head in zip(wide, (self.head_o, self.head_p), strict=True)
        )
        middle = torch.logaddexp(a, b) - LN_2
        return 0.5 * ((a.exp() * (a - middle)).sum(1) + (b.exp() * (b - middle)).sum(1))


def ours(case: Case, *, nbytes: int) -> Callable[[], torch.Tensor]:
    """As the product runs it."""
    heads = [ProductHead(weight, nbytes=nbytes) for weight in (case.head_o, case.head_p)]
    return lambda: token_divergence(*heads, case.states_o, case.states_p, case.targets).jsd


def overlapped(case: Case, *, nbytes: int) -> Callable[[], torch.Tensor]:
    """The rows of a chunk on a stream of their own, while the products of the next chunk run."""
    heads = [ProductHead(weight, nbytes=nbytes // 2) for weight in (case.head_o, case.head_p)]
    beside = torch.cuda.Stream()
    step = heads[0].chunk_rows

    def run() -> torch.Tensor:
        main, parts, done = torch.cuda.current_stream(), [], [torch.cuda.Event(), torch.cuda.Event()]
        for turn, start in enumerate(range(0, len(case.targets), step)):
            some, buffer = slice(start, start + step), turn % 2
            if turn > 1:
                main.wait_event(done[buffer])
            logits = [
                head.logits(states[some], buffer=buffer)
                for head, states in zip(heads, (case.states_o, case.states_p), strict=True)
            ]
            beside.wait_stream(main)
            with torch.cuda.stream(beside):
                parts.append(rows_divergence(*logits, case.targets[some]))
                done[buffer].record(beside)
        main.wait_stream(beside)
        return torch.cat(parts)[:, 0]

    return run


def plain(case: Case) -> Callable[[], torch.Tensor]:
    """Plain torch: products in bfloat16, the rest in float32, all tokens at once."""
    from torch.nn.functional import kl_div

    def run() -> torch.Tensor:
        with torch.inference_mode():
            a = (case.states_o @ case.head_o.t()).float().log_softmax(1)
            b = (case.states_p @ case.head_p.t()).float().log_softmax(1)
            middle = torch.logaddexp(a, b) - LN_2
            left = kl_div(middle, a, reduction="none", log_target=True).sum(1)
            return 0.5 * (left + kl_div(middle, b, reduction="none", log_target=True).sum(1))

    return run


def products(case: Case, *, nbytes: int, wide: bool) -> Callable[[], None]:
    """The two matrix products, chunk by chunk, and nothing else."""
    heads = [ProductHead(weight, nbytes=nbytes) for weight in (case.head_o, case.head_p)]
    step = heads[0].chunk_rows
    half = torch.empty(
        (min(step, len(case.targets)), heads[0].vocabulary), dtype=torch.bfloat16, device=case.head_o.device
    )

    def run() -> None:
        for start in range(0, len(case.targets), step):
            for head, states in zip(heads, (case.states_o, case.states_p), strict=True):
                some = states[start : start + step]
                if wide:
                    head.logits(some)
                else:
                    torch.mm(some, head.weight.t(), out=half[: len(some)])

    return run


def liger(case: Case) -> Callable[[], torch.Tensor]:
    """Forward of Liger's fused linear JSD; the pruned model is its student. It gives the mean over the tokens."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    loss = LigerFusedLinearJSD(jsd_beta=0.5)

    def run() -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = loss(case.states_p, case.head_p, case.states_o, case.head_o, None)
        return found

    return run


def timed(run: Callable[[], Any], device: str, *, repeats: int) -> float:
    """Median ms of a run; the first two are not counted."""
    run()
    if device == "cpu":
        taken = []
        for _ in range(repeats):
            begun = time.perf_counter()
            run()
            taken.append(1e3 * (time.perf_counter() - begun))
        return statistics.median(taken)
    torch.cuda.synchronize()
    run()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks)


def peak(make: Callable[[], Callable[[], Any]], device: str) -> tuple[Callable[[], Any], float]:
    """The way, and the GiB that it and its first run took beyond what was there."""
    if device == "cpu":
        return make(), 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run = make()
    run()
    torch.cuda.synchronize()
    return run, (torch.cuda.max_memory_allocated() - before) / 2**30


def ways(case: Case, device: str, *, rival: bool) -> Iterator[tuple[Row, Callable[[], Callable[[], Any]]]]:
    """What is measured, in order: its config and what makes it."""
    first = LOGIT_BYTES[0]
    shown = {"tile": "", "buffer_mib": first >> 20}
    yield {"way": "products", **shown}, lambda: products(case, nbytes=first, wide=True)
    yield {"way": "products, bfloat16", **shown}, lambda: products(case, nbytes=first, wide=False)
    yield {"way": "torch", "tile": "", "buffer_mib": 0}, lambda: plain(case)
    if rival:
        yield {"way": "liger", "tile": "", "buffer_mib": 0}, lambda: liger(case)
    for tile in TILES if device == "cuda" else TILES[:1]:
        yield {"way": "ours", "tile": list(tile), "buffer_mib": first >> 20}, lambda: ours(case, nbytes=first)
    for nbytes in LOGIT_BYTES[1:]:
        config = {"way": "ours", "tile": list(TILES[0]), "buffer_mib": nbytes >> 20}
        yield config, lambda nbytes=nbytes: ours(case, nbytes=nbytes)  # type: ignore[misc]
    if device == "cuda":
        for nbytes in LOGIT_BYTES[:2]:
            config = {"way": "ours, two streams", "tile": list(TILES[0]), "buffer_mib": nbytes >> 20}
            yield config, lambda nbytes=nbytes: overlapped(case, nbytes=nbytes)  # type: ignore[misc]


def with_tile(tile: list[int] | str) -> None:
    """Set what the kernel reads at a time; only the benchmark ever changes it."""
    if tile and torch.cuda.is_available():
        from datapipe.paser import kernels

        kernels._BLOCK, kernels._WARPS = int(tile[0]), int(tile[1])  # noqa: SLF001


def measure(name: str, device: str, *, rival: bool, repeats: int) -> None:
    """All ways on one case, a row of the results each."""
    case = Case.of(name, device)
    exact, same = case.exact(), Case(case.states_o, case.states_o, case.head_o, case.head_o, case.targets)
    base: dict[str, float] = {}
    for config, make in ways(case, device, rival=rival):
        whole = {"case": name, **dict(zip(("tokens", "dim", "vocabulary"), CASES[name], strict=True)), **config}
        whole["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        with_tile(config["tile"])
        run, gib = peak(make, device)
        ms = timed(run, device, repeats=repeats)
        base.setdefault(config["way"], ms)
        row: Row = {"ms": round(ms, 3), "gib_beyond_inputs": round(gib, 3)}
        row |= {f"times_{way}": round(ms / base[way], 3) for way in ("products", "torch") if way in base}
        found = run()
        if found is not None and found.ndim:
            row["error_nats"] = float((found[:SAMPLE].double() - exact).abs().max())
            row["mean_nats"] = float(found.mean())
        elif found is not None:
            row["mean_nats"] = float(found)
        if config["way"].startswith("ours"):
            row["identical_nats"] = float(ours(same, nbytes=LOGIT_BYTES[0])().max())
        print(record(NAME, row, whole)["way"], config["tile"], row, flush=True)
        del run, found


def main() -> None:
    """Measure the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=["large", "small"])
    parser.add_argument("--liger", type=Path, help="wheel of liger-kernel; a wheel of pure Python is a path to import")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    asked = parser.parse_args()
    if asked.liger:
        sys.path.insert(0, str(asked.liger))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in asked.case:
        measure(name, device, rival=bool(asked.liger), repeats=asked.repeats)
    print(table(NAME, COLUMNS))


if __name__ == "__main__":
    main()
