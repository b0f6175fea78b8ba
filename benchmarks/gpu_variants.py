"""Parts of the GPU benchmark about the card and the kernels: ceilings, steps, attention, variants, profile."""

from __future__ import annotations

import copy
import types
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu_measure import BUDGET, CUDA, MODELS, batches_of, device_time, product_rate, rates, seconds
from benchmarks.gpu_models import MINILM
from datapipe.workers.encoders import attention, open_encoder, steps
from datapipe.workers.encoders.attention import Room, Spans, lay_out
from datapipe.workers.encoders.pooling import pool
from datapipe.workers.encoders.steps import FusedSteps, Norm, PlainSteps, Rotation
from datapipe.workers.encoders.transfer import to_device, to_host
from datapipe.workers.folder import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.common import Row
    from benchmarks.gpu_measure import Batch, Bench
    from datapipe.workers.encoders import Encoder

ROWS = 65_536
HEADS = 12
HUGE = 1 << 30


def ceilings(bench: Bench) -> None:
    """What the card does at best: products, each model's products, copies on the device and to the host."""

    def measure(what: str, run: Callable[[], Row], **more: str) -> None:
        bench.measure({"part": "ceilings", "what": what, **more}, run)

    measure("product 8192^3", lambda: {"tflops": bench.ceiling})
    measure("copy of 4 GiB on the device", _copy)
    for name in MODELS:
        measure(f"products of a layer, {ROWS} tokens", partial(_own_products, bench, name), model=name)
    measure("vectors of 2048 texts to the host, 384 wide", _transfer)
    measure("4,096 texts of 16 tokens laid out and sent to the device", _laid_out)


def _copy() -> Row:
    source = torch.randn(1 << 30, device=CUDA)
    target = torch.empty_like(source)
    return {"bytes_per_second": 2 * source.nbytes / device_time(lambda: target.copy_(source))}


def _transfer() -> Row:
    vectors = torch.randn(2048, 384, device=CUDA)
    plain, pinned = seconds(lambda: vectors.cpu().numpy(), 30), seconds(lambda: to_host(vectors), 30)
    return {"pageable_seconds": float(np.median(plain)), "pinned_seconds": float(np.median(pinned))}


def _laid_out() -> Row:
    batch, room = [np.ones(16, np.int32)] * 4096, Room(16 * 4096, 4096)
    return {"seconds": float(np.median(seconds(lambda: to_device(lay_out(batch, room), CUDA), 10)))}


def _own_products(bench: Bench, name: str) -> Row:
    """TFLOP/s over the four products of a layer, with biases as the encoder has them, in both layouts of the weight."""
    products = bench.model(name).products
    work = [2 * ROWS * rows * columns / 1e12 for rows, columns in products]
    found: Row = {}
    for layout, transposed in (("out_in", True), ("in_out", False)):
        biased = not name.startswith("Modern")
        each = [product_rate(ROWS, rows, columns, transposed=transposed, biased=biased) for rows, columns in products]
        found[f"tflops_{layout}"] = sum(work) / sum(w / rate for w, rate in zip(work, each, strict=True))
        found[f"tflops_each_{layout}"] = [round(rate, 1) for rate in each]
    return found


def step_rates(bench: Bench) -> None:
    """Bytes a second of the steps between products, each array counted once, by torch and by our kernels."""
    for dim in (384, 768):
        for what in ("add and norm", "gate", "rotate"):
            for by in (PlainSteps(), FusedSteps()):
                config: Row = {"part": "steps", "what": what, "dim": dim, "steps": by.name}
                bench.measure(config, partial(_step_rate, what, dim, by))


def _step_rate(what: str, dim: int, by: steps.Steps) -> Row:
    moved, run = _step(what, dim, by)
    return {"bytes_per_second": moved / device_time(run)}


