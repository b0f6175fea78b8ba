"""What a metric declares about its values: direction, needs, source.

A metric is a pure function from arrays to one float32 score a row; this file holds only its declaration, so that the
command line, the advisor and the report can speak about it without importing it. A new metric is one line in `METRICS`,
one function in its family's file and one family in `datapipe.stages.scoring`. `get_metric` raises `MetricError` for an
unknown name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from datapipe.errors import MetricError

if TYPE_CHECKING:
    from collections.abc import Callable

Direction: TypeAlias = Literal["harder", "rarer", "better"]
Need: TypeAlias = Literal["vectors", "labels", "dynamics", "scores"]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The declaration of one metric.

    Attributes:
        name: What `--metric` takes, and the name of the score column.
        higher: What a higher score says of a row: "harder" to learn, "rarer" in the set, or "better" to keep.
        needs: What the metric reads beside the row ids: vectors, class labels, the dynamics of a proxy that is trained
            on them, or a file of scores.
        source: The paper that defines it, and where it is not the whole of it.
        low: Least possible score; -inf for none.
        high: Greatest possible score; inf for none. The range is closed.
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
    Metric(
        name="prototypes_supervised",
        higher="harder",
        needs=frozenset({"vectors", "labels"}),
        source="Sorscher et al. 2022, arXiv 2206.14486, supervised prototypes: one prototype a class",
        low=0.0,
        high=2.0,
        summary="One minus the cosine to the mean vector of the row's own class.",
    ),
    Metric(
        name="knn_density",
        higher="rarer",
        needs=frozenset({"vectors"}),
        source="Loftsgaarden & Quesenberry 1965; mean cosine distance in place of a volume",
        low=0.0,
        high=2.0,
        summary="Mean cosine distance to the nearest neighbours: low in a dense region, high for an outlier.",
    ),
    Metric(
        name="typicality",
        higher="better",
        needs=frozenset({"vectors"}),
        source="Hacohen et al. 2022, arXiv 2202.02794, section on typicality",
        low=0.0,
        high=math.inf,
        summary="Inverse mean distance to the nearest neighbours: high for a row that stands for many.",
    ),
    Metric(
        name="coverage",
        higher="better",
        needs=frozenset({"vectors"}),
        source="ZCore: Griffin et al. 2026, arXiv 2411.15349; its draws share 512 planes",
        low=-math.inf,
        high=math.inf,
        summary="How much of the embedding space a row covers beyond its neighbours.",
    ),
    Metric(
        name="pseudo_label_aum",
        higher="harder",
        needs=frozenset({"vectors"}),
        source="ELFS: Zheng et al. 2025, arXiv 2406.04273; k-means labels and a head on frozen vectors",
        low=-1.0,
        high=1.0,
        summary="Minus the area under the margin of a head that learns cluster labels: high for a contested row.",
    ),
    Metric(
        name="el2n",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="Paul et al. 2021, arXiv 2107.07075",
        low=0.0,
        high=math.sqrt(2.0),
        summary="Length of the error vector (probabilities minus the label) early in training, mean over heads.",
    ),
    Metric(
        name="grand",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="Paul et al. 2021, arXiv 2107.07075; of the last layer, in closed form",
        low=0.0,
        high=math.inf,
        summary="Length of the loss's gradient by the last layer's weights, mean over heads.",
    ),
    Metric(
        name="margin",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="Scheffer et al. 2001; Coleman et al. 2020, arXiv 1906.11829",
        low=0.0,
        high=1.0,
        summary="One minus the gap between the two greatest probabilities.",
    ),
    Metric(
        name="entropy",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="Shannon 1948; Coleman et al. 2020, arXiv 1906.11829",
        low=0.0,
        high=math.inf,
        summary="Entropy of the predicted probabilities, in nats.",
    ),
    Metric(
        name="forgetting",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="Toneva et al. 2019, arXiv 1812.05159, forgetting events",
        low=0.0,
        high=math.inf,
        summary="How often training went from right to wrong on the row; the epochs plus one if it was never right.",
    ),
    Metric(
        name="aum",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="Pleiss et al. 2020, arXiv 2001.10528; of probabilities, with the sign turned",
        low=-1.0,
        high=1.0,
        summary="Minus the mean margin of the label over training: high where another class wins.",
    ),
    Metric(
        name="dual",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="DUAL: Cho et al. 2025, arXiv 2502.06905",
        low=0.0,
        high=0.5,
        summary="Difficulty times uncertainty of the label's probability, mean over windows of epochs.",
    ),
    Metric(
        name="memorization",
        higher="harder",
        needs=frozenset({"vectors", "labels", "dynamics"}),
        source="Feldman & Zhang 2020, arXiv 2008.03703; of heads trained on halves",
        low=-1.0,
        high=1.0,
        summary="Probability of the label when the row was trained on, minus that when it was not.",
    ),
    Metric(
        name="imported",
        # What its values mean comes with the file; "better" keeps it out of every rule about difficulty until then.
        higher="better",
        needs=frozenset({"scores"}),
        source="a score file of the user's",
        low=-math.inf,
        high=math.inf,
        summary="A score that was computed elsewhere, joined by id.",
    ),
)


_FAMILIES: tuple[tuple[str, Callable[[frozenset[Need]], bool]], ...] = (
    ("Without labels", lambda needs: needs <= {"vectors"}),
    ("With labels", lambda needs: needs == {"vectors", "labels"}),
    ("With labels, of heads as they learn, or of your own training", lambda needs: "dynamics" in needs),
    ("From a file", lambda needs: "scores" in needs),
)


def metrics_told() -> str:
    """All metrics by family, a paragraph each, as the help of a command prints them."""
    lines = []
    for title, belongs in _FAMILIES:
        lines += [f"{title}:", *(f"- {each.name}: {each.summary}" for each in METRICS if belongs(each.needs))]
    return "\n\n".join(lines)


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
