"""A task without a model, whose device does what the items say: a fault can be put at one seam."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import pyarrow as pa

from datapipe.errors import ItemError
from datapipe.workers.tasks.lookup import register

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class EchoItem:
    length: int
    act: Callable[[], object] | None = None


class Ready(NamedTuple):
    item: EchoItem

    @property
    def length(self) -> int:
        return self.item.length


class Echo:
    """Gives each item its length back, after doing what the item says."""

    name: ClassVar[str] = "echo"
    item_type: ClassVar[type] = EchoItem
    result_type: ClassVar[type] = int
    padded = True
    dim = 0
    nbytes = 1
    batches: ClassVar[list[list[int]]] = []

    @classmethod
    def item_schema(cls) -> pa.Schema:
        return pa.schema([("length", pa.int64())])

    @classmethod
    def result_schema(cls) -> pa.Schema:
        return pa.schema([("length", pa.int64())])

    @classmethod
    def open(cls, *_: Any, **__: Any) -> Self:
        return cls()

    def prepare(self, item: EchoItem) -> Ready:
        return self.prepare_many([item])[0]

    def prepare_many(self, items: Sequence[EchoItem], *, first: int = 0) -> list[Ready]:
        for place, item in enumerate(items):
            if item.length < 1:
                raise ItemError(f"item {first + place} is empty", index=first + place)
        return [Ready(item) for item in items]

    def forward(self, batch: Sequence[Ready]) -> list[int]:
        self.batches.append([ready.length for ready in batch])
        done = [ready.item.act() for ready in batch if ready.item.act is not None]
        return [] if "short" in done else [ready.length for ready in batch]

    def finish(self, raw: int, prepared: Ready) -> int:
        assert raw == prepared.length
        return raw


class Held:
    """An item whose batch runs until it is let go."""

    def __init__(self, length: int) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.item = EchoItem(length, self._hold)

    def _hold(self) -> None:
        self.begun.set()
        assert self.may_end.wait(30)


register(Echo)
