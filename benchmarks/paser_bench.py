"""One process of the recovery benchmark: models in memory, and one training after the other until the time is up.

Run -> rows of its method -> weights put back -> train -> held-out loss, distance to the original, choices -> a row
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import common, paser_scores
from benchmarks.paser_plans import ORIGINAL
from datapipe.paser.evaluation import Live, answer_states, choice_accuracy, choices_of, held_out
from datapipe.paser.pick import pick
from datapipe.paser.recovery import RecoveryRecipe, open_trainable
from datapipe.paser.recovery_training import train, with_updates
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.paser_plans import Run
    from datapipe.storage.arrays import Int64

_MARGIN = 1.3
"""How much longer than the last one a training may take that is begun."""
_CHOICE_LENGTH = 1024


class Bench:
    """What the trainings of a process share.

    Args:
        options: `work`, `device` and `deadline` (perf_counter) of the program.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._work, self._device = options.work, torch.device(options.device)
        self._deadline = options.deadline
        self._prepared = paser_scores.load(self._work)
        self._tokens_a_second: float | None = None
        self._models: dict[str, tuple[Any, Live, dict[str, torch.Tensor]]] = {}
        self._held: dict[str, tuple[Any, Any]] = {}

    def measure(self, name: str, runs: Sequence[Run], done: set[str]) -> None:
        """Measure the runs whose digests are not done, as far as the time allows."""
        left = 0
        for run in runs:
            if digest_of(run.config) in done:
                continue
            if time.perf_counter() + self._seconds(run) > self._deadline:
                left += 1
                continue
            row = self._row(run)
            common.record(name, row, run.config)
            told = f"nll {row['heldout_nll']:.4f} jsd {row['jsd']:.5f} choice {row['choice_accuracy']:.3f}"
            print(f"{run.variant} {run.budget} {run.method} {run.seed}: {told}, {row['seconds']:.1f} s", flush=True)
        if left:
            print(f"no time for {left} trainings of {name}", flush=True)

    def _seconds(self, run: Run) -> float:
        if self._tokens_a_second is None or not run.budget:
            return 20.0 if self._device.type == "cuda" else 0.0
        return _MARGIN * int(run.recipe(self._prepared.pool_tokens).tokens or 0) / self._tokens_a_second + 5.0

    def _row(self, run: Run) -> dict[str, Any]:
        started = time.perf_counter()
        rows, told = self._rows(run)
        picked = time.perf_counter() - started
        model, live = self._model(run.variant)
        row: dict[str, Any] = {"rows": len(rows), "pick_seconds": round(picked, 3), **told}
        if run.budget:
            lessons = self._prepared.lessons["pool"].take(rows)
            course = train(model, lessons, run.recipe(self._prepared.pool_tokens), device=self._device)
            self._tokens_a_second = course.tokens / course.seconds
            row |= {
                "set_tokens": int(lessons.lengths.sum()),
                "tokens": course.tokens,
                "answer_tokens": course.answer_tokens,
                "steps": course.steps,
                "passes": round(course.epochs, 3),
                "train_seconds": round(course.seconds, 2),
                "loss_first": float(np.mean(course.losses[:8])),
                "loss_last": float(np.mean(course.losses[-8:])),
            }
        live.refresh()
        row |= self._told(run.part, live)
        return {**row, "seconds": time.perf_counter() - started}

    def _rows(self, run: Run) -> tuple[Int64, dict[str, Any]]:
        """Rows that the run reads, and what its choice says; those of all methods come from `datapipe.paser.pick`."""
        config = run.picks(self._prepared.pool_tokens)
        if config is None:
            return np.arange(len(self._prepared.rows["labels"])), {}
        scores = paser_scores.scores_of(self._work, run.variant)
        found = pick(self._prepared.pick_rows(scores, seed=run.seed), config)
        rows = np.flatnonzero(found.kept)
        sources = np.array([row["source"] for row in self._prepared.data.pool])[rows]
        names, counts = np.unique(sources, return_counts=True)
        taken = dict(zip(names.tolist(), counts.tolist(), strict=True))
        tokens = found.clusters.tokens_taken.tolist()
        return rows, {"taken": taken, "cluster_tokens": tokens, "reasons": found.counts}

    def _model(self, variant: str) -> tuple[Any, Live]:
        """A variant with its own weights put back."""
        if variant not in self._models:
            folder, recipe = paser_scores.model_folder(self._work, variant), RecoveryRecipe()
            model = with_updates(open_trainable(folder, recipe, device=self._device), recipe, device=self._device)
            weights = {name: each.detach().clone() for name, each in model.named_parameters()}
            self._models[variant] = model, Live(model), weights
        model, live, weights = self._models[variant]
        with torch.no_grad():
            for name, each in model.named_parameters():
                each.copy_(weights[name])
        return model, live

    @cached_property
    def _original(self) -> Any:
        return paser_scores.open_scorer(self._work, ORIGINAL, self._device)

    def _told(self, part: str, live: Live) -> dict[str, Any]:
        if part not in self._held:
            lessons = self._prepared.lessons[part]
            states = answer_states(self._original, lessons, device=self._device)
            folder = paser_scores.model_folder(self._work, ORIGINAL)
            asked = choices_of(self._prepared.data.questions[part], folder=folder, max_length=_CHOICE_LENGTH)
            self._held[part] = states, asked
        states, asked = self._held[part]
        lessons, groups = self._prepared.lessons[part], self._prepared.sources(part)
        found = held_out(self._original, states, live, lessons, groups, device=self._device)
        choices = choice_accuracy(live, asked, device=self._device)
        row: dict[str, Any] = {
            "heldout_nll": found.nll,
            "jsd": found.jsd,
            "choice_accuracy": float(np.mean(list(choices.values()))),
            "original_nll": found.nll_original,
            "by_source": {
                name: [round(each["nll"], 5), round(each["jsd"], 6)] for name, each in found.by_group.items()
            },
            "choices": {name: round(each, 4) for name, each in choices.items()},
        }
        if part == "validation":
            row["by_cluster"] = self._by_cluster(live)
        return row

    def _by_cluster(self, live: Live) -> dict[str, float]:
        """Loss of the validation rows of each cluster, in nats a token; for the curves of what can be recovered."""
        from datapipe.paser.evaluation import answer_losses

        lessons, places = self._prepared.lessons["validation"], self._prepared.places
        sums = np.bincount(places, answer_losses(live, lessons, device=self._device))
        counts = np.bincount(places, lessons.answers)
        return {str(at): round(float(sums[at] / counts[at]), 5) for at in np.flatnonzero(counts).tolist()}
