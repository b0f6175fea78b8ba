"""Names of clusters: the words that tell one from the others.

    texts, labels -> words and pairs of words by cluster -> class-based TF-IDF -> names

As Grootendorst 2022 (arXiv 2203.05794) weighs them. Raises `ConfigError` if texts and labels differ in number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Int64

_WORD = r"(?u)\b[^\W\d_]{2,}\b"
_MOST_TERMS = 50_000
_READ = 2_000
"""Characters of a text that are read: what is asked for stands at the beginning."""


def cluster_names(texts: Sequence[str], labels: Int64, *, words: int = 4, read: int = _READ) -> list[tuple[str, ...]]:
    """The words that are typical of each cluster, most typical first; fewer, or none, where there are no words.

    Weighs term t of cluster c by tf(t, c) * log(1 + A / f(t)), with tf its share of the cluster's terms, f its count in
    all clusters and A the mean count of terms a cluster. A word inside a pair that was named is not named again.

    Args:
        texts: One a row.
        labels: Cluster of each, int64 (rows,), >= 0.
        words: Names a cluster at most.
        read: Characters of each text that are looked at.

    Raises:
        ConfigError: There are more labels than texts, or fewer.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if len(texts) != len(labels):
        raise ConfigError(f"{len(texts):,} texts have {len(labels):,} labels")
    k = int(labels.max()) + 1 if len(labels) else 0
    counter = CountVectorizer(
        ngram_range=(1, 2), token_pattern=_WORD, stop_words="english", max_features=_MOST_TERMS, dtype=np.int64
    )
    try:
        counts = counter.fit_transform([text[:read] for text in texts])
    except ValueError:
        # scikit-learn has no other word for a vocabulary that is empty.
        return [()] * k
    terms = counter.get_feature_names_out()
    by_cluster = np.zeros((k, len(terms)))
    for number in range(k):
        by_cluster[number] = np.asarray(counts[np.flatnonzero(labels == number)].sum(axis=0)).ravel()
    sizes = by_cluster.sum(axis=1, keepdims=True)
    weights = by_cluster / np.maximum(sizes, 1.0) * np.log1p(sizes.mean() / np.maximum(by_cluster.sum(axis=0), 1.0))
    return [_chosen(terms, row, words) for row in weights]


def _chosen(terms: Sequence[str], weights: np.ndarray[tuple[int], np.dtype[np.float64]], words: int) -> tuple[str, ...]:
    chosen: list[str] = []
    for at in np.argsort(-weights, kind="stable")[: 8 * words].tolist():
        if weights[at] <= 0 or len(chosen) == words:
            break
        term = str(terms[at])
        shared = [each for each in chosen if set(term.split()) & set(each.split())]
        if not shared:
            chosen.append(term)
        elif len(term.split()) > len(shared[0].split()) and weights[at] > 0.5 * weights[list(terms).index(shared[0])]:
            chosen[chosen.index(shared[0])] = term
            chosen = [each for each in chosen if each not in shared[1:]]
    return tuple(chosen)
