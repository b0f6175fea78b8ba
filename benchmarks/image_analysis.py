"""Why cuts of images differ: what clusters know of classes, scores of each other, and what a cut keeps.

scores of a folder, true labels, settings -> rows of results/pruning_images_analysis.json

True labels and the margin of the label (AUM, mean of some trainings) are the yardstick; no method saw either that is
said to need no label. On the host, a minute. Called by `benchmarks.pruning_images analyse`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.image_plans import BY_VECTORS, METHODS, candidates, chosen, setting_of
from benchmarks.image_scores import COURSES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from benchmarks.image_plans import Setting
    from datapipe.storage.arrays import Float32, Int32, Int64

Row = dict[str, Any]

YARDSTICK = "aum"
HARD, EASY = 0.7, 0.3
"""Ranks above and below which a row is among the hardest and the easiest three tenths."""
_CANDIDATES = ("random in clusters", "pseudo_label_aum from 0.5", "coverage")


def of_clusters(clusters: Int32, labels: Int64) -> Row:
    """Mutual information (normalised by the mean entropy) and accuracy of clusters as labels, one cluster a class."""
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import normalized_mutual_info_score

    counts = np.zeros((int(clusters.max()) + 1, int(labels.max()) + 1), np.int64)
    np.add.at(counts, (clusters, labels), 1)
    matched = counts[linear_sum_assignment(-counts)].sum()
    return {
        "clusters": len(counts),
        "mutual_information": float(normalized_mutual_info_score(labels, clusters)),
        "accuracy": 100 * float(matched) / len(labels),
        "largest": 100 * float(counts.sum(1).max()) / len(labels),
    }


def of_scores(scores: Mapping[str, Float32], labels: Int64) -> Iterator[Row]:
    """Spearman's correlation of each score with the margin of the label, over all rows and the mean within classes."""
    from scipy.stats import spearmanr

    truth = scores[YARDSTICK]
    for name, values in scores.items():
        inside = [spearmanr(values[labels == each], truth[labels == each])[0] for each in np.unique(labels)]
        yield {
            "score": name,
            "correlation": float(spearmanr(values, truth)[0]),
            "correlation_within_classes": float(np.mean(inside)),
        }


def of_kept(kept: Int64, scores: Mapping[str, Float32], labels: Int64, *, best: Int64) -> Row:
    """What a cut keeps.

    Args:
        kept: Rows.
        scores: By name, `YARDSTICK` among them.
        labels: True classes, int64 (rows,).
        best: Rows that the best method with labels keeps.
    """
    ranks = np.argsort(np.argsort(scores[YARDSTICK], kind="stable"), kind="stable")[kept] / len(labels)
    shares = np.bincount(labels[kept], minlength=int(labels.max()) + 1) / len(kept)
    return {
        "mean_rank": float(ranks.mean()),
        "hardest": 100 * float((ranks > HARD).mean()),
        "easiest": 100 * float((ranks < EASY).mean()),
        "smallest_class": 100 * float(shares.min()),
        "largest_class": 100 * float(shares.max()),
        "in_best": 100 * float(np.isin(kept, best).mean()),
    }


def analysed(
    encoders: Mapping[str, tuple[Mapping[str, Float32], Mapping[str, Int32]]],
    labels: Int64,
    *,
    ours: Mapping[str, Mapping[str, Any]],
    fractions: Sequence[float],
    main: str,
) -> Iterator[tuple[Row, Row]]:
    """What identifies a row and its figures.

    Args:
        encoders: By name, scores and groups; `label` is among the groups.
        labels: True classes of the rows, int64.
        ours: Settings by choice and fraction, as `settings.json` holds them.
        fractions: Kept.
        main: The encoder whose rows hold what reads no vectors.
    """
    for encoder, (scores, groups) in encoders.items():
        yield {"part": "clusters", "encoder": encoder}, of_clusters(groups["cluster"], labels)
        for row in of_scores(scores, labels):
            if encoder != main and row["score"] in COURSES:
                continue
            yield {"part": "scores", "encoder": encoder, "score": row["score"]}, row
        for fraction in fractions:
            best = chosen(setting_of("default_labels", fraction, ours), scores, groups, fraction=fraction, seed=0)
            for name, setting in _cuts(fraction, ours).items():
                if not setting.reads <= {*scores, *groups} or (
                    encoder != main and name in METHODS and name not in BY_VECTORS
                ):
                    continue
                kept = chosen(setting, scores, groups, fraction=fraction, seed=0)
                about = {"part": "kept", "encoder": encoder, "fraction": fraction, "method": name}
                yield about, of_kept(kept, scores, labels, best=best)


def _cuts(fraction: float, ours: Mapping[str, Mapping[str, Any]]) -> dict[str, Setting]:
    """The methods of the table, and candidates that were tried on validation images."""
    tried = {choice: candidates(fraction, choice) for choice in ("label_free", "clusters")}
    found = {name: setting_of(name, fraction, ours) for name in METHODS}
    found |= {name: tried["label_free"][name] for name in _CANDIDATES if name in tried["label_free"]}
    start = next(iter(tried["clusters"]))
    return found | {start: tried["clusters"][start]}
