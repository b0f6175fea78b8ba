"""What the recovery benchmark trains: damaged models, budgets, methods, settings, and the config of each training.

options, what validation chose -> Run -> config (its digest names the measurement) and PickConfig (its rows)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from datapipe.paser.pick_config import PickConfig
from datapipe.paser.recovery_training import RecoveryRecipe
from datapipe.selection.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

VARIANTS: dict[str, dict[str, float]] = {"depth24": {"blocks": 24}, "width75": {"width": 0.75}, "bits3": {"bits": 3}}
"""SmolLM2-135M-Instruct with 24 of 30 blocks, with three quarters of its neurons, with weights of three bits."""
ORIGINAL = "original"
BUDGETS = (0.1, 0.05, 0.2)
"""Parts of the pool's tokens, in the order in which they are measured."""
EPOCHS = 2.0
"""Passes of a chosen set; every method of a budget reads the same tokens in the same steps."""
BASELINES = ("random", "stratified", "longest", "ifd", "top_jsd", "paper")
"""Of `PickConfig`; `paper_shares` is the paper without its concept graph, which starves repetitive skills."""
METHODS = ("random", "ours", "longest", "paper", "stratified", "full_equal_tokens", "top_jsd", "ifd", "paper_shares")
RATES = (2e-4, 5e-4, 1e-3, 2e-3)
RATE_BUDGETS = (0.05, 0.2)
SETTING_VARIANTS, SETTING_BUDGETS = ("depth24", "bits3"), (0.05, 0.1)
_SHARES: dict[str, dict[str, Any]] = {
    "cds": {"power": 1.0},
    "cds_half": {"power": 1.0, "even": 0.5},
    "cds_squared": {"power": 2.0},
    "tilt": {"power": 1.0, "size_power": 1.0},
    "tilt_squared": {"power": 2.0, "size_power": 1.0},
    "equal": {"power": 0.0},
    "sizes": {"even": 1.0},
    "gain": {"power": 0.0, "prior": "pilots"},
    "gain_half": {"power": 0.0, "prior": "pilots", "even": 0.5},
}
_RULES = {"random": "random", "length": "length", "ies": "ies", "jsd": "jsd", "sum": "power:0", "root": "power:0.5"}
SETTINGS: dict[str, dict[str, Any]] = {
    f"{share} {rule}": {**_SHARES[share], "rule": _RULES[rule]}
    for share, rules in {
        "cds": ("random", "length", "ies", "jsd", "sum", "root"),
        "cds_half": ("random", "length", "sum"),
        "cds_squared": ("random",),
        "tilt": ("random", "length", "sum"),
        "tilt_squared": ("random",),
        "equal": ("random", "length", "sum"),
        "sizes": ("random", "length", "sum"),
        "gain": ("random",),
        "gain_half": ("random", "length"),
    }.items()
    for rule in rules
}
"""How `ours` may share out a budget and order the rows of a cluster, by name; conflicts are contradictions."""
Pilots = dict[str, dict[str, list[list[float]]]]
"""Worth of each cluster by variant and budget, from trainings on random rows; see `paser_tables.pilots`."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training to measure.

    Attributes:
        variant: One of `VARIANTS`, or the original.
        method: One of `METHODS`, `none` or `full`; or `setting NAME` for one of `SETTINGS`.
        budget: Part of the pool's tokens; 1 for all, 0 for no training.
        seed: Of the random order, and of the training.
        part: Held-out rows that are read: `validation` or `test`.
        rate: Greatest learning rate.
        batch_tokens: Of a step.
        max_length: Tokens of a row.
        setting: Of `ours`.
        data: Digests of the rows, the original, and of how they were scored.
    """

    variant: str
    method: str
    budget: float
    seed: int
    part: str
    rate: float
    batch_tokens: int
    max_length: int
    setting: Mapping[str, Any] | None
    data: tuple[str, ...]

    @property
    def config(self) -> dict[str, Any]:
        """What decides the measurement."""
        return {**asdict(self), "setting": dict(self.setting) if self.setting else None, "epochs": EPOCHS}

    def recipe(self, pool_tokens: int) -> RecoveryRecipe:
        """How it learns: `EPOCHS` times its part of the pool's tokens, whatever the set."""
        return RecoveryRecipe(
            tokens=max(1, round(EPOCHS * self.budget * pool_tokens)),
            learning_rate=self.rate,
            batch_tokens=self.batch_tokens,
            micro_tokens=self.batch_tokens,
            max_length=self.max_length,
            seed=self.seed,
        )

    def picks(self, pool_tokens: int) -> PickConfig | None:
        """How its rows are chosen; None for all rows."""
        if self.method in {"full", "full_equal_tokens", "none"}:
            return None
        budget = Budget(tokens=max(1, round(self.budget * pool_tokens)))
        if self.method == "paper_shares":
            return PickConfig(budget=budget, method="paper", conflicts="off")
        if self.setting is not None:
            return PickConfig(budget=budget, method="ours", **self.setting)
        if self.method not in BASELINES:
            raise ValueError(f"there is no method {self.method!r}")
        return PickConfig(budget=budget, method=self.method)  # type: ignore[arg-type]


