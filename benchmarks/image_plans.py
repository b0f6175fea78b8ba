"""What each method of the image benchmark keeps, and the settings among which ours were chosen on validation images.

method, fraction, scores -> Setting(score, plan, group) -> the selection engine -> rows
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.selection.plan import Plan
from datapipe.selection.presets import get_preset

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.storage.arrays import Float32, Int32, Int64

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
PRESETS = {
    "random": ("random", "el2n"),
    "el2n": ("sorscher_hard", "el2n"),
    "ccs": ("ccs", "aum"),
    "dual": ("dual", "dual"),
    "prototypes_hard": ("sorscher_hard", "prototypes"),
    "prototypes_easy": ("sorscher_easy", "prototypes"),
}
"""Method slug: preset of the selection engine, score that it reads."""
DUAL_POWER = 5.5
"""DUAL's power of the pruned part as its authors set it for CIFAR-10; the preset has another, of text."""
OURS = {"default_label_free": "label_free", "default_labels": "labels"}
"""Method slug: which choice on validation images it takes."""
ATTEMPTS = {"elfs_network": "clusters", "elfs_agreed": "agreed", "mean_ranks": "ranks"}
"""Further ones, in a table of their own: AUM of the network itself, trained on cluster labels as in ELFS, by k-means or
by what neighbours agree on; and the mean rank of the neighbours' density of all encoders, with that AUM or without."""
_COURSES = {"clusters": "cluster_course", "agreed": "agreed_course"}
BY_VECTORS = ("prototypes_hard", "prototypes_easy", "default_label_free")
"""Methods that read vectors and no labels: their strata are never classes, and each encoder has its rows."""
METHODS = (*PRESETS, *OURS)
EARLIER = ("dual_by_rank",)
"""Methods that are measured no more: DUAL with its density at the place of a row by rank, not the mean probability."""
SUPERVISED = ("el2n", "ccs", "dual", *EARLIER, "default_labels")

