"""Measure a pruner and its baselines on sets of the shipped layout.

    paths -> read_examples -> passages_of_set -> every scorer -> outcome_of -> figures_of -> Report

Raises what the readers raise for a bad file, and `MetricError` for a set without gold.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from datapipe.errors import ConfigError, MetricError
from provence.evaluation.baselines import BASELINES
from provence.evaluation.baselines import baselines as by_name
from provence.evaluation.protocol import LIMIT, OTHERS, PROTOCOL, outcome_of, passages_of_set
from provence.evaluation.pruned import PrunerScorer
from provence.evaluation.report import MACRO, Figures, Report, Row, figures_of, macro_figures
from provence.evaluation.sets import read_examples

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from provence.evaluation.protocol import Outcome, PassageScores, Scorer
    from provence.pruner import Pruner

__all__ = ["Progress", "evaluate", "measure", "scored"]


class Progress(Protocol):
    """Told how far a measurement is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """So many of the passages of a stage, a method on a set, are through."""


def evaluate(  # noqa: PLR0913 - what is measured, and how
    pruner: Pruner | None,
    paths: Sequence[Path | str],
    *,
    split: str | None = "test",
    baselines: Sequence[str] = BASELINES,
    joint: bool = False,
    titles: bool = False,
    limit: int | None = None,
    seed: int = 0,
    samples: int = 1000,
    progress: Progress | None = None,
) -> Report:
    """Measure a pruner beside its baselines by the measuring protocol.

    Args:
        pruner: Any; None measures baselines only.
        paths: Sets; a set is called by its file's name.
        split: Read from each; None takes all splits.
        baselines: Names of `BASELINES`.
        joint: Also measure the pruner with the passages of a question in shared windows (`joint` of `Pruner.prune`).
        titles: Show the pruner the documents' titles.
        limit: Questions of a set, at most, as `read_examples` samples them.
        seed: Chooses the sample, the passages without gold and the bootstrap samples.
        samples: Bootstrap samples behind the 95 % intervals.
        progress: Told about each passage.

    Raises:
        ConfigError: There is no such baseline, nothing to measure, or two sets of one name.
        MetricError: A set's split has no gold sentence.
    """
    scorers: list[Scorer] = []
    if pruner is not None:
        views = (False, True) if joint else (False,)
        scorers += [PrunerScorer(pruner, titles=titles, joint=view) for view in views]
    scorers += by_name(baselines)
    return measure(scorers, paths, split=split, limit=limit, seed=seed, samples=samples, progress=progress)


def measure(
    scorers: Sequence[Scorer],
    paths: Sequence[Path | str],
    *,
    split: str | None = "test",
    limit: int | None = None,
    seed: int = 0,
    samples: int = 1000,
    progress: Progress | None = None,
) -> Report:
    """Figures of every scorer on every set, and their means over the sets.

    Args:
        scorers: With different names.
        paths: Sets; a set is called by its file's name.
        split: Read from each; None takes all splits.
        limit: Questions of a set, at most, as `read_examples` samples them.
        seed: Chooses the sample, the passages without gold and the bootstrap samples.
        samples: Bootstrap samples behind the 95 % intervals.
        progress: Told about each passage.

    Raises:
        ConfigError: No scorer or set, or two of one name.
        MetricError: A set's split has no gold sentence.
    """
    names = [scorer.name for scorer in scorers]
    sets = [Path(path).stem for path in paths]
    for what, given in (("method", names), ("set", sets)):
        if not given or len(set(given)) < len(given):
            raise ConfigError(f"give each {what} once, and at least one. Got {given}")
    rows: list[Row] = []
    figures: dict[str, list[Figures]] = {name: [] for name in names}
    for path, name in zip(paths, sets, strict=True):
        for scorer, outcome in _outcomes(scorers, path, split=split, limit=limit, seed=seed, progress=progress):
            found = figures_of(outcome, threshold=scorer.threshold, samples=samples, seed=seed)
            figures[scorer.name].append(found)
            rows.append(found.row(set=name, method=scorer.name))
    rows += [macro_figures(found).row(set=MACRO, method=name) for name, found in figures.items()]
    about: Row = {"protocol": PROTOCOL, "passage_tokens": LIMIT, "others": OTHERS}
    about |= {"sets": sets, "split": split, "limit": limit, "seed": seed, "samples": samples}
    return Report(tuple(rows), about)


def scored(
    scorer: Scorer,
    path: Path | str,
    *,
    split: str | None = "test",
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """One scorer's scores on one set, by the measuring protocol. Raises as `measure` does."""
    return next(o for _, o in _outcomes([scorer], path, split=split, limit=limit, seed=seed, progress=progress))


def _outcomes(
    scorers: Sequence[Scorer],
    path: Path | str,
    *,
    split: str | None,
    limit: int | None,
    seed: int,
    progress: Progress | None,
) -> Iterator[tuple[Scorer, Outcome]]:
    """The set is read and cut once; the scorers see it one after the other."""
    examples = read_examples(path, split=split, limit=limit, seed=seed)
    passages = passages_of_set(examples, seed=seed)
    if not any(passage.gold.any() for passage in passages):
        raise MetricError(
            f"{path}, split {split}: no sentence of {len(examples)} questions is gold: nothing to measure"
        )
    for scorer in scorers:
        stage = f"{Path(path).stem} {scorer.name}"
        scores = _told(scorer.score(passages), stage, len(passages), progress)
        yield scorer, outcome_of(passages, scores, examples)


def _told(
    scores: Iterable[PassageScores], stage: str, total: int, progress: Progress | None
) -> Iterator[PassageScores]:
    if progress is not None:
        progress(stage, 0, total)
    for done, each in enumerate(scores, 1):
        if progress is not None:
            progress(stage, done, total)
        yield each
