"""Scores of the training images of the image benchmark: from short trainings, and from vectors.

    images, labels -> trainings, watched -> el2n, aum, dual, forgetting        vectors -> prototypes, knn_density, ...

Each score is one file of float32 (rows,) in the order of the rows, higher is harder, beside `seconds.json`. Metrics are
those of `datapipe.metrics` and `datapipe.proxies`, on the host, whatever threads there are. (`mean_probability` is no
difficulty, but where DUAL takes its density.)
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.proof.images import ImageTrainer
    from datapipe.storage.arrays import Float32, Int32, Int64

ROUNDS = 30
COURSE_SEED = 1000
COURSES = ("el2n", "aum", "dual", "forgetting", "mean_probability")
VECTOR_SCORES = ("prototypes", "pseudo_label_aum", "knn_density", "coverage")
GROUPS = ("cluster", "agreed")
"""Clusters by k-means, and those that neighbours agree on."""
NEIGHBOURS = 10


def courses(trainer: ImageTrainer, labels: Int64, *, trainings: int) -> dict[str, Float32]:
    """`COURSES`, each the mean of some trainings on all rows, by these labels, that were watched `ROUNDS` times."""
    import torch

    from datapipe.metrics.dynamics import metrics_of
    from datapipe.metrics.errors_of_heads import predicted

    rows, truth = np.arange(len(labels)), torch.from_numpy(labels)
    total = {name: np.zeros(len(labels)) for name in COURSES}
    for training in range(trainings):
        each: dict[str, list[Float32]] = {name: [] for name in ("probability", "margin", "error", "gap", "entropy")}

        def watch(_: int, found: Float32, each: dict[str, list[Float32]] = each) -> None:
            said = predicted(torch.from_numpy(found), truth)
            for name, values in each.items():
                values.append(getattr(said, name).numpy())

        trainer.train(rows, seed=COURSE_SEED + training, labels=labels, watch=watch, rounds=ROUNDS)
        course = {name: np.stack(values) for name, values in each.items()}
        course |= {name: course[name][-1] for name in ("gap", "entropy")}
        for name, values in metrics_of(course).items():
            if name in total:
                total[name] += values
    return {name: (values / trainings).astype(np.float32) for name, values in total.items()}


def of_vectors(vectors: Float32, *, classes: int, threads: int) -> tuple[dict[str, Float32], Int32, dict[str, float]]:
    """Return `VECTOR_SCORES`, the cluster of each row, and seconds by score.

    Args:
        vectors: Float32 (rows, dim), unit length.
        classes: Clusters of prototypes and pseudo labels: the number of classes, but no label.
        threads: Host threads.
    """
    from datapipe.metrics.assign import Assigner
    from datapipe.metrics.coverage import coverage
    from datapipe.metrics.density import knn_density
    from datapipe.metrics.kmeans import spherical_kmeans
    from datapipe.metrics.knn import nearest_cosines, neighbour_lists
    from datapipe.metrics.pseudo_labels import cluster_sizes
    from datapipe.proxies.heads import HeadConfig, HeadData
    from datapipe.proxies.training import Place, aum_of_heads, default_batch
    from datapipe.storage.lists import build_lists
    from datapipe.storage.vectors import codes as codes_of
    from datapipe.storage.vectors import decode, encode

    stored = encode(vectors)
    codes, vectors = codes_of(stored), decode(stored)
    scores, seconds, started = {}, {}, time.perf_counter()

    def done(name: str, values: Float32) -> None:
        nonlocal started
        scores[name], seconds[name] = values.astype(np.float32), time.perf_counter() - started
        started = time.perf_counter()

    def clustered(k: int, seed: int) -> tuple[Float32, Int32]:
        centres = spherical_kmeans(vectors, k=k, seed=seed, threads=threads)
        with Assigner(centres, threads=threads) as assigner:
            return assigner.assign(vectors)

    cosines, clusters = clustered(classes, 0)
    done("prototypes", 1 - cosines)
    with tempfile.TemporaryDirectory() as scratch:
        sizes = cluster_sizes(len(vectors), prototypes=classes)
        every = np.arange(len(vectors))
        datas = [HeadData(codes, clustered(k, seed)[1], every, k) for seed, k in enumerate(sizes)]
        config = HeadConfig(batch_rows=default_batch(len(vectors)))
        place = Place(scratch=Path(scratch), threads=threads)
        done("pseudo_label_aum", aum_of_heads(datas, config, seed=0, place=place))
        one = np.zeros(len(vectors), np.int32)
        lists = build_lists(iter([codes]), one, lists=1, dim=vectors.shape[1], path=Path(scratch) / "lists")
        near = neighbour_lists(np.ones((1, vectors.shape[1]), np.float32), 1)
        done("knn_density", knn_density(nearest_cosines(lists, near, k=NEIGHBOURS, threads=threads)))
    # Coverage is high where a row is worth keeping, which is what the plans take for hard.
    done("coverage", coverage(np.ascontiguousarray(codes.T), seed=0, threads=threads))
    return scores, clusters, seconds


def mean_rank(scores: Sequence[Float32]) -> Float32:
    """Return the mean rank of each row by some scores, as a part of the rows, float32 (rows,)."""
    ranks = [np.argsort(np.argsort(each, kind="stable"), kind="stable") for each in scores]
    found: Float32 = (np.mean(ranks, axis=0) / len(scores[0])).astype(np.float32)
    return found


def save(folder: Path, scores: dict[str, Float32], seconds: dict[str, float], *, prefix: str = "") -> None:
    """Write scores, and add their seconds to those known."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, values in scores.items():
        np.save(folder / f"{prefix}{name}.npy", values)
    told = folder / f"{prefix}seconds.json"
    known = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    told.write_text(json.dumps(known | seconds) + "\n", encoding="utf-8")


def read(folder: Path, encoder: str) -> tuple[dict[str, Float32], dict[str, Int32], dict[str, float]]:
    """Scores, groups and seconds, those of an encoder's vectors too; what is not there is left out."""
    scores, groups, seconds = {}, {}, {}
    for prefix in ("", f"{encoder}."):
        for path in folder.glob(f"{prefix}*.npy"):
            name = path.name.removeprefix(prefix).removesuffix(".npy")
            if "." not in name:
                (groups if name in GROUPS else scores)[name] = np.load(path)
        told = folder / f"{prefix}seconds.json"
        if told.is_file():
            seconds |= json.loads(told.read_text(encoding="utf-8"))
    return scores, groups, seconds
