"""Accuracy of a frozen-embedding head on pruned text sets, against random rows and all of them.

    labelled texts -> MiniLM vectors (once, cached) -> rows by method, fraction -> heads, 5 seeds -> pruning_text.json

Run: python -m benchmarks.pruning_text FILE.parquet... [--fractions 0.1,0.3]. A file has text, label and split; test
rows are the split `test`, else every fifth row in the order of a hash of the text. Same steps and batch for every arm.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import finished, record, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.storage.arrays import Bool, Float32, Int64

NAME = "pruning_text"
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
METHODS = ("random", "prototypes_hard", "prototypes_easy", "el2n")
SEEDS = 5
ENCODER = "all-MiniLM-L6-v2"
STEPS, BATCH_ROWS = 1000, 128
CACHE = Path("/tmp") / "secateur-pruning-text"  # noqa: S108 - vectors only; made again where they are lost


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--fractions", default=",".join(map(str, FRACTIONS)))
    options = parser.parse_args()
    for file in options.files:
        _measure(file, [float(each) for each in options.fractions.split(",")])
    print(table(NAME, ["dataset", "fraction", "method", "seed", "accuracy", "worst_class", "seconds"]))


def _measure(file: Path, fractions: list[float]) -> None:
    vectors, labels, held = _read(file)
    classes = int(labels.max()) + 1
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    hardness = {
        "prototypes_hard": _prototypes(vectors[train], classes),
        "el2n": _el2n(vectors[train], labels[train], classes),
    }
    hardness["prototypes_easy"] = -hardness["prototypes_hard"]
    for method, fraction in [*((m, f) for f in fractions for m in METHODS), ("full", 1.0)]:
        configs = [_config(file.stem, method, fraction, seed) for seed in range(SEEDS)]
        if all(finished(NAME, config) for config in configs):
            continue
        arms = [train[_chosen(method, hardness, len(train), fraction, seed)] for seed in range(SEEDS)]
        for config, row in zip(configs, _rows(vectors, labels, arms, test, classes), strict=True):
            record(NAME, row, config)


def _config(dataset: str, method: str, fraction: float, seed: int) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "encoder": ENCODER,
        "model": "linear head",
        "fraction": fraction,
        "method": method,
        "seed": seed,
        "steps": STEPS,
        "batch_rows": BATCH_ROWS,
    }


def _rows(vectors: Float32, labels: Int64, arms: list[Int64], test: Int64, classes: int) -> Iterator[dict[str, Any]]:
    from datapipe.proof.heads import HeadRecipe, train_heads
    from datapipe.proof.statistics import worst_class

    started = time.perf_counter()
    found = train_heads(
        vectors,
        labels,
        arms,
        list(range(len(arms))),
        vectors[test],
        classes=classes,
        recipe=HeadRecipe(steps=STEPS, batch_rows=BATCH_ROWS),
    )
    seconds = (time.perf_counter() - started) / len(arms)
    for rows, predicted in zip(arms, found, strict=True):
        yield {
            "rows": len(rows),
            "accuracy": 100 * float((predicted == labels[test]).mean()),
            "worst_class": 100 * worst_class(predicted, labels[test], classes=classes),
            "seconds": seconds,
        }


def _chosen(method: str, hardness: dict[str, Float32], count: int, fraction: float, seed: int) -> Int64:
    kept = max(1, round(fraction * count))
    if method in {"random", "full"}:
        return np.random.Generator(np.random.Philox(key=[seed, 2])).permutation(count)[:kept].astype(np.int64)
    return np.argsort(-hardness[method], kind="stable")[:kept].astype(np.int64)


def _prototypes(vectors: Float32, classes: int) -> Float32:
    """One minus the cosine to the nearest of `classes` spherical k-means centroids, started at seeded rows."""
    draws = np.random.Generator(np.random.Philox(0))
    centroids = vectors[draws.choice(len(vectors), classes, replace=False)]
    for _ in range(20):
        nearest = (vectors @ centroids.T).argmax(1)
        sums = np.zeros_like(centroids)
        np.add.at(sums, nearest, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centroids = np.where(lengths > 0, sums / np.maximum(lengths, 1e-12), centroids)
    distance: Float32 = 1 - (vectors @ centroids.T).max(1)
    return distance


def _el2n(vectors: Float32, labels: Int64, classes: int) -> Float32:
    """Length of the error vector of a head after few steps, mean of ten (Paul et al. 2021, arXiv 2107.07075)."""
    from sklearn.linear_model import SGDClassifier

    total = np.zeros(len(labels))
    truth = np.eye(classes)[labels]
    for seed in range(10):
        head = SGDClassifier(loss="log_loss", max_iter=2, tol=None, random_state=seed).fit(vectors, labels)
        predicted = np.zeros_like(truth)
        found = head.predict_proba(vectors)
        predicted[:, head.classes_] = found if found.ndim > 1 else np.stack([1 - found, found], 1)
        total += np.linalg.norm(predicted - truth, axis=1)
    return (total / 10).astype(np.float32)


def _read(file: Path) -> tuple[Float32, Int64, Bool]:
    import pyarrow.parquet as pq

    from datapipe.embedding.text import embed_texts
    from datapipe.workers.worker import LocalWorker

    rows = pq.read_table(file, columns=["split", "text", "label"])
    texts, labels = rows["text"].to_pylist(), rows["label"].to_numpy().astype(np.int64)
    splits = np.array(rows["split"].to_pylist())
    held: Bool = splits == "test"
    if not held.any() or held.all():
        held = np.array([int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 5 == 0 for text in texts])
    cached = CACHE / f"{file.stem}.npy"
    if not cached.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with LocalWorker(device="auto") as worker:
            np.save(cached, embed_texts(worker, texts, model=ENCODER).vectors)
    return np.load(cached), labels, held


if __name__ == "__main__":
    main()
