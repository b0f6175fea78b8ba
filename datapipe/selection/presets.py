"""Published methods by name: each is a metric and settings of one engine, nothing else.

    name -> get_preset -> Preset(metric, plan(fraction)) -> preset.choose(fraction, ...) -> Choice

`docs/presets.md` is printed from this file by `table`. Raises `ConfigError` for an unknown name and `SelectionError`
where a preset needs groups that the rows lack.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from datapipe.errors import ConfigError, SelectionError
from datapipe.selection.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapipe.config import MetricName

Grouping: TypeAlias = Literal["label", "cluster"]

CCS_TRIMS = ((0.1, 0.3), (0.2, 0.2), (0.3, 0.1))
"""CCS: most kept, part of the hardest left out. At 0.1 and 0.2 theirs for ImageNet; at 0.3 interpolated."""
ELFS_TRIMS = ((0.1, 0.3), (0.2, 0.2), (0.3, 0.1))
"""ELFS: 0.3 at 0.1 kept is theirs for ImageNet (0.4 for CIFAR-10); the other two are taken over from CCS."""
LABEL_FREE_FROM = 0.1
"""Up to here `default_label_free` keeps random rows: no cut without labels is above them by more than the noise,
neither on validation images of CIFAR-10 nor on validation rows of TREC and BANKING77."""
LABEL_FREE_TRIMS = ((0.3, 0.3),)
"""Of `default_label_free`: what validation images of CIFAR-10 prefer at 0.3 kept; at 0.5 all are within the noise."""
LABELS_TRIMS = ((0.05, 0.5), (0.1, 0.3), (0.2, 0.2), (0.3, 0.1))
"""Of `default_labels`: what validation images of CIFAR-10 prefer at 0.05, 0.1, 0.3 and 0.5 kept; at 0.2 that of CCS.

On validation rows of TREC and BANKING77 they are not below random at 0.1 and win at 0.3; at 0.1 these two would take
0.4, which gains 0.4 and 1.6 points more there and is 0.3 below on CIFAR-10, within the noise.
(`benchmarks/results/pruning_images_choice.json`, `benchmarks/results/pruning_settings.json`)
"""
DUAL_SHARPNESS, DUAL_POWER = 15.0, 1.0
"""C of DUAL, and its power of the pruned part, which the authors set by data set (5.5 for CIFAR-10).

On validation rows of TREC and BANKING77, with heads, only 1 is above random rows on both sets at 0.1 and 0.3 kept; 2
loses up to 2.2 points, 5.5 up to 13.9, 11 up to 22.7 (`benchmarks/results/pruning_settings.json`).
"""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A method by name.

    Attributes:
        name: What `--preset` takes.
        metric: How rows are scored.
        plan: From the fraction kept, 0 < fraction <= 1, to the settings.
        groups: What its strata may be, the best first; empty for a method without. Only the first that the rows have
            counts.
        needs_groups: Whether it is no method without them; else the plan loses its strata.
        weights: "mean_score" shares the budget by the mean score of each group.
        place: Column beside the score at which a Beta density is taken; None where the rank is its place.
        source: The paper.
        told: One sentence: what is kept.
        ours: What differs from the paper, or is a choice of ours; empty where nothing does.
    """

    name: str
    metric: MetricName
    plan: Callable[[float], Plan]
    groups: tuple[Grouping, ...] = ()
    needs_groups: bool = False
    weights: Literal["none", "mean_score"] = "none"
    place: str | None = None
    source: str
    told: str
    ours: str = ""

    def settings(
        self, fraction: float, *, groups: Sequence[Grouping], window_start: float | None = None
    ) -> tuple[Plan, Grouping | None]:
        """Return the plan at a fraction for rows that have these groups, and which of them it uses.

        Raises:
            SelectionError: The preset needs groups that are not there, or the window does not fit.
        """
        group = next((each for each in self.groups if each in groups), None)
        if group is None and self.needs_groups:
            kinds = " or ".join(f"{each}s" for each in self.groups)
            raise SelectionError(
                f"The preset {self.name} needs {kinds} of at least two values, and the rows have fewer; name their "
                "column with label_column, or take a preset that needs none."
            )
        plan = self.plan(fraction)
        if window_start is not None:
            plan = _window(fraction, window_start)
        if plan.strata == "group" and group is None:
            plan = Plan(
                order=plan.order,
                beta=plan.beta,
                trim_hard=plan.trim_hard,
                trim_easy=plan.trim_easy,
                mix_random=plan.mix_random,
            )
        return plan, group if plan.strata == "group" else None