FEW = 0.1
"""Fractions up to here have their windows looked for over the whole range."""
_WINDOWS = (
    (FEW, (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)),
    (0.2, (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)),
    (0.5, (0.0, 0.1, 0.2, 0.3)),
    (0.7, (0.0, 0.1, 0.2)),
    (1.0, (0.0, 0.05)),
)
"""Greatest fraction kept, and parts of the hardest that are left out."""
_MORE = (0.3, 0.5, 0.7)
"""Windows that further scores are tried with where few rows are kept."""
_EASIER = (0.5, 0.6, 0.7)
"""The same for mean ranks: from 0.3 on they hold more of the hardest rows than random rows do."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How rows are chosen.

    Attributes:
        score: The score that the plan reads.
        plan: What the engine does with it.
        group: What its groups are, `label` or `cluster`, for strata "group".
        place: The score at which a Beta density is taken.
    """

    score: str
    plan: Plan
    group: str | None = None
    place: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain values; a place only where there is one."""
        return {name: value for name, value in asdict(self).items() if name != "place" or value is not None}

    @property
    def reads(self) -> set[str]:
        """The scores and groups that it needs."""
        return {each for each in (self.score, self.place, self.group) if each is not None}


def setting_from(values: Mapping[str, Any]) -> Setting:
    """Read back what `as_dict` gave, also from JSON."""
    plan = dict(values["plan"])
    plan["beta"] = tuple(plan["beta"]) if plan["beta"] else None
    return Setting(score=values["score"], plan=Plan(**plan), group=values["group"], place=values.get("place"))


def setting_of(method: str, fraction: float, ours: Mapping[str, Mapping[str, Any]]) -> Setting:
    """Return the setting of a method.

    Args:
        method: One of `METHODS` or `ATTEMPTS`.
        fraction: Of the rows that are kept.
        ours: What `candidates` led to: by choice and by fraction as a string, settings as plain values.
    """
    choice = (OURS | ATTEMPTS).get(method)
    if choice is not None:
        return setting_from(ours[choice][str(fraction)])
    name, score = PRESETS[method]
    groups = () if method in BY_VECTORS else ("label",)
    plan, group = get_preset(name).settings(fraction, groups=groups)
    if plan.beta is not None:
        plan = replace(plan, beta=(plan.beta[0], 1 - (1 - fraction) ** DUAL_POWER))
    return Setting(score=score, plan=plan, group=group, place=get_preset(name).place)


def candidates(fraction: float, choice: str) -> dict[str, Setting]:
    """Settings to choose from at a fraction, by name; the choice is a value of `OURS` or `ATTEMPTS`."""
    windows = next(starts for most, starts in _WINDOWS if fraction <= most)
    more = _MORE if fraction <= FEW else windows[::2]
    if choice in _COURSES:
        return _by_course(_COURSES[choice], more, balanced=choice == "agreed")
    if choice == "ranks":
        return {
            f"{score} from {start}": Setting(score=score, plan=Plan(order="hard", trim_hard=start))
            for score in ("densities", "combined")
            for start in (_EASIER if fraction <= FEW else more)
        }
    return _label_free(windows, more) if choice == "label_free" else _labels(windows, more)


def _by_course(score: str, starts: Sequence[float], *, balanced: bool) -> dict[str, Setting]:
    found = {}
    for start in starts:
        plan = Plan(order="hard", trim_hard=start)
        found[f"{score} from {start}"] = Setting(score=score, plan=plan)
        if balanced:
            shared = replace(plan, strata="group", quota="fill", floor_ratio=0.9)
            found[f"{score} from {start} in clusters"] = Setting(score=score, plan=shared, group="agreed")
    return found


def _label_free(windows: Sequence[float], more: Sequence[float]) -> dict[str, Setting]:
    found = {}
    found["random in clusters"] = Setting(
        score="pseudo_label_aum", plan=Plan(order="random", strata="group", quota="equal"), group="cluster"
    )
    for start in windows:
        plan = Plan(order="hard", trim_hard=start)
        found[f"pseudo_label_aum from {start}"] = Setting(score="pseudo_label_aum", plan=plan)
        if start in more:
            balanced = replace(plan, strata="group", quota="fill", floor_ratio=0.9)
            name = f"pseudo_label_aum from {start} in clusters"
            found[name] = Setting(score="pseudo_label_aum", plan=balanced, group="cluster")
            found[f"knn_density from {start}"] = Setting(score="knn_density", plan=plan)
    found["coverage"] = Setting(score="coverage", plan=Plan(order="hard"))
    return found


def _labels(windows: Sequence[float], more: Sequence[float]) -> dict[str, Setting]:
    found = {}
    found["random in classes"] = Setting(score="aum", plan=Plan(order="random", strata="group"), group="label")
    for start in windows:
        plan = Plan(order="hard", trim_hard=start, strata="group", quota="fill")
        found[f"aum from {start}"] = Setting(score="aum", plan=plan, group="label")
        if start in more:
            found[f"dual from {start}"] = Setting(score="dual", plan=plan, group="label")
            spread = Plan(order="random", trim_hard=start, strata="score_width", quota="equal")
            found[f"aum spread from {start}"] = Setting(score="aum", plan=spread)
    return found


def choice_seeds(fraction: float) -> int:
    """Trainings of each candidate."""
    return 2 if fraction <= FEW else 1


def chosen(
    setting: Setting, scores: Mapping[str, Float32], groups: Mapping[str, Int32], *, fraction: float, seed: int
) -> Int64:
    """Rows that a setting keeps, ascending; random orders draw anew with each seed, others break ties anew.

    Args:
        setting: How.
        scores: By name, each float32 (rows,), higher is harder.
        groups: `label` and, where there are vectors, `cluster`, each int32 (rows,).
        fraction: Of the rows.
        seed: Of the hash order.
    """
    from datapipe.selection.budget import Budget
    from datapipe.selection.engine import select
    from datapipe.selection.result import ScoreBatch

    own = scores[setting.score]
    ids = np.stack([np.zeros(len(own), np.uint64), np.arange(len(own), dtype=np.uint64)], 1)
    codes = groups[setting.group] if setting.group is not None else None
    names = [str(each) for each in range(int(codes.max()) + 1)] if codes is not None else []
    places = scores[setting.place] if setting.place is not None else None
    batch = ScoreBatch(ids=ids, scores=own, groups=codes, places=places)
    with (
        tempfile.TemporaryDirectory() as scratch,
        select(
            lambda: iter([batch]),
            setting.plan,
            Budget(fraction=fraction),
            seed=seed,
            scratch=Path(scratch),
            groups=names,
        ) as found,
    ):
        kept = np.concatenate([part["kept"].to_numpy() for part in found])
    return np.flatnonzero(kept)