def rate_runs(base: Run, variants: Sequence[str]) -> Iterator[Run]:
    """Random rows with each learning rate, on validation."""
    for budget in RATE_BUDGETS:
        for variant in variants:
            for rate in RATES:
                yield replace(base, variant=variant, method="random", budget=budget, rate=rate, part="validation")


def setting_runs(
    base: Run,
    variants: Sequence[str],
    budgets: Sequence[float],
    seeds: Iterable[int],
    rates: Mapping[str, float],
    pilots: Pilots,
) -> Iterator[Run]:
    """Each setting of ours, and random rows, stratified and longest to compare with, on validation."""
    named = {f"setting {name}": setting for name, setting in SETTINGS.items()}
    for seed in seeds:
        for budget in budgets:
            for method, setting in {**dict.fromkeys(("random", "stratified", "longest")), **named}.items():
                for variant in variants:
                    yield replace(
                        base,
                        variant=variant,
                        method=method,
                        budget=budget,
                        seed=seed,
                        setting=with_pilots(setting, pilots, variant, budget),
                        rate=rates[variant],
                        part="validation",
                    )


def reference_runs(base: Run, variants: Sequence[str], rates: Mapping[str, float], seeds: int) -> Iterator[Run]:
    """What the table is read against: untrained models, all rows, and the original with all rows."""
    for variant in (ORIGINAL, *variants):
        yield replace(base, variant=variant, method="none", budget=0.0, part="test", rate=0.0, seed=0)
    best = min(rates.values())
    yield replace(base, variant=ORIGINAL, method="full", budget=1.0, part="test", rate=best, seed=0)
    for seed in range(seeds):
        for variant in variants if seed == 0 else variants[:1]:
            yield replace(base, variant=variant, method="full", budget=1.0, part="test", rate=rates[variant], seed=seed)


def table_runs(
    base: Run,
    variants: Sequence[str],
    budgets: Sequence[float],
    seeds: int,
    rates: Mapping[str, float],
    ours: Mapping[str, Any],
    pilots: Pilots,
) -> Iterator[Run]:
    """Every method at every budget, a seed after the other, on test."""
    for seed in range(seeds):
        for budget in budgets:
            for variant in variants:
                for method in METHODS:
                    yield replace(
                        base,
                        variant=variant,
                        method=method,
                        budget=budget,
                        seed=seed,
                        rate=rates[variant],
                        setting=with_pilots(ours, pilots, variant, budget) if method == "ours" else None,
                        part="test",
                    )


def with_pilots(
    setting: Mapping[str, Any] | None, pilots: Pilots, variant: str, budget: float
) -> Mapping[str, Any] | None:
    """A setting with what pilots say clusters are worth, where it asks for that."""
    if setting is None or "prior" not in setting:
        return setting
    worth = tuple((int(cluster), float(value)) for cluster, value in pilots[variant][str(budget)])
    return {**{name: value for name, value in setting.items() if name != "prior"}, "cluster_prior": worth}
