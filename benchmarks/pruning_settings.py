"""By what the settings of metrics and presets were chosen: accuracy of a head on validation rows, a row a setting.

    training rows -> MiniLM vectors, once -> scores by setting -> rows kept -> heads, 5 seeds -> validation rows

Run: python -m benchmarks.pruning_settings FILE.parquet... [--only el2n,dual,pseudo_label_aum,...]. A file has text,
label and split; every fifth training row by a hash of its text is for validation, and no test row is read. Scores are
those of one seed, selections and heads of five. Prints each setting's mean gain over random rows; the rows go to
results/pruning_settings.json.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import finished, record, rows
from benchmarks.settings_scores import ENCODER, ScoredRows, mean_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from datapipe.selection.plan import Plan
    from datapipe.selection.result import ScoreBatch
    from datapipe.storage.arrays import Float32, Int32, Int64

NAME = "pruning_settings"
FRACTIONS = (0.1, 0.3)
SEEDS = 5
TRIMS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
FAMILIES = ("random", "el2n", "dual", "pseudo_label_aum", "trims", "label_free")


def main() -> None:
    """Measure what is missing, then print what each setting gains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--only", default=",".join(FAMILIES))
    options = parser.parse_args()
    for file in options.files:
        _Set.read(file).measure(options.only.split(","))
    print(gains())


