"""The names of a curation run's options and of their values; `datapipe.config` says what they mean and checks them."""

from __future__ import annotations

from typing import Literal, TypedDict

Strategy = Literal["auto", "hard", "easy", "random", "strata"]
DedupMode = Literal["none", "exact", "semantic"]
LeakRule = Literal["exact", "near"]
DedupKeep = Literal["first", "longest", "hardest", "easiest"]
MetricName = Literal[
    "prototypes",
    "random",
    "prototypes_supervised",
    "knn_density",
    "typicality",
    "coverage",
    "pseudo_label_aum",
    "el2n",
    "grand",
    "margin",
    "entropy",
    "forgetting",
    "aum",
    "dual",
    "memorization",
    "imported",
]
ExecutorName = Literal["local", "ray"]
ScoresHigher = Literal["harder", "easier", "rarer", "better"]

DEFAULT_KEEP = 0.3
DEFAULT_METRIC: MetricName = "prototypes"
SCORES_OPTIONS = ("scores", "scores_column", "scores_id", "scores_higher")
RECORDED_METRICS = ("el2n", "margin", "entropy", "forgetting", "aum", "dual")
"""What the dynamics of a user's own training give."""
RUN_OPTIONS = ("source", "out", "workers", "executor", "update")
"""What a config file may hold besides the fields of `CurateConfig`."""


class CurateOptions(TypedDict, total=False):
    """The keyword arguments of `datapipe.curate`, as `CurateConfig` documents them."""

    keep: float | None
    keep_rows: int | None
    keep_tokens: int | None
    metric: MetricName
    strategy: Strategy
    preset: str | None
    window_start: float | None
    balance: str | None
    text_column: str | None
    embedding_column: str | None
    label_column: str | None
    image_column: str | None
    id_column: str | None
    split_column: str | None
    split: str
    leaks: LeakRule
    dedup: DedupMode
    dedup_threshold: float
    dedup_keep: DedupKeep
    protect: str | None
    protect_threshold: float
    model: str
    tokenizer: str | None
    device: str | None
    prototypes: int | None
    dynamics: str | None
    scores: str | None
    scores_column: str | None
    scores_id: str | None
    scores_higher: ScoresHigher | None
    seed: int
    max_rejected: int | None
    shard_rows: int
