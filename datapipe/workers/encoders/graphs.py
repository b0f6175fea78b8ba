"""CUDA graphs for small batches: a forward pass recorded once a size, then started with one call.

A BERT starts about a hundred kernels a batch. For a few short texts that takes the host longer than the device needs,
longer still while other threads hold the interpreter. So a lane that answers single requests says `replaying()`; there
a small batch is laid out with room up to the next size of `TOKENS`, copied into the memory of a recorded graph, and the
graph is replayed. What is over stands for no text. Products of another size may be added up in another order, so the
last bits may differ from those of an eager pass: lanes whose results are to be reproduced never say `replaying()`.

Graphs belong to the thread and stream that recorded them, and go with the encoder. What cannot be recorded runs eagerly
for good, with one warning.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from datapipe.workers.encoders.attention import Room, Spans, lay_out
from datapipe.workers.encoders.steps import TILED_UP_TO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from datapipe.storage.arrays import Int32

__all__ = ["TEXTS", "TOKENS", "Replays", "replaying"]

_log = logging.getLogger(__name__)

DEFAULT = True
"""Whether `replaying()` replays unless told otherwise."""

TOKENS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Sizes that are recorded. Above the last, the device takes longer than the host."""

TEXTS = 64
"""Texts of a small batch."""

_KEPT = 20
"""Graphs of one lane and encoder, the least recently used given up first."""

_here = threading.local()
_recording = threading.Lock()  # torch allows one recording at a time in a process


@contextmanager
def replaying(*, enabled: bool | None = None) -> Iterator[None]:
    """Let encoders replay graphs for small batches on this thread; its current stream must be no other thread's.

    Args:
        enabled: None takes `DEFAULT`; false keeps every batch eager.
    """
    before = getattr(_here, "enabled", False)
    _here.enabled = DEFAULT if enabled is None else enabled
    try:
        yield
    finally:
        _here.enabled = before


class _Size(NamedTuple):
    """What a graph is recorded for: room for tokens, and the longest text that it may hold."""

    tokens: int
    longest: int

    @classmethod
    def of(cls, batch: Sequence[Int32]) -> _Size | None:
        """The least size that holds a batch; None if it is not small."""
        lengths = [len(ids) for ids in batch]
        tokens = sum(lengths)
        if tokens > TOKENS[-1] or len(batch) > TEXTS:
            return None
        room = TOKENS[bisect_left(TOKENS, tokens)]
        # Attention takes the same kernel as in an eager pass, which `longest` decides.
        return cls(room, min(room, TILED_UP_TO) if max(lengths) <= TILED_UP_TO else room)


@dataclass(frozen=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    arrays: torch.Tensor
    states: torch.Tensor


@dataclass
class _Lane:
    """The graphs of one thread and stream. They share memory, since no two of them ever run at once."""

    pool: Any
    graphs: OrderedDict[_Size, _Graph] = field(default_factory=OrderedDict)


class Replays:
    """The graphs of one encoder.

    Args:
        forward: Computes hidden states on the device without waiting for it, from `Spans` without lengths.
        device: Where.
        dtype: In which precision; only with a variable-length kernel is there anything to record.
        padding: See `lay_out`.
        allowed: False records nothing.
    """

    def __init__(
        self,
        forward: Callable[[Spans], torch.Tensor],
        *,
        device: torch.device,
        dtype: torch.dtype,
        padding: int | None,
        allowed: bool = True,
    ) -> None:
        import torch

        self._forward, self._device, self._padding = forward, device, padding
        self._possible = allowed and device.type == "cuda" and dtype in {torch.bfloat16, torch.float16}
        self._lanes = threading.local()

    def run(self, batch: Sequence[Int32]) -> torch.Tensor | None:
        """The hidden states of a small batch, memory of the caller's own; None if it has to be computed eagerly."""
        import torch

        if not self._possible or not getattr(_here, "enabled", False):
            return None
        size, stream = _Size.of(batch), torch.cuda.current_stream(self._device)
        if size is None or stream == torch.cuda.default_stream(self._device):
            return None
        arrays = torch.from_numpy(lay_out(batch, Room(size.tokens, TEXTS), padding=self._padding)).pin_memory()
        found = self._found(size, arrays, stream)
        if found is None:
            return None
        found.arrays.copy_(arrays, non_blocking=True)
        found.graph.replay()
        return found.states[: sum(len(ids) for ids in batch)].clone()

    def _found(self, size: _Size, arrays: torch.Tensor, stream: torch.cuda.Stream) -> _Graph | None:
        import torch

        lanes: dict[int, _Lane] = self._lanes.__dict__.setdefault("lanes", {})
        lane = lanes.get(stream.cuda_stream)
        if lane is None:
            lane = lanes[stream.cuda_stream] = _Lane(torch.cuda.graph_pool_handle())
        found = lane.graphs.get(size)
        if found is None:
            found = self._record(size, arrays, lane)
            if found is None:
                return None
            lane.graphs[size] = found
            if len(lane.graphs) > _KEPT:
                lane.graphs.popitem(last=False)
        lane.graphs.move_to_end(size)
        return found

    def _record(self, size: _Size, arrays: torch.Tensor, lane: _Lane) -> _Graph | None:
        import torch

        static = arrays.to(self._device, non_blocking=True)
        spans = Spans.over(static, Room(size.tokens, TEXTS), [], longest=size.longest)
        states = self._forward(spans)  # what a first call sets up, kernels and workspaces, is no part of the graph
        graph = torch.cuda.CUDAGraph()
        with _recording:
            torch.cuda.current_stream(self._device).synchronize()
            graph.capture_begin(pool=lane.pool, capture_error_mode="thread_local")
            try:
                states = self._forward(spans)
            except RuntimeError as error:
                self._give_up(error)
            finally:
                try:
                    graph.capture_end()
                except RuntimeError as error:
                    self._give_up(error)
        return _Graph(graph, static, states) if self._possible else None

    def _give_up(self, error: Exception) -> None:
        if self._possible:
            self._possible = False
            _log.warning("no CUDA graphs for this encoder, small batches stay eager: %s", error)