def get_preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        ConfigError: There is none; lists those there are.
    """
    for preset in PRESETS:
        if preset.name == name:
            return preset
    known = [preset.name for preset in PRESETS]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ConfigError(f"there is no preset {name!r}{hint} The presets are: {presets_told()}")


def presets_told() -> str:
    """The names of all presets, in the order of `docs/presets.md`."""
    return ", ".join(preset.name for preset in PRESETS)


def _trim(fraction: float, trims: Sequence[tuple[float, float]]) -> float:
    return next((trim for most, trim in trims if fraction <= most), 0.0)


def _beta(fraction: float) -> tuple[float, float]:
    """DUAL's C and 1 - r ** c, where r is the part pruned."""
    return DUAL_SHARPNESS, 1 - (1 - fraction) ** DUAL_POWER


def _window(fraction: float, start: float) -> Plan:
    if start + fraction > 1 + 1e-9:
        raise SelectionError(f"A window that starts at {start} holds {1 - start:.3g} of the rows, not {fraction:.3g}.")
    return Plan(order="hard", trim_hard=min(start, 1 - fraction))


def _middle(fraction: float) -> Plan:
    return Plan(order="hard", trim_hard=(1 - fraction) / 2, trim_easy=(1 - fraction) / 2)


def _label_free(fraction: float) -> Plan:
    if fraction <= LABEL_FREE_FROM:
        return Plan(order="random")
    return Plan(order="hard", trim_hard=_trim(fraction, LABEL_FREE_TRIMS))


def _ccs(fraction: float) -> Plan:
    return Plan(order="random", trim_hard=_trim(fraction, CCS_TRIMS), strata="score_width", quota="equal")


_SORSCHER = "Sorscher et al. 2022, arXiv 2206.14486"
_FLOOR = "Each class keeps half of an equal share first, where there are labels."

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="random",
        metric="random",
        plan=lambda _: Plan(order="random"),
        source="Ben-Baruch et al. 2025, arXiv 2403.07854",
        told="The first rows in the seeded hash order.",
    ),
    Preset(
        name="random_stratified",
        metric="random",
        plan=lambda _: Plan(order="random", strata="group"),
        groups=("label",),
        source="Ben-Baruch et al. 2025, arXiv 2403.07854; DRoP, ICLR 2025, for the balance",
        told="Random rows within each class, in proportion; the mix of classes stays.",
    ),
    Preset(
        name="random_balanced",
        metric="random",
        plan=lambda _: Plan(order="random", strata="group", quota="equal"),
        groups=("label",),
        needs_groups=True,
        source="Ben-Baruch et al. 2025, arXiv 2403.07854; DRoP, ICLR 2025, for the balance",
        told="Equally many random rows of each class; small classes whole.",
    ),
    Preset(
        name="drop_quotas",
        metric="el2n",
        plan=lambda _: Plan(order="random", strata="group", quota="given"),
        groups=("label",),
        needs_groups=True,
        weights="mean_score",
        source="DRoP, ICLR 2025",
        told="Random rows of each class, more of the classes that are harder.",
        ours="A class's mean EL2N stands for the error rate that a trained model has on it.",
    ),
    Preset(
        name="sorscher_hard",
        metric="prototypes",
        plan=lambda _: Plan(order="hard", strata="group", quota="fill"),
        groups=("label",),
        source=_SORSCHER,
        told=f"The rows farthest from their prototype. {_FLOOR}",
    ),
    Preset(
        name="sorscher_easy",
        metric="prototypes",
        plan=lambda _: Plan(order="easy", strata="group", quota="fill"),
        groups=("label",),
        source=_SORSCHER,
        told=f"The rows nearest to their prototype. {_FLOOR}",
    ),
    Preset(
        name="supervised_prototypes",
        metric="prototypes_supervised",
        plan=lambda _: Plan(order="hard", strata="group", quota="fill"),
        groups=("label",),
        needs_groups=True,
        source=_SORSCHER,
        told=f"The rows farthest from the mean of their class. {_FLOOR}",
    ),
    Preset(
        name="ccs",
        metric="aum",
        plan=_ccs,
        source="Zheng et al. 2023 (CCS), arXiv 2210.15809, algorithm 1",
        told="Without the hardest part, 50 intervals of the score share the budget equally, at random within each.",
        ours="The hardest part by fraction kept: 0.3 at 0.1, 0.2 at 0.2, 0.1 at 0.3, else none.",
    ),
    Preset(
        name="moderate",
        metric="prototypes_supervised",
        plan=_middle,
        source="Xia et al. 2023 (Moderate coreset), ICLR 2023",
        told="The rows around the median distance to the mean of their class.",
        ours="The median is that of all rows, not of each class.",
    ),
    Preset(
        name="bws",
        metric="prototypes_supervised",
        plan=_middle,
        source="Choi et al. 2024 (BWS), arXiv 2406.03057",
        told="A window of the rows sorted by difficulty, from window_start on.",
        ours=(
            "The distance to the mean of the class is the difficulty. Without window_start the window lies in the "
            "middle; `datapipe advise --pilot` finds a start."
        ),
    ),
    Preset(
        name="dual",
        metric="dual",
        plan=lambda fraction: Plan(order="weighted", beta=_beta(fraction)),
        place="mean_probability",
        source="Cho et al. 2025 (DUAL), arXiv 2502.06905, ratio-adaptive Beta sampling",
        told=(
            "Rows drawn by their score times a Beta density of the label's mean probability, which moves from hard "
            "rows to easy ones the less is kept."
        ),
        ours=(
            "C = 15 is the paper's. The power, which it sets by data set, is 1, chosen on validation rows of TREC and "
            "BANKING77; for CIFAR-10 it takes 5.5. The density is taken in 1,024 steps."
        ),
    ),
    Preset(
        name="elfs",
        metric="pseudo_label_aum",
        plan=lambda fraction: Plan(order="hard", trim_hard=_trim(fraction, ELFS_TRIMS)),
        source="Zheng et al. 2025 (ELFS), arXiv 2406.04273",
        told="Without the hardest part, the next hardest rows by the margin of cluster labels; no labels needed.",
        ours="k-means labels and a head on frozen vectors. Trims at 0.2 and 0.3 kept are taken over from CCS.",
    ),
    Preset(
        name="zcore",
        metric="coverage",
        plan=lambda _: Plan(order="hard"),
        source="Griffin et al. 2026 (ZCore), arXiv 2411.15349",
        told="The rows that cover most of the embedding space.",
        ours="The draws share 512 planes, and the 32 rows nearest to a winner bear its whole penalty, not 1,000.",
    ),
    Preset(
        name="typiclust",
        metric="typicality",
        plan=lambda _: Plan(order="hard", strata="group", quota="equal"),
        groups=("cluster", "label"),
        source="Hacohen et al. 2022 (TypiClust), arXiv 2202.02794",
        told="The most typical rows of each cluster; for very small budgets.",
        ours="As many clusters as the metric has, not as many as rows are kept; classes, else none, stand in for them.",
    ),
    Preset(
        name="default_label_free",
        metric="pseudo_label_aum",
        plan=_label_free,
        source="ELFS (arXiv 2406.04273) for the score and the cut",
        told="Random rows up to 10 %; above, the next hardest rows below a trim, by the margin of cluster labels.",
        ours=(
            "The method, its trims, and random rows where no cut without labels is above them. On CIFAR-10 it gains "
            "1.0 point at 0.3 kept; with heads on vectors of TREC and BANKING77 it is 1.4 to 1.8 points below random "
            "there, so text is better served by `random`."
        ),
    ),
    Preset(
        name="default_labels",
        metric="aum",
        plan=lambda fraction: Plan(order="hard", trim_hard=_trim(fraction, LABELS_TRIMS), strata="group", quota="fill"),
        groups=("label",),
        source="CCS (arXiv 2210.15809) for the score and trims, ELFS (arXiv 2406.04273) for the double-ended cut",
        told=f"Without the hardest part, the next hardest rows by the margin of the label. {_FLOOR}",
        ours=(
            "The combination and its trims: 0.5 at 0.05, 0.3 at 0.1, 0.2 at 0.2, 0.1 at 0.3. On CIFAR-10 it gains 5.8, "
            "3.5, 2.1 and 2.1 points on random rows at 0.05, 0.1, 0.3 and 0.5 kept; with heads on vectors of TREC and "
            "BANKING77 0.2 to 3.0 at 0.1 and 0.3."
        ),
    ),
)
"""All presets. D2 is none: its message passing over a neighbour graph is no setting of this engine."""


