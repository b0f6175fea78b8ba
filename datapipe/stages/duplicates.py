"""Rows whose vectors say the same as those of another row, which stays.

    rows without repeats of their text -> lists around k ~ sqrt(rows / 2) centroids -> pairs -> duplicates.parquet

Writes row_id, kept (the row in whose place it is gone) and similarity, sorted by row_id. Of two rows that stays which
comes first in the order of `keep`; with `first`, which depends on the rows alone and on no centroid, the lower row id.
`screen` takes these rows out. Where it takes out the kept one too, for matching an evaluation row, what says the same
as that row stays out with it. Above `exact_rows` rows the facts hold the recall of the pairs of a sample.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.stages.device import DeviceStage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from datapipe.pipeline import Context, StageOutput
    from datapipe.storage.arrays import Bool, Float32, Ids, Int64
    from datapipe.storage.lists import VectorLists
    from datapipe.storage.stage import StageDir

_log = logging.getLogger(__name__)

DUPLICATES = "duplicates.parquet"
EXACT_ROWS = 20_000
RECALL_ROWS = 512
MANY = 0.5
"""Part of the rows that may go before a warning says so."""


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """What is found.

    Attributes:
        vectors: Where the vectors are.
        content: `text`, `image` or `vector`: repeats of a text or an image file are left to the exact rule.
        threshold: Cosine from which two rows say the same.
        keep: Which of them stays: `first`, the lowest row id; `longest`, by the characters of its text; `hardest`, the
            furthest from the centroid of its list, as SemDeDup has it; `easiest`, the nearest to it.
        split: The part of the source that is chosen from: rows of others are nobody's repeat. None for all.
        probes: Lists that each list is compared with, >= 1.
        exact_rows: Rows up to which all pairs are compared.
        seed: Seeds the centroids of the lists.
    """

    vectors: str
    content: str
    threshold: float
    keep: str = "first"
    split: str | None = None
    probes: int = 8
    exact_rows: int = EXACT_ROWS
    seed: int = 0


@dataclass(frozen=True)
class FindDuplicates(DeviceStage):
    """Search and decide. Memory: 60 bytes a row and 60 a pair."""

    name: ClassVar[str] = "duplicates"
    version: ClassVar[int] = 2

    settings: DuplicatesConfig

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, and the vectors where they are elsewhere."""
        return ("ingest/rows",) if self.settings.vectors == "ingest/rows" else ("ingest/rows", self.settings.vectors)

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Find the rows that go."""
        import numpy as np
        import pyarrow as pa

        from datapipe.dedup.semantic import semantic_duplicates
        from datapipe.metrics.knn import neighbour_lists
        from datapipe.stages.vectors import VectorSource
        from datapipe.storage.rowid import ids_from_arrow, ids_to_arrow

        settings = self.settings
        tables = inputs["ingest"].tables("rows", columns=["row_id"])
        ids = np.concatenate([ids_from_arrow(table["row_id"]) for table in tables])
        left = self._first_of_their_text(inputs["ingest"], ids, context.scratch) & self._own(inputs["ingest"], len(ids))
        source = VectorSource(inputs, settings.vectors, screened=False)
        rows = int(left.sum())
        k = 1 if rows <= settings.exact_rows else round((rows / 2) ** 0.5)
        lists, centroids = source.lists(
            left,
            k=k,
            seed=settings.seed,
            device=self.device,
            threads=context.workers,
            path=context.scratch / "lists.bf16",
        )
        near = neighbour_lists(centroids, settings.probes, threads=context.workers)
        found = semantic_duplicates(
            lists,
            near,
            self._rank(inputs["ingest"], left, lists, centroids),
            threshold=settings.threshold,
            device=self.device,
            threads=context.workers,
            tick=context.tick,
        )
        facts = {"rows": rows, "duplicates": len(found.rows), "pairs": found.pairs, "lists": len(lists)}
        if len(lists) > 1:
            facts |= self._recall(lists, near)
        if len(found.rows) > MANY * rows:
            _log.warning(
                "%s of %s rows say the same as another at a cosine of %g or more; %s stay. Is dedup_threshold too low "
                "for these vectors?",
                *(f"{len(found.rows):,}", f"{rows:,}", settings.threshold, f"{rows - len(found.rows):,}"),
            )
        own = ids[left]
        columns = {
            "row_id": ids_to_arrow(own[found.rows]),
            "kept": ids_to_arrow(own[found.kept]),
            "similarity": pa.array(found.similarity),
        }
        out.write_table(DUPLICATES, pa.table(columns))
        return [DUPLICATES], facts

    def _rank(self, ingest: StageOutput, left: Bool, lists: VectorLists, centroids: Float32) -> Int64:
        """The place of each row that is left in the order in which rows are kept, int64 (rows,)."""
        import numpy as np
        import pyarrow.compute as pc

        from datapipe.dedup.keepers import centrality, rank_of

        if self.settings.keep == "first":
            return np.arange(len(lists.rows))
        if self.settings.keep == "longest":
            tables = ingest.tables("rows", columns=["text"])
            lengths = [pc.utf8_length(table["text"]).to_numpy() for table in tables]
            return rank_of(np.concatenate(lengths)[left].astype(np.float64))
        near = centrality(lists, centroids)
        return rank_of(near if self.settings.keep == "easiest" else -near)

    def _recall(self, lists: VectorLists, near: Int64) -> dict[str, Any]:
        """Which part of the pairs of some rows lies in lists that are compared; None where they have no pair."""
        import numpy as np

        from datapipe.dedup.semantic import pair_recall

        rows = len(lists.rows)
        # Row ids are digests, so equal steps through their order are a random sample.
        chosen = np.linspace(0, rows - 1, min(RECALL_ROWS, rows)).astype(np.int64)
        sample = np.flatnonzero(np.isin(lists.rows, chosen))
        found, every = pair_recall(lists, near, sample, threshold=self.settings.threshold)
        return {"recall": round(found / every, 4) if every else None, "recall_pairs": every}

    def _own(self, ingest: StageOutput, rows: int) -> Bool:
        """Which rows are of the part that is chosen from, bool (rows,)."""
        import numpy as np
        import pyarrow.compute as pc

        if self.settings.split is None:
            return np.ones(rows, np.bool_)
        tables = ingest.tables("rows", columns=["split"])
        own = [pc.fill_null(pc.equal(table["split"], self.settings.split), fill_value=False) for table in tables]
        return np.concatenate([each.to_numpy() for each in own])

    def _first_of_their_text(self, ingest: StageOutput, ids: Ids, scratch: Path) -> Bool:
        """Which rows repeat no text of a lower row id, bool (rows,)."""
        import numpy as np

        from datapipe.dedup.exact import exact_duplicates
        from datapipe.stages.screen import content_keys
        from datapipe.storage.rowid import ids_from_arrow

        left = np.ones(len(ids), np.bool_)
        if self.settings.content == "vector":
            return left

        def keys() -> Iterator[tuple[Ids, Ids]]:
            for table in ingest.tables("rows", columns=["row_id", self.settings.content]):
                yield ids_from_arrow(table["row_id"]), content_keys(table[self.settings.content])

        order = np.dtype([("hi", ">u8"), ("lo", ">u8")])
        whole = np.ascontiguousarray(ids.astype(">u8")).view(order).ravel().view("S16")
        for again, _ in exact_duplicates(keys(), scratch):
            repeat = np.ascontiguousarray(again.astype(">u8")).view(order).ravel().view("S16")
            left[np.searchsorted(whole, repeat)] = False
        return left
