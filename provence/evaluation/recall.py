"""Calibrate a pruner on a set, and read on another what recall its thresholds give.

    PARQUET -> scored -> gold probabilities a question -> calibrate -> Calibration -> threshold_for(recall) -> kept

The promise of a calibration is about the mean, over questions, of the share of gold sentences kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import MetricError
from provence.calibration import calibrate
from provence.evaluation.metrics import interval, resampled_mean, resamples
from provence.evaluation.pruned import PrunerScorer
from provence.evaluation.run import scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Float32
    from provence.calibration import Calibration
    from provence.evaluation.protocol import Outcome
    from provence.evaluation.run import Progress
    from provence.pruner import Pruner

__all__ = ["Achieved", "achieved", "calibrate_pruner", "gold_probabilities"]


@dataclass(frozen=True)
class Achieved:
    """What a threshold gives on a set.

    Attributes:
        threshold: A sentence is kept if its probability is above it.
        recall: Mean over questions with gold of the share of gold sentences kept, 0-1.
        recall_low: Lower end of its 95 % bootstrap interval over questions.
        recall_high: Upper end.
        removed: Share of all characters removed, 0-1.
    """

    threshold: float
    recall: float
    recall_low: float
    recall_high: float
    removed: float


def calibrate_pruner(  # noqa: PLR0913 - what is measured, and how
    pruner: Pruner,
    paths: Sequence[Path | str],
    *,
    domain: str | None = None,
    split: str | None = "train",
    titles: bool = False,
    joint: bool = False,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Calibration:
    """Make a calibration from the questions of sets, shown by the measuring protocol.

    Args:
        pruner: Its digest goes into the calibration, and so does how the texts were shown, `titles` and `joint`.
        paths: Sets; their questions are pooled.
        domain: What the calibration is for; None takes the names of the sets.
        split: Read from each; None takes all splits. Not the one on which the promise is to be checked.
        titles: Show the pruner the documents' titles.
        joint: Show it the passages of a question in shared windows.
        limit: Questions of a set, at most.
        seed: Chooses the sample and the passages without gold.
        progress: Told about each passage.

    Raises:
        MetricError: A set's split has no gold sentence.
    """
    scorer = PrunerScorer(pruner, titles=titles, joint=joint)
    gold: list[Float32] = []
    for path in paths:
        gold += gold_probabilities(scored(scorer, path, split=split, limit=limit, seed=seed, progress=progress))
    name = domain or "+".join(Path(path).stem for path in paths)
    return calibrate(gold, model=pruner.model, digest=pruner.digest, domain=name, joint=joint, titles=titles)


def gold_probabilities(outcome: Outcome) -> list[Float32]:
    """Probabilities of the gold sentences of each question that has any, float32 (gold sentences,) each."""
    asked = outcome.question[outcome.gold]
    values = outcome.probabilities[outcome.gold].astype(np.float32)
    return [part for part in np.split(values, np.flatnonzero(np.diff(asked)) + 1) if part.size]


def achieved(outcome: Outcome, threshold: float, *, samples: int = 1000, seed: int = 0) -> Achieved:
    """Recall and removed characters at a threshold.

    Args:
        outcome: A scored set.
        threshold: A sentence is kept if its float32 probability is above it.
        samples: Bootstrap samples behind the interval.
        seed: Of the bootstrap.

    Raises:
        MetricError: No sentence is gold.
    """
    golds = gold_probabilities(outcome)
    if not golds:
        raise MetricError("no sentence is gold, so there is no recall to read")
    shares = np.array([(part > threshold).mean() for part in golds])
    low, high = interval(resampled_mean(shares, resamples(len(golds), count=samples, seed=seed)))
    cut = outcome.probabilities.astype(np.float32) <= threshold
    removed = float(outcome.characters[cut].sum() / outcome.characters.sum())
    return Achieved(threshold, float(shares.mean()), low, high, removed)