def _step(what: str, dim: int, by: steps.Steps) -> tuple[int, Callable[[], object]]:
    """Bytes that a step has to move, and the step."""
    if what == "add and norm":
        sums, update = torch.randn(ROWS, dim, device=CUDA), torch.randn(ROWS, dim, device=CUDA, dtype=torch.bfloat16)
        norm = Norm(torch.randn(dim, device=CUDA), torch.randn(dim, device=CUDA), 1e-12)
        return 2 * (sums.nbytes + update.nbytes), lambda: by.add_norm(sums, update, norm=norm, kept="norm")
    wide = torch.randn(ROWS, 3 * dim, device=CUDA, dtype=torch.bfloat16)
    if what == "gate":
        return wide.nbytes * 3 // 2, lambda: by.gate(wide)
    spans = Spans.of([np.ones(128, np.int32)] * (ROWS // 128), CUDA)
    angles = torch.rand(128, dim // HEADS // 2, device=CUDA)
    rotation = Rotation(angles.cos(), angles.sin())
    return wide.nbytes * 4 // 3, lambda: by.rotate(wide, rotation, spans, heads=HEADS)


def attention_rates(bench: Bench) -> None:
    """Seconds of attention over 65,536 tokens by text length: the variable-length kernel, and the tiled one."""
    for head, window in ((32, None), (64, None), (64, 64)):
        for length in (16, 32, 64, 128, 256, 512) if window is None else (256, 2048):
            config: Row = {"part": "attention", "head": head, "window": window, "length": length}
            bench.measure(config, partial(_attention, head, window, length))


def _attention(head: int, window: int | None, length: int) -> Row:
    qkv = torch.randn(ROWS, 3 * HEADS * head, device=CUDA, dtype=torch.bfloat16)
    batch = [np.ones(length, np.int32)] * (ROWS // length)
    spans = Spans.of(batch, CUDA)
    found: Row = {"varlen": device_time(partial(attention.attend, qkv, spans, heads=HEADS, window=window))}
    for tile, keys in ((64, 64), (128, 64), (128, 128)):
        found[f"tiled_{tile}_{keys}"] = _tiled_time(qkv, batch, window, tile, keys)
    return found


def _tiled_time(qkv: torch.Tensor, batch: Batch, window: int | None, tile: int, keys: int) -> float:
    from datapipe.workers.encoders.kernels import attend_tiled

    with replaced(attention, "TILE", tile):
        spans = Spans.of(batch, CUDA)
    return device_time(
        lambda: attend_tiled(qkv, spans.places, spans.tiles, heads=HEADS, window=window, tile=tile, keys=keys)
    )


class Compiled:
    """An encoder whose forward pass goes through `torch.compile`, with torch's own steps for it to fuse.

    Args:
        encoder: One of ours; it stays as it is.
    """

    def __init__(self, encoder: Any) -> None:
        plain = copy.copy(encoder)
        plain._steps = PlainSteps()  # noqa: SLF001

        def states(*arrays: torch.Tensor, longest: int) -> torch.Tensor:
            found: torch.Tensor = plain._states(Spans(*arrays, lengths=[], longest=longest))  # noqa: SLF001
            return found

        self._padding = encoder._padding  # noqa: SLF001
        self._forward = torch.compile(states, dynamic=True)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """See `Encoder.hidden`."""
        spans = Spans.of(batch, CUDA, padding=self._padding)
        arrays = (spans.ids, spans.places, spans.rows, spans.bounds, spans.tiles)
        found: torch.Tensor = self._forward(*arrays, longest=spans.longest)
        return found


@cache
def compiled_once(encoder: Encoder) -> Compiled:
    """The same for the same encoder, since compiling takes long."""
    return Compiled(encoder)


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Another value of an attribute, for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def embed_all(encoder: Encoder | Compiled, batches: Sequence[Batch]) -> torch.Tensor:
    """Vectors of all batches, on the device; nothing waits."""
    with torch.inference_mode():
        return torch.cat(
            [pool(encoder.hidden(b), [len(ids) for ids in b], mode="mean", normalised=True) for b in batches]
        )


def variants(bench: Bench, *, compiled: bool) -> None:
    """The unpadded path with one thing changed at a time, and how its vectors lie to those of float32 arithmetic."""
    for name, data in ((MINILM, "banking77"), (MINILM, "mixed"), ("BERT-base", "mixed"), ("ModernBERT-base", "mixed")):
        names = [*_changes(name), *(f"{budget} tokens a batch" for budget in (8192, 16_384, 32_768, 131_072))]
        names += ["compiled"] if compiled and name == MINILM else []
        for variant in names if data == "mixed" else ["as it is", "plain steps", "varlen only", "tiled only"]:
            config: Row = {"part": "variants", "model": name, "data": data, "variant": variant}
            bench.measure(config, partial(_variant, bench, name, data, variant))


def _changes(name: str) -> dict[str, tuple[Any, str, object]]:
    """What is replaced in an encoder or a module, by the name of the variant."""
    found: dict[str, tuple[Any, str, object]] = {
        "as it is": (None, "", None),
        "plain steps": (None, "_steps", PlainSteps()),
        "varlen only": (steps, "TILED_UP_TO", 0),
        "tiled only": (steps, "TILED_UP_TO", HUGE),
    }
    if not name.startswith("Modern"):
        found["gelu by tanh, in the product"] = (None, "_inner", _epilogue)
    return found


def _epilogue(_: object, operand: torch.Tensor, up: Any) -> torch.Tensor:
    return torch.ops.aten._addmm_activation(up.bias, operand, up.weight, use_gelu=True)  # noqa: SLF001


def _variant(bench: Bench, name: str, data: str, variant: str) -> Row:
    encoder, ids, model = bench.encoder(name), bench.token_ids(name, data), bench.model(name)
    encoder = compiled_once(encoder) if variant == "compiled" else encoder
    owner, attribute, value = _changes(name).get(variant, (None, "", None))
    if isinstance(value, types.FunctionType):
        value = types.MethodType(value, encoder)
    if variant.endswith("a batch"):
        batches = batches_of(ids, budget=int(variant.removesuffix(" tokens a batch")), window=len(ids))
    else:
        batches = batches_of(ids)
    sample = batches_of(ids[:300])
    with replaced(owner or encoder, attribute, value) if attribute else nullcontext():
        row = rates(bench, model, ids, seconds(lambda: embed_all(encoder, batches), bench.repeats))
        row["cosine_to_float32_least"] = least_cosine(embed_all(encoder, sample), exact(bench, name, data, sample))
    return row


def exact(bench: Bench, name: str, data: str, batches: Sequence[Batch]) -> torch.Tensor:
    """Vectors of a sample by the same weights in float32, by torch's own functions, padded."""
    if (name, data) not in bench.exact:
        encoder = open_encoder(ModelFolder(name, bench.model(name).folder), device=CUDA, dtype=torch.float32)
        bench.exact[name, data] = embed_all(encoder, batches)
    return bench.exact[name, data]


def least_cosine(given: torch.Tensor, expected: torch.Tensor) -> float:
    """The worst cosine of two rows; both are of unit length."""
    return float((given.double() * expected.double()).sum(1).min())


def profile(bench: Bench) -> None:
    """Device seconds of one batch by kind of kernel."""
    for name in MODELS:
        bench.measure({"part": "profile", "model": name, "data": "mixed"}, partial(_profile, bench, name))


def _profile(bench: Bench, name: str) -> Row:
    encoder, batch = bench.encoder(name), batches_of(bench.token_ids(name, "mixed", tokens=4 * BUDGET))[0]
    embed_all(encoder, [batch])
    with torch.profiler.profile() as profiled:
        embed_all(encoder, [batch])
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    for event in profiled.key_averages():
        if event.device_type == torch.profiler.DeviceType.CUDA:
            found[_kind(event.key)] = found.get(_kind(event.key), 0.0) + event.self_device_time_total / 1e6
    return {"tokens": sum(map(len, batch)), **{kind: round(found[kind], 7) for kind in sorted(found)}}


def _kind(kernel: str) -> str:
    for kind, marks in {
        "attention": ("flash", "_attend_tiled"),
        "products": ("gemm", "cutlass", "nvjet", "xmma", "splitK"),
        "norms": ("_add_norm", "layer_norm"),
        "activations": ("_gate", "gelu", "Gelu", "GELU"),
        "rotations": ("_rotate",),
        "copies": ("Memcpy", "Memset"),
    }.items():
        if any(mark in kernel for mark in marks):
            return kind
    return "others"
