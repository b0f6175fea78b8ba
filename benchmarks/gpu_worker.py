"""The worker part of the GPU benchmark: a whole bulk call, on one GPU and on all of this machine.

From strings, and from token ids: the tokenizer runs on the CPU and may be what limits the first, the second shows what
the queue, the lanes and the results cost beside the device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from benchmarks.gpu_measure import rates, seconds
from benchmarks.gpu_models import MINILM
from datapipe.embedding.text import count_tokens, embed_texts
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.embed import Embedding
from datapipe.workers.tasks.lookup import register
from datapipe.workers.tokenizer import Tokens
from datapipe.workers.worker import LocalWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from benchmarks.common import Row
    from benchmarks.gpu_measure import Bench
    from datapipe.storage.arrays import Int32


@dataclass(frozen=True, slots=True)
class IdsItem:
    """A text as token ids.

    Attributes:
        ids: int32 (tokens,).
    """

    ids: Int32


@register
class EmbedIds:
    """Embed texts that are token ids already, on the model of the task `embed`."""

    name: ClassVar[str] = "embed-ids"
    derives_from: ClassVar[str] = "embed"
    item_type: ClassVar[type] = IdsItem
    result_type: ClassVar[type] = Embedding

    def __init__(self, base: Any) -> None:
        self._base = base
        self.padded, self.dim, self.nbytes = base.padded, base.dim, base.nbytes

    @classmethod
    def over(cls, base: Any) -> Self:
        """See `DerivedTask.over`."""
        return cls(base)

    @classmethod
    def item_schema(cls) -> pa.Schema:
        """Never sent anywhere."""
        raise NotImplementedError

    @classmethod
    def result_schema(cls) -> pa.Schema:
        """Never sent anywhere."""
        raise NotImplementedError

    def prepare_many(self, items: Sequence[IdsItem], *, first: int = 0) -> list[Tokens]:
        """Nothing is left to do."""
        return [Tokens(item.ids, len(item.ids)) for item in items]

    def prepare(self, item: IdsItem) -> Tokens:
        """See `prepare_many`."""
        return self.prepare_many([item])[0]

    def forward(self, batch: Sequence[Tokens]) -> Any:
        """As the task `embed`."""
        return self._base.forward(batch)

    def finish(self, raw: Any, prepared: Tokens) -> Any:
        """As the task `embed`."""
        return self._base.finish(raw, prepared)


def worker(bench: Bench) -> None:
    """Measure what is not measured yet."""
    counts = sorted({1, torch.cuda.device_count()})
    if len(counts) == 1:
        print("worker: this machine has one GPU, so rows for several are not measured")
    for name in (MINILM, "XLM-R-base"):
        for data in ("squad contexts", "mixed"):
            for items in ("texts", "token ids"):
                for devices in counts:
                    config: Row = {"part": "worker", "model": name, "data": data, "items": items, "devices": devices}
                    bench.measure(config, partial(_measure, bench, name, data, items, devices))


def _measure(bench: Bench, name: str, data: str, items: str, devices: int) -> Row:
    model = bench.model(name)
    ids = bench.token_ids(name, data, tokens=devices * bench.tokens)
    texts = (bench.texts[data] * (len(ids) // len(bench.texts[data]) + 1))[: len(ids)]
    spec = ModelSpec(name, str(model.folder), max_length=model.max_length)
    with LocalWorker([spec], device=",".join(f"cuda:{index}" for index in range(devices))) as running:
        run: Callable[[], object] = (
            partial(embed_texts, running, texts, model=name)
            if items == "texts"
            else partial(running.run, "embed-ids", [IdsItem(text) for text in ids], model=name)
        )
        row = rates(bench, model, ids, seconds(run, bench.repeats))
    row |= {"ceiling_tflops": devices * bench.ceiling, "share_of_ceiling": row["share_of_ceiling"] / devices}
    begin = time.perf_counter()
    count_tokens("default", texts)
    return row | {"tokens_per_second_of_tokenizer": row["tokens"] / (time.perf_counter() - begin)}
