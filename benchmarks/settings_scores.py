"""Training rows of a labelled set of texts, and every score by which settings are tried on them.

FILE.parquet -> MiniLM vectors, once -> heads watched, clusters, distances -> scores of the rows to learn from
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from datapipe.metrics.errors_of_heads import Predicted
    from datapipe.proxies.heads import HeadConfig, HeadData
    from datapipe.storage.arrays import Float32, Int32, Int64

HEADS = 4
ENCODER = "all-MiniLM-L6-v2"
CACHE = Path("/tmp") / "secateur-pruning-settings"  # noqa: S108 - vectors only; made again where they are lost


@dataclass(frozen=True, eq=False)
class Course:
    """What every head said of every row after every epoch, float32 (heads, epochs, rows)."""

    probability: Float32
    margin: Float32
    error: Float32


class ScoredRows:
    """The training rows of one set, cut in two."""

    def __init__(self, name: str, vectors: Float32, labels: Int64, held: NDArray[np.bool_]) -> None:
        self.name, self.vectors, self.labels = name, vectors, labels
        self.train, self.held = np.flatnonzero(~held), np.flatnonzero(held)
        self.classes = int(labels.max()) + 1

    @classmethod
    def read(cls, file: Path) -> Self:
        import pyarrow.parquet as pq

        from datapipe.embedding.text import embed_texts
        from datapipe.workers.worker import LocalWorker

        table = pq.read_table(file, columns=["split", "text", "label"], filters=[("split", "=", "train")])
        texts, labels = table["text"].to_pylist(), table["label"].to_numpy().astype(np.int64)
        cached = CACHE / f"{file.stem}.npy"
        if not cached.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with LocalWorker(device="auto") as worker:
                np.save(cached, embed_texts(worker, texts, model=ENCODER).vectors)
        held = np.array([int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 5 == 0 for text in texts])
        return cls(file.stem, np.load(cached), labels, held)

    def probability(self) -> Float32:
        probability = self.course().probability
        return mean_of(probability.reshape(-1, probability.shape[2]))

    def class_codes(self) -> Int32:
        return self.labels[self.train].astype(np.int32)

    def distances(self, k: int) -> tuple[Float32, Int32]:
        """Distance to the nearest of k prototypes, and which it is."""
        from datapipe.metrics.assign import Assigner
        from datapipe.metrics.kmeans import spherical_kmeans

        vectors = self.vectors[self.train]
        with Assigner(spherical_kmeans(vectors, k=k, seed=0, threads=1), device="cpu", threads=1) as assigner:
            cosines, clusters = assigner.assign(vectors)
        return 1 - cosines, clusters

    def density(self) -> Float32:
        """Mean cosine distance to the ten nearest rows."""
        vectors = self.vectors[self.train]
        nearest = [np.sort(part @ vectors.T, axis=1)[:, -11:-1] for part in np.array_split(vectors, 16)]
        distances: Float32 = (1 - np.concatenate(nearest).mean(1)).astype(np.float32)
        return distances

    def aum(self) -> Float32:
        margin = self.course().margin
        return -mean_of(margin.reshape(-1, margin.shape[2]))

    def head_data(self, labels: Int32, classes: int) -> HeadData:
        from datapipe.proxies.heads import HeadData

        codes = (np.ascontiguousarray(self.vectors[self.train]).view(np.uint32) >> 16).astype(np.uint16)
        return HeadData(codes, labels, np.arange(len(labels)), classes)

    def course(self) -> Course:
        """The dynamics of heads on the training rows, once."""
        file = CACHE / f"{self.name}-course.npy"
        if not file.exists():
            data = self.head_data(self.labels[self.train].astype(np.int32), self.classes)
            np.save(file, np.stack([_watched(data, _heads(len(self.train)), seed) for seed in range(HEADS)]))
        whole = np.load(file, mmap_mode="r")
        return Course(whole[:, 0], whole[:, 1], whole[:, 2])

    def by_clusters(self, sizes: list[int]) -> Float32:
        from datapipe.metrics.assign import Assigner
        from datapipe.metrics.kmeans import spherical_kmeans
        from datapipe.proxies.training import Place, aum_of_heads

        file = CACHE / f"{self.name}-clusters-{'-'.join(map(str, sizes))}.npy"
        if not file.exists():
            vectors, datas = self.vectors[self.train], []
            for seed, k in enumerate(sizes):
                centroids = spherical_kmeans(vectors, k=k, seed=seed, device="cpu", threads=1)
                with Assigner(centroids, device="cpu", threads=1) as assigner:
                    datas.append(self.head_data(assigner.assign(vectors)[1], k))
            with tempfile.TemporaryDirectory() as scratch:
                place = Place(scratch=Path(scratch), threads=1)
                np.save(file, aum_of_heads(datas, _heads(len(vectors)), seed=0, place=place))
        found: Float32 = np.load(file)
        return found


def mean_of(values: Float32) -> Float32:
    mean: Float32 = values.mean(0, dtype=np.float64).astype(np.float32)
    return mean


def _heads(count: int) -> HeadConfig:
    from datapipe.proxies.heads import HeadConfig
    from datapipe.proxies.training import default_batch

    return HeadConfig(batch_rows=default_batch(count))


def _watched(data: HeadData, config: HeadConfig, seed: int) -> Float32:
    """Probability, margin and error of every row after every epoch, float32 (3, epochs, rows)."""
    from datapipe.proxies.heads import train_head

    found = np.empty((3, config.epochs, len(data.labels)), np.float32)

    def watch(epoch: int, part: slice, predicted: Predicted, gradient: torch.Tensor) -> None:
        del gradient
        for at, values in enumerate((predicted.probability, predicted.margin, predicted.error)):
            found[at, epoch, part] = values.numpy()

    train_head(data, config, seed=seed, watch=watch)
    return found
