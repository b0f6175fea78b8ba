"""The threshold of a trained pruner and its calibration, both from questions held out of the training.

    write(0.5) -> Pruner -> probabilities of held-out gold sentences -> calibrate -> threshold_for(RECALL) -> write(it)
    digest of what was written -> FOLDER/calibration.json

Held-out questions are shown by the measuring protocol, passages alone, without titles. Raises what the pruner raises.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from provence.calibration import Calibration, calibrate
from provence.loading import CALIBRATION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Float32
    from provence.evaluation.sets import Example

__all__ = ["RECALL", "UNSETTLED", "sample_of", "settle"]

RECALL = 0.9
"""Expected share of the gold sentences of a held-out question that the threshold keeps."""

UNSETTLED = 0.5
"""Threshold where too few questions are held out to promise anything."""

_QUESTIONS = 300
"""Held-out questions of a source, at most."""


def settle(folder: Path, name: str, held: Sequence[Example], write: Callable[[float], None], *, device: str) -> float:
    """Write a pruner with the threshold that held-out questions ask for, and its calibration beside it.

    Args:
        folder: Where `write` writes.
        name: Of the model.
        held: Questions that it was not trained on.
        write: Writes it with a threshold.
        device: Where it computes.

    Returns:
        The threshold: the highest that keeps `RECALL` of the gold sentences; `UNSETTLED`, and no calibration, where
        fewer than nine held-out questions have any.
    """
    (folder / CALIBRATION).unlink(missing_ok=True)
    write(UNSETTLED)
    gold = [part for part in _gold(folder, held, device=device) if len(part)] if held else []
    if len(gold) < round(1 / (1 - RECALL)) - 1:
        return UNSETTLED
    made = calibrate(gold, model=name, digest="", domain="held-out questions of the sets it was trained on")
    threshold = made.threshold_for(RECALL)
    write(max(threshold, 0.0))
    _bound(made, folder).save(folder / CALIBRATION)
    return max(threshold, 0.0)


def sample_of(examples: Iterable[Example]) -> list[Example]:
    """Some hundreds of a source's questions, the same on every machine."""
    from provence.evaluation.sets import hash_order

    return sorted(examples, key=lambda example: hash_order(0, example.id))[:_QUESTIONS]


def _gold(folder: Path, held: Sequence[Example], *, device: str) -> list[Float32]:
    from provence.evaluation.protocol import outcome_of, passages_of_set
    from provence.evaluation.pruned import PrunerScorer
    from provence.evaluation.recall import gold_probabilities
    from provence.pruner import Pruner

    passages = passages_of_set(held)
    with Pruner.load(folder, device=device) as pruner:
        return gold_probabilities(outcome_of(passages, PrunerScorer(pruner).score(passages), held))


def _bound(made: Calibration, folder: Path) -> Calibration:
    """The calibration, bound to what the folder holds."""
    from datapipe.workers.folder import ModelFolder

    return replace(made, digest=ModelFolder(made.model, folder).digest)
