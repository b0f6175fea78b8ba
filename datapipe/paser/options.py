"""What a selection for recovery is asked for: one frozen dataclass, checked when it is made.

    options -> RecoveryConfig -> PoolColumns, PickConfig, ClusterConfig; budget in words

Raises `ConfigError` and `BudgetError`, before anything is read.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from datapipe.errors import BudgetError, ConfigError
from datapipe.paser.clusters import ClusterConfig
from datapipe.paser.pick_config import Method, PickConfig
from datapipe.selection.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.paser.conflicts import Conflicts
    from datapipe.storage.instructions import PoolColumns

__all__ = ["DEFAULT_KEEP", "RecoveryConfig"]

DEFAULT_KEEP = 0.2
"""Fraction kept where no budget is given: the paper's for pools of some ten thousand rows."""
_PAPER_SETS = (
    "method",
    "rule",
    "power",
    "size_power",
    "even",
    "prior",
    "source_prior",
    "floor",
    "ceiling",
    "conflicts",
)
"""Options that `mode="paper"` decides."""


@dataclass(frozen=True, kw_only=True)
class RecoveryConfig:
    """Options of a run. Unset columns are found by their usual names.

    Attributes:
        keep: Fraction of the pool's rows to keep, 0 < keep <= 1; 0.2 where no budget is given. A budget above the pool
            keeps all of it, with a warning.
        keep_rows: Rows to keep, at least 1. Excludes `keep` and `keep_tokens`.
        keep_tokens: Tokens of prompts and responses to keep at most, by the models' tokenizer.
        method: `ours`; `paper`, the published rule to the letter; or a baseline: `random`, `stratified` by the size of
            the skills, `longest` response, `ifd` (instruction-following difficulty), `top_jsd` (the most damaged rows).
        mode: `paper` for everything as published, so it excludes what it decides: the method, its settings and the
            conflicts.
        clusters: Skills; None finds how many there are. A `ClusterConfig` says everything.
        survey: Measure the damage on a sample of each skill, until its share of the budget is known, not on all rows;
            rows that were not measured count as the mean of their skill. Excludes `ifd` and `top_jsd`.
        rule: What orders the rows of a skill under `ours`: `ies`, `jsd`, `length`, `random` or `power:ALPHA`.
        power: A skill's share of the budget goes with its damage to this power, >= 0.
        size_power: And with its size to this power, >= 0: 0 as published, 1 tilts the pool's own mix.
        even: Part of the budget that follows the skills' sizes instead, 0 ... 1.
        prior: What skills are worth, by number; 1 where not named.
        source_prior: What sources are worth, by name; a skill is worth the mean over its rows.
        floor: Least part of the budget of each skill that holds so much, 0 ... 1.
        ceiling: Largest part of the budget of one skill, 0 ... 1.
        conflicts: `contradiction`, `paper` or `off`; None: contradiction for `ours`, paper for `paper`, else off.
        prior_rows: Rows' worth of the mean of all that a skill's damage is shrunk by, >= 0.
        seed: Of every draw.
        embedder: Embeds instructions and responses: `default` (embedded), a folder, or a cached hub id.
        max_length: Tokens of prompt and response that the models see; longer rows lose the beginning of the prompt.
        dtype: Precision of the models: `auto`, `float32`, `bfloat16` or `float16`.
        token_budget: Tokens of a batch; less memory, or more speed. None takes the worker's own.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; default from `DATAPIPE_DEVICE`, else `auto`.
        instruction_column: Where the usual names do not stand.
        input_column: The same.
        response_column: The same.
        messages_column: The same; takes conversations even where there are instructions.
        source_column: Where a row comes from; default: the column `source`, else the name of its file.
        max_chars: Characters of a row; longer ones are refused.
        shard_rows: Rows of a shard; a killed run loses the shards in the making. None takes 8,192, or as many as have
            128 MiB of the original's states, since each thread holds a shard.
    """

    keep: float | None = None
    keep_rows: int | None = None
    keep_tokens: int | None = None
    method: Method = "ours"
    mode: Literal["paper"] | None = None
    clusters: int | ClusterConfig | None = None
    survey: bool = False
    rule: str = "ies"
    power: float = 1.0
    size_power: float = 0.0
    even: float = 0.0
    prior: Mapping[int, float] = field(default_factory=dict)
    source_prior: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.0
    ceiling: float = 1.0
    conflicts: Conflicts | None = None
    prior_rows: float = 20.0
    seed: int = 0
    embedder: str = "default"
    max_length: int = 2048
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    token_budget: int | None = None
    device: str | None = None
    instruction_column: str | None = None
    input_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None
    source_column: str | None = None
    max_chars: int = 65_536
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in {None, "paper"}:
            raise ConfigError(f"mode must be paper, or left out. Got {self.mode!r}")
        if self.mode == "paper":
            self._refuse_beside_paper()
        for name in ("max_chars", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1. Got {value}")
        if self.max_length < 2:  # noqa: PLR2004 - a token, and one that follows
            raise ConfigError(f"max_length must be at least 2 tokens. Got {self.max_length}")
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be in [0, 2^63). Got {self.seed}")
        if isinstance(self.clusters, int) and self.clusters < 1:
            raise ConfigError(f"clusters counts skills, at least 1. Got {self.clusters}")
        method = self.pick.method  # which checks the budget and the choice
        if self.survey and method in {"ifd", "top_jsd"}:
            raise ConfigError(
                f"survey measures a sample of the rows, but {method} orders all of them by what they lost"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> RecoveryConfig:
        """Make the options from names and values. Raises `ConfigError` for an unknown name, and says a near one."""
        known = [each.name for each in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ConfigError(f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        prior = options.get("prior") or {}
        try:
            numbered = {int(number): worth for number, worth in prior.items()}
        except ValueError as error:
            raise ConfigError(f"prior names skills by their number, such as {{3: 2.0}}. Got {dict(prior)}") from error
        return cls(**{**options, "prior": numbered})

    @property
    def budget(self) -> Budget:
        """The budget. Raises `BudgetError` where several are given, or one is out of range."""
        given = {
            name: value
            for name, value in (("fraction", self.keep), ("rows", self.keep_rows), ("tokens", self.keep_tokens))
            if value is not None
        }
        if len(given) > 1:
            raise BudgetError("keep, keep_rows and keep_tokens exclude each other: give one of them")
        return Budget(**(given or {"fraction": DEFAULT_KEEP}))  # type: ignore[arg-type]

    @property
    def budget_in_words(self) -> str:
        """Such as `20 % of the pool`."""
        own = self.budget
        if own.fraction is not None:
            return f"{100 * own.fraction:g} % of the pool"
        return f"{own.rows:,} rows" if own.rows is not None else f"at most {own.tokens:,} tokens"

    @property
    def pick(self) -> PickConfig:
        """How rows are chosen."""
        if self.mode == "paper":
            return PickConfig(budget=self.budget, method="paper", seed=self.seed)
        return PickConfig(
            budget=self.budget,
            method=self.method,
            rule=self.rule,
            power=self.power,
            size_power=self.size_power,
            even=self.even,
            cluster_prior=tuple(sorted(self.prior.items())),
            source_prior=tuple(sorted(self.source_prior.items())),
            floor=self.floor,
            ceiling=self.ceiling,
            conflicts=self.conflicts,
            prior_rows=self.prior_rows,
            seed=self.seed,
        )

    @property
    def skills(self) -> ClusterConfig:
        """How skills are found."""
        if isinstance(self.clusters, ClusterConfig):
            return self.clusters
        return ClusterConfig(k=self.clusters, seed=self.seed)

    @property
    def columns(self) -> PoolColumns:
        """The columns that were named."""
        from datapipe.storage.instructions import PoolColumns

        return PoolColumns(
            instruction=self.instruction_column,
            input=self.input_column,
            response=self.response_column,
            messages=self.messages_column,
            source=self.source_column,
        )

    def told(self) -> dict[str, Any]:
        """Options that are not at their defaults, as plain values, for the page."""
        from datapipe.storage.digest import plain

        fresh = RecoveryConfig()
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        changed = {name: plain(value) for name, value in given.items() if value != getattr(fresh, name)}
        return {"method": self.pick.method, **changed}

    def _refuse_beside_paper(self) -> None:
        fresh = {each.name: each.default for each in fields(self)} | {"prior": {}, "source_prior": {}}
        changed = [name for name in _PAPER_SETS if getattr(self, name) not in (fresh[name], "paper")]
        if changed:
            raise ConfigError(f"mode paper decides {changed[0]}: leave out one of the two")
