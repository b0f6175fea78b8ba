"""What a choice of rows depends on, and what is known of the rows; see `datapipe.paser.pick`. Raises `ConfigError`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from datapipe.errors import ConfigError
from datapipe.paser.conflicts import CONFLICTS, OTHER_ANSWER, Conflicts
from datapipe.paser.ies import RULES, alpha_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.paser.allocate import Degradation
    from datapipe.paser.conflicts import Verdict
    from datapipe.selection.budget import Budget
    from datapipe.storage.arrays import Bool, Float32, Float64, Int64, UInt64

Method = Literal["ours", "paper", "random", "stratified", "longest", "ifd", "top_jsd"]
METHODS: tuple[str, ...] = get_args(Method)

_UNDAMAGED = 1e-6
_OWN_CONFLICTS: dict[str, Conflicts] = {"ours": "contradiction", "paper": "paper"}


@dataclass(frozen=True, kw_only=True)
class PickConfig:
    """How rows are chosen.

    Attributes:
        budget: A fraction of the pool's rows, rows, or tokens of prompt and response.
        method: `ours`; `paper`, the published rule to the letter; or a baseline: `random`, `stratified` by the size of
            the clusters, `longest` response first, `ifd` (instruction-following difficulty), `top_jsd`.
        rule: What orders the rows of a cluster under `ours`: `ies`, `jsd`, `length`, `random` or `power:ALPHA`.
        power: A cluster's share of the budget goes with its CDS to this power, >= 0.
        size_power: And with its size to this power, >= 0: 0 as published, 1 tilts the pool's own mix.
        even: Part of the budget that follows the clusters' sizes instead, 0 ... 1.
        cluster_prior: What clusters are worth, by number; 1 where not named.
        source_prior: What sources are worth, by name; 1 where not named. A cluster is worth the mean over its rows.
        floor: Least part of the budget of each cluster that holds so much, 0 ... 1.
        ceiling: Largest part of the budget of a cluster while another can take it, 0 ... 1.
        conflicts: `contradiction`, `paper` or `off`; None is the method's own: contradiction for `ours`, paper for
            `paper`, off for the baselines.
        other: Cosine below which two answers say something else, for `contradiction`.
        prior_rows: Rows' worth of the mean of all that a cluster's CDS is shrunk by, >= 0; unused by `paper`.
        noise: Damage that two runs of one model differ by, >= 0, taken off the CDS; unused by `paper`.
        seed: Of the intervals, and of the random order that the caller makes.
    """

    budget: Budget
    method: Method = "ours"
    rule: str = "ies"
    power: float = 1.0
    size_power: float = 0.0
    even: float = 0.0
    cluster_prior: tuple[tuple[int, float], ...] = ()
    source_prior: tuple[tuple[str, float], ...] = ()
    floor: float = 0.0
    ceiling: float = 1.0
    conflicts: Conflicts | None = None
    other: float = OTHER_ANSWER
    prior_rows: float = 20.0
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant. Raises `ConfigError`."""
        for name, value, known in (("method", self.method, METHODS), ("conflicts", self.filter, CONFLICTS)):
            if value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}. Got {value!r}")
        if self.rule not in RULES:
            alpha_of(self.rule)
        for name in ("even", "floor", "ceiling"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is a part of the budget, 0 ... 1. Got {getattr(self, name)}")
        for name in ("power", "size_power", "prior_rows", "noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be finite and at least 0. Got {getattr(self, name)}")
        for each, worth in (*self.cluster_prior, *self.source_prior):
            if not 0.0 <= worth < math.inf:
                raise ConfigError(f"the prior of {each!r} must be finite and at least 0. Got {worth}")

    @property
    def filter(self) -> Conflicts:
        """The conflicts that are looked for."""
        return self.conflicts if self.conflicts is not None else _OWN_CONFLICTS.get(self.method, "off")

    def told(self) -> dict[str, Any]:
        """What the choice depends on under this method; settings without effect are left out."""
        names = ["budget", "method", "seed"]
        if self.method != "paper":
            names += ["prior_rows", "noise"]
        if self.method == "ours":
            names += ["rule", "power", "size_power", "even", "cluster_prior", "source_prior", "floor", "ceiling"]
        if self.filter == "contradiction":
            names += ["other"]
        return {"conflicts": self.filter, **{name: getattr(self, name) for name in names}}


@dataclass(frozen=True, kw_only=True, eq=False)
class PickRows:
    """The rows of a pool, in any order, and what is known of them.

    Attributes:
        labels: Cluster of each row, int64 (rows,) in [0, clusters).
        clusters: Their number.
        order: Place of each row in a random order, int64 (rows,), all different: of `storage.order.hash_order`.
        tokens: Of the response, int64 (rows,).
        prompt_tokens: Of the prompt, int64 (rows,).
        jsd: Mean divergence over the response's tokens, float64 (rows,), nats; NaN where not measured; None: nowhere.
        nll: Mean negative log-likelihood of the response under the pruned model, float64 (rows,); for `ifd`.
        alone: The same without the prompt; for `ifd`.
        answers: Vectors of the responses, float32 (rows, dim), unit length; for contradictions.
        asked: Key of what each row asks, uint64 (rows,), of `conflicts.asked_keys`; for contradictions. None takes it
            from the texts.
        texts: Instruction, input and response of each row; for the paper's conflicts.
        sources: Place of each row's source among `source_names`, int64 (rows,); for a prior over sources.
        source_names: Names of the sources.
    """

    labels: Int64
    clusters: int
    order: Int64
    tokens: Int64
    prompt_tokens: Int64
    jsd: Float64 | None = None
    nll: Float64 | None = None
    alone: Float64 | None = None
    answers: Float32 | None = None
    asked: UInt64 | None = None
    texts: Sequence[tuple[str, str, str]] | None = None
    sources: Int64 | None = None
    source_names: tuple[str, ...] = ()

    @property
    def length(self) -> Int64:
        """Tokens of prompt and response: what training reads, and what a budget of tokens counts."""
        return self.tokens + self.prompt_tokens


@dataclass(frozen=True, eq=False)
class Choice:
    """What a method chose; arrays (rows,) where nothing else is said.

    Attributes:
        chosen: Rows kept, int64 (kept,).
        rank: Place of each row in the order of preference, from 0.
        verdict: Which rows conflicts refuse.
        share: Of each cluster, float64 (clusters,).
        budget: Of each cluster, float64 (clusters,).
        asked: Rows that were looked at for conflicts.
    """

    chosen: Int64
    rank: Int64
    verdict: Verdict
    share: Float64
    budget: Float64
    asked: Bool


def undamaged(damage: Degradation) -> bool:
    """Whether the two models are the same, up to what the divergence of a model with itself rounds to."""
    return bool(damage.score.max() <= _UNDAMAGED)
