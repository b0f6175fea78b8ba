"""The skills of a pool: which cluster of instructions each row is of, and what each cluster is about.

    vectors (question) -> one matrix, by row id -> cluster -> labels-*.parquet, clusters.npz, names and examples

Reads `vectors` and `pool/rows`, all of them. Writes labels (row_id, cluster int32, membership float32: the row's share
in its cluster) aligned with the rows, and `clusters.npz`, with which rows that come later get theirs
(`datapipe.paser.clusters_file`). Rows lie in the order of their ids, so nothing depends on how the source was cut.
Cluster 0 is the largest. Raises `ConfigError` for settings that do not fit the rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.paser.clusters import ClusterConfig
from datapipe.stages.device import DeviceStage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.paser.clusters import Clusters
    from datapipe.pipeline import Context, StageOutput
    from datapipe.storage.arrays import Float32, Int64
    from datapipe.storage.stage import StageDir

__all__ = ["CLUSTERS", "FindSkills", "SkillsConfig"]

CLUSTERS = "clusters.npz"
NAME_ROWS = 2_000
"""Rows of a cluster that are read for its name: the first by row id, which is at random."""
EXAMPLES = 3
_LOOKED_AT = 64
"""Rows nearest the centre that are looked at for examples that differ."""
_SHOWN = 300
"""Characters of an example."""


@dataclass(frozen=True, kw_only=True)
class SkillsConfig:
    """What the skills depend on.

    Attributes:
        clusters: How rows are clustered.
        words: Words in the name of a cluster, at most.
    """

    clusters: ClusterConfig = field(default_factory=ClusterConfig)
    words: int = 4


@dataclass(frozen=True)
class FindSkills(DeviceStage):
    """Cluster the instructions of a pool. Memory: 4 * dim bytes a row, and what `cluster` needs beside them."""

    name: ClassVar[str] = "skills"
    version: ClassVar[int] = 1

    settings: SkillsConfig

    @property
    def needs(self) -> tuple[str, ...]:
        """The vectors, and the words."""
        return ("vectors", "pool/rows")

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Cluster, and write what was found.

        Facts: `rows`; `k`; `sizes`; `stability` by number of clusters tried; `recall` of the neighbours; `components`
        of the graph; `eigenvalues`; `names`, words of each cluster; `examples`, row id and instruction of the rows
        nearest the centre of each.
        """
        from datapipe.paser.clusters import cluster
        from datapipe.paser.clusters_file import save_clusters

        vectors = _matrix(inputs["vectors"])
        found = cluster(
            vectors,
            self.settings.clusters,
            device=self.device,
            threads=context.workers,
            progress=lambda _: context.tick(0),
        )
        near = _nearest_rows(vectors, found.labels, found.k)
        del vectors
        if out.done(CLUSTERS) is None:
            with out.file(CLUSTERS) as (path, _), path.open("wb") as file:
                save_clusters(found, file)
        words = _Words(found.labels, near, k=found.k)
        for table in inputs["pool"].tables("rows", columns=["row_id", "instruction", "input"]):
            words.read(table)
            context.tick(table.num_rows)
        facts = {
            **_facts(found),
            "names": [list(name) for name in words.names(most=self.settings.words)],
            "examples": words.examples(),
        }
        return [*_write_labels(inputs["vectors"], found, out), CLUSTERS], facts


def _matrix(vectors: StageOutput) -> Float32:
    """All questions, float32 (rows, dim), unit length to the last bit that bfloat16 left."""
    import numpy as np

    from datapipe.storage.vectors import decode

    whole: Float32 | None = None
    start = 0
    for table in vectors.tables(columns=["question"]):
        part = decode(table["question"])
        if whole is None:
            whole = np.empty((vectors.manifest.rows, part.shape[1]), np.float32)
        whole[start : start + len(part)] = part
        start += len(part)
    return whole if whole is not None else np.empty((0, 1), np.float32)


def _facts(found: Clusters) -> dict[str, Any]:
    import numpy as np

    return {
        "rows": len(found.labels),
        "k": found.k,
        "sizes": np.bincount(found.labels, minlength=found.k).tolist(),
        "stability": {str(k): round(value, 4) for k, value in found.stability.items()},
        "recall": round(found.recall, 4),
        "components": found.components,
        "eigenvalues": [round(float(value), 8) for value in found.eigenvalues],
    }


def _nearest_rows(vectors: Float32, labels: Int64, k: int) -> list[list[int]]:
    """Of each cluster the rows nearest to the mean of its vectors, nearest first."""
    import numpy as np

    found: list[list[int]] = []
    for number in range(k):
        rows = np.flatnonzero(labels == number)
        if not len(rows):  # a row is of the cluster in which its share is largest, which may leave one without
            found.append([])
            continue
        cosines = vectors[rows] @ vectors[rows].mean(axis=0, dtype=np.float64).astype(np.float32)
        found.append(rows[np.argsort(-cosines, kind="stable")[:_LOOKED_AT]].tolist())
    return found


class _Words:
    """Texts for the names and examples of the clusters, taken while the rows are read once."""

    def __init__(self, labels: Int64, near: Sequence[Sequence[int]], *, k: int) -> None:
        self._labels, self._near, self._k = labels, near, k
        self._wanted = {row for rows in near for row in rows}
        self._shown: dict[int, tuple[str, str]] = {}
        self._left = [NAME_ROWS] * k
        self._texts: list[str] = []
        self._own: list[int] = []
        self._start = 0

    def read(self, table: Any) -> None:
        from datapipe.stages.instruction_vectors import questions

        instructions, texts, ids = table["instruction"], questions(table), table["row_id"]
        for place, text in enumerate(texts):
            row = self._start + place
            number = int(self._labels[row])
            if self._left[number]:
                self._left[number] -= 1
                self._texts.append(text)
                self._own.append(number)
            if row in self._wanted:
                self._shown[row] = (ids[place].as_py().hex(), instructions[place].as_py()[:_SHOWN])
        self._start += len(texts)

    def names(self, *, most: int) -> list[tuple[str, ...]]:
        import numpy as np

        from datapipe.paser.names import cluster_names

        found = cluster_names(self._texts, np.array(self._own, np.int64), words=most)
        return [*found, *[()] * (self._k - len(found))]

    def examples(self) -> list[list[dict[str, str]]]:
        found = []
        for rows in self._near:
            distinct = {self._shown[row][1]: self._shown[row][0] for row in reversed(rows)}
            some = list(reversed(distinct.items()))[:EXAMPLES]
            found.append([{"row_id": row_id, "instruction": instruction} for instruction, row_id in some])
        return found


def _write_labels(vectors: StageOutput, found: Clusters, out: StageDir) -> list[str]:
    import numpy as np
    import pyarrow as pa

    share = found.shares[np.arange(len(found.labels)), found.labels]
    names, start = [], 0
    for index, table in enumerate(vectors.tables(columns=["row_id"])):
        part = slice(start, start + table.num_rows)
        columns = [pa.array(found.labels[part], pa.int32()), pa.array(share[part], pa.float32())]
        fields = [table.schema.field("row_id"), *(pa.field(*each) for each in _LABELS)]
        whole = pa.Table.from_arrays([table["row_id"].combine_chunks(), *columns], schema=pa.schema(fields))
        names.append(f"labels-{index:05d}.parquet")
        out.write_table(names[-1], whole)
        start = part.stop
    return names


_LABELS = (("cluster", "int32"), ("membership", "float32"))
