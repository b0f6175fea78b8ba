"""What a metric declares about its values: direction, needs, source.

A metric is a pure function from arrays to one float32 score a row; this file holds only its declaration, so that the
command line, the advisor and the report can speak about it without importing it. A new metric is one line in `METRICS`
and one function in its family's file. `get_metric` raises `MetricError` for an unknown name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from datapipe.errors import MetricError

Direction: TypeAlias = Literal["harder", "rarer", "better"]
Need: TypeAlias = Literal["vectors", "labels", "teacher", "dynamics"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The declaration of one metric.

    Attributes:
        name: What `--metric` takes, and the name of the score column.
        higher: What a higher score says of a row: "harder" to learn, "rarer" in the set, or "better" to keep.
        needs: What the metric reads beside the row ids.
        source: The paper and equation or section that defines it.
        low: Least possible score.
        high: Greatest possible score; the range is closed.
        summary: One sentence for people, as the report prints it.
    """

    name: str
    higher: Direction
    needs: frozenset[Need]
    source: str
    low: float
    high: float
    summary: str


METRICS: tuple[Metric, ...] = (
    Metric(
        name="prototypes",
        higher="harder",
        needs=frozenset({"vectors"}),
        source="Sorscher et al. 2022, arXiv 2206.14486, self-supervised prototypes; cosine form of the released scores",
        low=0.0,
        high=2.0,
        summary="One minus the cosine to the nearest of k prototypes (spherical k-means centroids of the vectors).",
    ),
    Metric(
        name="random",
        # The value carries no meaning in any direction; "better" keeps it out of every rule about difficulty.
        higher="better",
        needs=frozenset(),
        source="Ben-Baruch et al. 2025, arXiv 2403.07854, random pruning; a hash of the row id in place of a generator",
        low=0.0,
        high=1.0,
        summary="The row's place in the seeded hash order, uniform in [0, 1); says nothing about the row.",
    ),
)


def get_metric(name: str) -> Metric:
    """Return the declaration of the metric called `name`.

    Raises:
        MetricError: No metric has this name; lists those there are.
    """
    for metric in METRICS:
        if metric.name == name:
            return metric
    known = ", ".join(metric.name for metric in METRICS)
    raise MetricError(f"There is no metric {name!r}; the metrics are: {known}.")
