"""The graph of a pruner in onnxruntime, and windows to sums a unit.

    windows -> padded ids, mask -> session -> keep probabilities -> sums (and counts above a threshold) a unit, scores

Several threads may compute at once, each on its own core. Raises `FloatingPointError` where the model's output is not
finite, and what `open_session` raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from provence.onnx.graph import INPUTS, OUTPUTS
from provence.onnx.session import open_session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Bool, Float32, Float64, Int32, Int64
    from provence.onnx.layout import Exported
    from provence.windows import Window

__all__ = ["OnnxModel", "WindowSums", "window_sums"]


class WindowSums(NamedTuple):
    """What a window says of the units that it scores.

    Attributes:
        sums: Of the keep probabilities of each unit's tokens here, float64 (units,).
        above: Tokens of each with a probability above the threshold, float64 (units,).
        score: Relevance of the window.
    """

    sums: Float64
    above: Float64
    score: float


class OnnxModel:
    """An exported pruner, ready to compute; several threads may use one.

    Args:
        exported: Its graph.
        name: For messages.

    Attributes:
        conduct: How it wants to be used.
        vocabulary: Token ids that it knows.
        positions: Tokens that a window may have.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: The graph is none that onnxruntime can run.
    """

    def __init__(self, exported: Exported, *, name: str) -> None:
        self._session = open_session(exported.graph, name=name)
        self.conduct, self.vocabulary, self.positions = exported.conduct, exported.vocabulary, exported.positions

    def heads(self, windows: Sequence[Int32]) -> tuple[list[Float32], Float32]:
        """Keep probabilities of each window's tokens, float32 (tokens,), and a score a window, float32 (windows,)."""
        lengths = np.array([len(ids) for ids in windows])
        there = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(there.shape, np.int64)
        ids[there] = np.concatenate(windows)
        given = dict(zip(INPUTS, (ids, there.astype(np.int64)), strict=True))
        keep, scores = self._session.run(list(OUTPUTS), given)
        return [row[:length] for row, length in zip(keep, lengths, strict=True)], scores


def window_sums(model: OnnxModel, windows: Sequence[Window], share_at: Sequence[float]) -> list[WindowSums]:
    """Compute a batch of windows.

    Args:
        model: The model.
        windows: At least one.
        share_at: Threshold of tokens of each window.

    Raises:
        FloatingPointError: A probability or a score is not finite; names the window's place in the batch.
    """
    keep, scores = model.heads([window.ids for window in windows])
    found = []
    for place, (window, row, score, limit) in enumerate(zip(windows, keep, scores, share_at, strict=True)):
        bounds = np.concatenate([[0], np.cumsum(window.lengths)])
        scored = row[window.start : window.start + bounds[-1]]
        if not (np.isfinite(scored).all() and np.isfinite(score)):
            raise FloatingPointError(f"a probability or the score of window {place} of the batch is not finite")
        found.append(WindowSums(_between(scored, bounds), _between(scored > np.float32(limit), bounds), float(score)))
    return found


def _between(values: Float32 | Bool, bounds: Int64) -> Float64:
    """Sums of the values from each bound to the next; 0 where both are the same."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    found: Float64 = np.diff(total[bounds])
    return found