def table() -> str:
    """Return the table of presets as Markdown, as `docs/presets.md` holds it."""
    lines = [
        "# Presets",
        "",
        "`datapipe curate SOURCE --out OUT --preset NAME`. A preset is a metric and settings of the one selection",
        "engine (`datapipe/selection/plan.py`), nothing else. Settings are shown at 10 % and at 50 % kept. Printed",
        "from `datapipe/selection/presets.py` by `python -m datapipe.selection.presets`.",
        "",
        "| preset | metric | settings at 10 % | settings at 50 % | groups | keeps | source | ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for preset in PRESETS:
        at = [_told(preset.plan(fraction)) for fraction in (0.1, 0.5)]
        groups = " or ".join(preset.groups) + (" (needed)" if preset.needs_groups else "") if preset.groups else ""
        shared = at[1] if at[1] != at[0] else "the same"
        cells = (f"`{preset.name}`", preset.metric, at[0], shared, groups, preset.told, preset.source, preset.ours)
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "D2 (ICLR 2024) is not among them: its message passing over a neighbour graph is no setting of this engine.",
        "",
    ]
    return "\n".join(lines)


def _told(plan: Plan) -> str:
    default = Plan(order=plan.order)
    changed = [name for name in plan.__dataclass_fields__ if getattr(plan, name) != getattr(default, name)]
    return ", ".join([f"order={plan.order}", *(f"{name}={_short(getattr(plan, name))}" for name in changed)])


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, tuple):
        return f"({', '.join(f'{each:.3g}' for each in value)})"
    return str(value)


if __name__ == "__main__":
    import sys

    sys.stdout.write(table())