class _Set(ScoredRows):
    """The settings that are tried on one set."""

    def measure(self, only: list[str]) -> None:
        """Record every setting of the families named."""
        families: dict[str, Callable[[], Iterator[_Setting]]] = {
            "random": _random,
            "el2n": self._el2n,
            "dual": self._dual,
            "pseudo_label_aum": self._pseudo_labels,
            "trims": self._trims,
            "label_free": self._label_free,
        }
        for family in only:
            for setting in families[family]():
                for fraction in FRACTIONS:
                    self._measure(setting, fraction)

    def _measure(self, setting: _Setting, fraction: float) -> None:
        from datapipe.proof.heads import HeadRecipe, train_heads

        configs = [self._config(setting, fraction, seed) for seed in range(SEEDS)]
        if all(finished(NAME, config) for config in configs):
            return
        scores = setting.scores()
        batch = _batch(scores if len(scores) else np.zeros(len(self.train), np.float32), setting)
        plan = setting.plan(fraction)
        arms = [self.train[_kept(batch, plan, fraction, seed)] for seed in range(SEEDS)]
        found = train_heads(
            self.vectors,
            self.labels,
            arms,
            list(range(SEEDS)),
            self.vectors[self.held],
            classes=self.classes,
            recipe=HeadRecipe(),
        )
        for config, predicted in zip(configs, found, strict=True):
            record(NAME, {"accuracy": 100 * float((predicted == self.labels[self.held]).mean())}, config)

    def _config(self, setting: _Setting, fraction: float, seed: int) -> dict[str, Any]:
        return {
            "dataset": self.name,
            "encoder": ENCODER,
            "method": setting.method,
            "setting": setting.name,
            "fraction": fraction,
            "seed": seed,
            "rows": len(self.train),
            "validation_rows": len(self.held),
        }

    def _el2n(self) -> Iterator[_Setting]:
        """EL2N after more and more of the epochs, as CCS and as the hardest rows; and the same rows by aum."""
        from datapipe.selection.presets import get_preset

        ccs = get_preset("ccs").plan
        for epoch in (1, 2, 5, 10, 20):

            def scores(epoch: int = epoch) -> Float32:
                return mean_of(self.course().error[:, epoch - 1])

            yield _Setting("ccs by el2n", f"epoch {epoch} of 20", scores, ccs)
            yield _Setting("hardest by el2n", f"epoch {epoch} of 20", scores, _hardest(0.0))
        yield _Setting("ccs", "aum", self.aum, ccs)

    def _dual(self) -> Iterator[_Setting]:
        """DUAL's window, and the power and sharpness of its Beta density, by mean probability or by rank."""
        from datapipe.metrics.dynamics import dual

        for window in (5, 10, 20):

            def scores(window: int = window) -> Float32:
                return mean_of(np.stack([dual(head, window=window) for head in self.course().probability]))

            powers = (1.0, 2.0, 4.0, 5.5) if window == 10 else (5.5,)
            for power in powers:
                for sharpness in (15.0, 5.0) if window == 10 else (15.0,):
                    told = f"window {window}, power {power:g}, sharpness {sharpness:g}"
                    plan = _beta(power, sharpness)
                    yield _Setting("dual", f"{told}, by mean probability", scores, plan, places=self.probability)
                    yield _Setting("dual", told, scores, plan)

    def _pseudo_labels(self) -> Iterator[_Setting]:
        """How many clusters, and of how many sizes, the pseudo labels have."""
        from datapipe.selection.presets import get_preset

        elfs = get_preset("elfs").plan
        root = math.isqrt(len(self.train))
        sizes = {
            "classes": [self.classes] * 3,
            "2 classes": [2 * self.classes] * 3,
            "4 classes": [4 * self.classes] * 3,
            "root of the rows": [root] * 3,
            "2 roots": [2 * root] * 3,
            "root / 2, root, 2 roots": [root // 2, root, 2 * root],
        }
        for name, each in sizes.items():
            yield _Setting("elfs", name, lambda each=each: self.by_clusters(each), elfs)  # type: ignore[misc]

    def _trims(self) -> Iterator[_Setting]:
        """How much of the hard end is left out before the hardest rows are kept."""
        root = math.isqrt(len(self.train))
        for trim in TRIMS:
            for method, scores in (
                ("hardest by aum", self.aum),
                ("hardest by pseudo_label_aum", lambda: self.by_clusters([root] * 3)),
            ):
                yield _Setting(method, f"trim {trim:g}", scores, _hardest(trim))
            told = "hardest by aum, half of an equal share a class"
            yield _Setting(told, f"trim {trim:g}", self.aum, _hardest(trim, floor=True), self.class_codes)

    def _label_free(self) -> Iterator[_Setting]:
        """Metrics that need no label, each as the hardest, the middle and the easiest rows, in strata and clusters."""
        from datapipe.selection.plan import Plan
        from datapipe.selection.presets import get_preset

        root = math.isqrt(len(self.train))
        metrics = {
            "pseudo_label_aum": lambda: self.by_clusters([root] * 3),
            "prototypes": lambda: self.distances(root)[0],
            "knn_density": self.density,
        }
        for name, scores in metrics.items():
            yield _Setting(f"ccs by {name}", "", scores, get_preset("ccs").plan)
            yield _Setting(f"middle by {name}", "", scores, get_preset("moderate").plan)
            yield _Setting(f"easiest by {name}", "", scores, lambda _: Plan(order="easy"))
            yield _Setting(f"hardest by {name}", "trim 0.3", scores, _hardest(0.3))
        scores, clusters = metrics["prototypes"], lambda: self.distances(root)[1]
        for told, plan in (
            ("random, in proportion", Plan(order="random", strata="group")),
            ("random, equally many", Plan(order="random", strata="group", quota="equal")),
            ("nearest, in proportion", Plan(order="easy", strata="group")),
            ("nearest, equally many", Plan(order="easy", strata="group", quota="equal")),
            ("farthest, in proportion", Plan(order="hard", strata="group")),
        ):
            yield _Setting("of each cluster", told, scores, lambda _, plan=plan: plan, clusters)  # type: ignore[misc]


@dataclass(frozen=True)
class _Setting:
    """One way to score and to keep."""

    method: str
    name: str
    scores: Callable[[], Float32]
    plan: Callable[[float], Plan]
    groups: Callable[[], Int32] | None = None
    places: Callable[[], Float32] | None = None


def _random() -> Iterator[_Setting]:
    from datapipe.selection.plan import Plan

    yield _Setting("random", "", lambda: np.zeros(0, np.float32), lambda _: Plan(order="random"))


def _hardest(trim: float, *, floor: bool = False) -> Callable[[float], Plan]:
    from datapipe.selection.plan import Plan

    def plan(fraction: float) -> Plan:
        most = min(trim, 1 - fraction)
        return (
            Plan(order="hard", trim_hard=most, strata="group", quota="fill")
            if floor
            else Plan(order="hard", trim_hard=most)
        )

    return plan


def _beta(power: float, sharpness: float) -> Callable[[float], Plan]:
    from datapipe.selection.plan import Plan

    def plan(fraction: float) -> Plan:
        return Plan(order="weighted", beta=(sharpness, 1 - (1 - fraction) ** power))

    return plan


def _batch(scores: Float32, setting: _Setting) -> ScoreBatch:
    from datapipe.selection.result import ScoreBatch

    ids = np.column_stack([np.arange(len(scores), dtype=np.uint64), np.zeros(len(scores), np.uint64)])
    return ScoreBatch(
        ids=ids,
        scores=scores,
        groups=setting.groups() if setting.groups is not None else None,
        places=setting.places() if setting.places is not None else None,
    )


def _kept(batch: ScoreBatch, plan: Plan, fraction: float, seed: int) -> Int64:
    """Places of the rows kept, int64, ascending."""
    from datapipe.selection.budget import Budget
    from datapipe.selection.engine import select

    names = [f"{i}" for i in range(int(batch.groups.max()) + 1)] if batch.groups is not None else []
    with (
        tempfile.TemporaryDirectory() as scratch,
        select(
            lambda: iter([batch]),
            plan,
            Budget(fraction=fraction),
            seed=seed,
            scratch=Path(scratch),
            groups=names,
            placed=batch.places is not None,
        ) as chosen,
    ):
        return np.flatnonzero(np.concatenate([part["kept"].to_numpy() for part in chosen])).astype(np.int64)


def gains() -> str:
    """Mean gain over random rows in points of accuracy, by setting, set and fraction, as a Markdown table."""
    known: dict[tuple[str, str], dict[tuple[str, float], list[float]]] = {}
    for row in rows(NAME):
        at = known.setdefault((row["method"], row["setting"]), {})
        at.setdefault((row["dataset"], row["fraction"]), []).append(row["accuracy"])
    columns = sorted({each for at in known.values() for each in at})
    base = known.get(("random", ""), {})
    lines = [["method", "setting", *(f"{name} {fraction:.0%}" for name, fraction in columns)]]
    lines.append(["---"] * len(lines[0]))
    for (method, setting), at in known.items():
        told = [f"{np.mean(at[each]) - np.mean(base[each]):+.2f}" if each in at else "" for each in columns]
        if method == "random":
            told = [f"{np.mean(at[each]):.2f} ± {np.std(at[each], ddof=1):.2f}" for each in columns]
        lines.append([method, setting, *told])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
