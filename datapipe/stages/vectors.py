"""The vectors of a run for the stages that read them all: shard by shard, in lists around centroids, without some rows.

    vectors -> VectorSource.codes -> [centroids of a sample -> list of each row] -> VectorLists on scratch

Rows are in row_id order. Memory: a bit a row, the sample of the centroids, and a shard.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from datapipe.pipeline import StageOutput
    from datapipe.storage.arrays import Bool, Float32
    from datapipe.storage.lists import VectorLists

SAMPLE_BYTES = 256 << 20


class VectorSource:
    """The vectors of a run, shard by shard, without those of rows that screening took out."""

    def __init__(self, inputs: Mapping[str, StageOutput], vectors: str, *, screened: bool) -> None:
        name, _, family = vectors.partition("/")
        self._source, self._family = inputs[name], family or None
        self._screen = inputs["screen"] if screened else None

    def left(self) -> Bool:
        """Which rows screening left, bool (all rows,)."""
        import numpy as np

        screen = self._screen.tables("excluded", columns=["row_id"]) if self._screen is not None else None
        tables = self._source.tables(self._family, columns=["row_id"])
        return np.concatenate([np.zeros(0, np.bool_), *(left_after_screening(table, screen) for table in tables)])

    def codes(self, left: Bool) -> Iterator[NDArray[np.uint16]]:
        """bfloat16 bits of the rows that are left, uint16 (rows, dim) a shard."""
        from datapipe.storage.vectors import codes

        start = 0
        for table in self._source.tables(self._family, columns=["vector"]):
            here = left[start : start + table.num_rows]
            start += table.num_rows
            bits = codes(table["vector"])
            yield bits if here.all() else bits[here]

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        from datapipe.storage.vectors import vector_info

        return vector_info(next(self._source.tables(self._family, columns=["vector"])).schema.field("vector")).dim

    def lists(
        self, left: Bool, *, k: int, seed: int, device: str, threads: int, path: Path
    ) -> tuple[VectorLists, Float32]:
        """Sort the rows that are left into lists around centroids of a sample, and return the centroids too.

        Args:
            left: Rows to take, bool (all rows,).
            k: Lists; fewer where the rows are fewer.
            seed: Of the centroids.
            device: Where rows are assigned.
            threads: Host threads; without effect on the result.
            path: File for the lists.

        Returns:
            The lists, and the centroids, float32 (lists, dim), unit length.
        """
        import numpy as np

        from datapipe.metrics.assign import Assigner
        from datapipe.storage.lists import build_lists

        rows, dim = int(left.sum()), self.dim
        if k <= 1:
            assigned, centroids = np.zeros(rows, np.int32), np.ones((1, dim), np.float32)
        else:
            centroids = self._centroids(left, k=k, seed=seed, device=device, threads=threads)
            with Assigner(centroids, device=device, threads=threads) as assigner:
                parts = [assigner.assign_bfloat16(bits)[1] for bits in self.codes(left)]
            assigned = np.concatenate(parts)
        return build_lists(self.codes(left), assigned, lists=len(centroids), dim=dim, path=path), centroids

    def _centroids(self, left: Bool, *, k: int, seed: int, device: str, threads: int) -> Float32:
        import numpy as np

        from datapipe.metrics.kmeans import spherical_kmeans

        rows, dim = int(left.sum()), self.dim
        size = min(rows, max(k, min(64 * k, SAMPLE_BYTES // (4 * dim))))
        # Row ids are digests, so equal steps through their order are a random sample.
        wanted = np.unique(np.linspace(0, rows - 1, size).astype(np.int64))
        sample, start = [], 0
        for bits in self.codes(left):
            here = wanted[(wanted >= start) & (wanted < start + len(bits))] - start
            start += len(bits)
            wide = bits[here].astype("<u4")
            sample.append(np.left_shift(wide, 16, out=wide).view("<f4"))
        return spherical_kmeans(
            np.concatenate(sample), k=min(k, len(wanted)), seed=seed, iterations=10, device=device, threads=threads
        )


def left_after_screening(table: pa.Table, screen: Iterator[pa.Table] | None) -> Bool:
    """Which rows of a shard screening left, bool (rows,); takes the next table of `screen`."""
    import numpy as np
    import pyarrow.compute as pc

    if screen is None:
        return np.ones(table.num_rows, np.bool_)
    out = pc.is_in(table["row_id"], value_set=next(screen)["row_id"].combine_chunks())
    left: Bool = ~out.to_numpy().astype(np.bool_)
    return left
