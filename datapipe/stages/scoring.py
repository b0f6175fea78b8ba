"""Which stages compute a metric: one family of metrics a file, found by the metric's name.

    METRICS -> family_of(metric) -> ScoreFamily(stages, clusters, make) -> make(ScoreInputs) -> [..., score]

The last stage is always called `score` and has one shard a canonical shard: row_id, the metric's float32 column and,
where the family finds clusters, `cluster` (int32). A row without a score, such as one without a label, has NaN there
and leaves the pool as `unscored`. Families are imported when they are needed.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from datapipe.pipeline import Stage

__all__ = ["ScoreFamily", "ScoreInputs", "family_of"]


@dataclass(frozen=True, kw_only=True)
class ScoreInputs:
    """What a family's stages are made from.

    Attributes:
        metric: One of the family's metrics.
        vectors: Where the vectors are: `embed`, or `ingest/rows` for vectors that the source brings; None without.
        labelled: Whether `ingest/rows` has a column `label` (string, null where a row has none).
        screened: Whether `screen/excluded` names rows that are taken out; nothing is fitted to those.
        prototypes: Centroids k as asked for; None for the default.
        seed: Of whatever is drawn.
        device: Where the arithmetic runs, such as `cpu` or `cuda:0`.
        bits: What changes bits on that device.
        options: Further options of the run that concern the family, by name (`scores`, `scores_column`, ...).
    """

    metric: str
    vectors: str | None
    labelled: bool
    screened: bool
    prototypes: int | None
    seed: int
    device: str
    bits: Mapping[str, str]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScoreFamily:
    """Metrics that are computed by the same stages.

    Attributes:
        stages: Names of the stages, in order; the last is `score`.
        clusters: Whether the scores come with a cluster of each row.
        make: Makes the stages, in that order.
    """

    stages: tuple[str, ...]
    clusters: bool
    make: Callable[[ScoreInputs], Sequence[Stage]]


_MODULES = {
    "prototypes": "prototypes",
    "random": "random",
    "prototypes_supervised": "class_means",
    "knn_density": "neighbours",
    "typicality": "neighbours",
    "coverage": "coverage",
    "pseudo_label_aum": "pseudo_labels",
    "el2n": "dynamics",
    "grand": "dynamics",
    "margin": "dynamics",
    "entropy": "dynamics",
    "forgetting": "dynamics",
    "aum": "dynamics",
    "dual": "dynamics",
    "memorization": "memorization",
    "imported": "imported",
}
"""The file in this folder, each with its `FAMILY`, by metric."""


def family_of(metric: str) -> ScoreFamily:
    """Return the family that computes a metric of `datapipe.metrics.base.METRICS`."""
    family: ScoreFamily = importlib.import_module(f"datapipe.stages.{_MODULES[metric]}").FAMILY
    return family
