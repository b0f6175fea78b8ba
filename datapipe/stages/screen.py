"""Rows that must not be trained on, or need not be: matches of an evaluation set or another part, and repeats.

Reads `ingest/rows`, and vectors where near matches are looked for. Writes `excluded-*.parquet`, one a canonical shard:
row_id, reason (`other_split`, `protected`, `leak` or `duplicate`), rule, similarity, and the text that was matched.
Sorted by row_id. Raises `SelectionError` where no row is left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import SelectionError
from datapipe.pipeline import Context, SetStage, StageOutput
from datapipe.stages.leaks import all_leaks, exact_leaks, other_splits
from datapipe.stages.matching import EvaluationSet, Matcher, content_keys, evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

    from datapipe.storage.arrays import Ids
    from datapipe.storage.sort import ExternalSorter
    from datapipe.storage.stage import StageDir

__all__ = ["EvaluationSet", "Screen", "ScreenConfig", "content_keys"]


@dataclass(frozen=True, kw_only=True)
class ScreenConfig:
    """What is taken out.

    Attributes:
        dedup: `none`; `exact`: all but the first row id of each normalised text, or image file; `semantic`: those, and
            what the stage `duplicates` found.
        evaluation: sha256 of each evaluation file; empty for no protection.
        threshold: Cosine from which a row matches an evaluation row nearly.
        content: `text` or `image`, `vector` where there is neither: the column by which rows are equal.
        split: The only part of the source that is chosen from; None where it has no parts.
        leaks: Rules by which a row of that part matches one of another: `exact`, or `near` for all three.
    """

    dedup: str = "none"
    evaluation: tuple[str, ...] = ()
    threshold: float = 1.0
    content: str = "text"
    split: str | None = None
    leaks: str = "exact"


@dataclass(frozen=True)
class Screen(SetStage):
    """Find the rows to take out, each with its evidence.

    Attributes:
        settings: The frozen config.
        vectors: Where the vectors are; None where no near match is looked for.
        evaluation: Loads the rows to protect, once; None for no protection.
        digests: Digests of the models behind the evaluation rows' vectors.
    """

    name: ClassVar[str] = "screen"
    version: ClassVar[int] = 5

    settings: ScreenConfig
    vectors: str | None
    evaluation: Callable[[], EvaluationSet] | None
    digests: tuple[str, ...] = ()

    @property
    def config(self) -> ScreenConfig:
        """The frozen config."""
        return self.settings

    @property
    def needs(self) -> tuple[str, ...]:
        """The rows, and the vectors where they are elsewhere."""
        vectors = () if self.vectors in {None, "ingest/rows"} else (str(self.vectors),)
        return ("ingest/rows", *vectors, *(("duplicates",) if self.settings.dedup == "semantic" else ()))

    @property
    def models(self) -> tuple[str, ...]:
        """The embedder of the evaluation rows."""
        return self.digests

    def run(
        self, inputs: Mapping[str, StageOutput], out: StageDir, context: Context
    ) -> tuple[list[str], dict[str, Any]]:
        """Screen shard by shard, then take out repeats among what is left, then write in row order."""
        from datapipe.storage.sort import ExternalSorter

        with ExternalSorter(context.scratch / "excluded") as excluded:
            for table in self._found(inputs, context):
                _add(excluded, table)
            names, counts = _write(excluded, inputs["ingest"], out)
        rows = sum(shard.rows for shard in inputs["ingest"].shards("rows"))
        if sum(counts.values()) == rows:
            told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
            raise SelectionError(
                f"all {rows:,} rows were taken out before the choice ({told}), so there is nothing to keep; check what "
                "protect, split and dedup compare them with"
            )
        return names, {"protected": 0, "duplicate": 0, **counts, "rows": rows}

    def _found(self, inputs: Mapping[str, StageOutput], context: Context) -> Iterator[pa.Table]:
        """Evidence by rule, the strictest first: of a row that two rules take out, the first counts."""
        settings, matcher = self.settings, None
        if self.evaluation is not None:
            matcher = Matcher(self.evaluation(), settings.threshold, content=settings.content)
        if settings.split is not None:
            yield from other_splits(inputs["ingest"], settings.split)
        if matcher is not None:
            for rows, beside in self._rows(inputs):
                yield matcher.match(rows, beside, reason="protected")
                context.tick(rows.num_rows)
        if settings.split is not None:
            yield from self._leaks(inputs, settings.split)
        if settings.dedup != "none" and settings.content != "vector":
            yield from _duplicates(matcher, inputs["ingest"], context.scratch, content=settings.content)
        if settings.dedup == "semantic":
            yield _semantic(inputs["duplicates"])

    def _rows(self, inputs: Mapping[str, StageOutput]) -> Iterator[tuple[pa.Table, pa.Table | None]]:
        """The rows shard by shard, each with its vectors where there are some."""
        others = inputs[self.vectors].tables() if self.vectors not in {None, "ingest/rows"} else None
        for table in inputs["ingest"].tables("rows"):
            beside = next(others) if others is not None else table
            yield table, beside if self.vectors is not None else None

    def _leaks(self, inputs: Mapping[str, StageOutput], split: str) -> Iterator[pa.Table]:
        settings = self.settings
        if settings.leaks == "exact":
            return exact_leaks(inputs["ingest"], split, settings.content)
        return all_leaks(lambda: self._rows(inputs), split, settings.content, threshold=settings.threshold)


def _duplicates(matcher: Matcher | None, ingest: StageOutput, scratch: Path, *, content: str) -> Iterator[pa.Table]:
    """Evidence for repeats among the rows that no evaluation row equals."""
    import numpy as np
    import pyarrow as pa

    from datapipe.dedup.exact import exact_duplicates
    from datapipe.storage.rowid import ids_from_arrow, ids_to_arrow, ids_to_hex

    def pairs() -> Iterator[tuple[Ids, Ids]]:
        for table in ingest.tables("rows", columns=["row_id", content]):
            ids, keys = ids_from_arrow(table["row_id"]), content_keys(table[content])
            left = ~matcher.exactly(keys) if matcher is not None else np.ones(len(ids), np.bool_)
            yield ids[left], keys[left]

    for again, kept in exact_duplicates(pairs(), scratch):
        shown = pa.array([f"row {name}" for name in ids_to_hex(kept)], pa.string())
        ones = np.ones(len(again), np.float32)
        yield evidence(ids_to_arrow(again), "duplicate", ["exact"] * len(again), ones, shown)


def _semantic(duplicates: StageOutput) -> pa.Table:
    """Evidence for the rows that say the same as another."""
    import pyarrow as pa

    from datapipe.storage.rowid import ids_from_arrow, ids_to_arrow, ids_to_hex

    table = next(duplicates.tables())
    kept = ids_to_hex(ids_from_arrow(table["kept"])) if table.num_rows else []
    shown = pa.array([f"row {name}" for name in kept], pa.string())
    ids = ids_to_arrow(ids_from_arrow(table["row_id"])) if table.num_rows else pa.array([], pa.binary(16))
    return evidence(ids, "duplicate", ["semantic"] * len(kept), table["similarity"].to_numpy(), shown)


def _add(sorter: ExternalSorter, table: pa.Table) -> None:
    from datapipe.storage.rowid import ids_from_arrow

    ids = ids_from_arrow(table["row_id"])
    if len(ids):
        sorter.add(ids[:, 0], ids[:, 1], table)


def _write(sorter: ExternalSorter, ingest: StageOutput, out: StageDir) -> tuple[list[str], dict[str, int]]:
    """Cut the sorted exclusions at the ends of the canonical shards."""
    import numpy as np
    import pyarrow as pa

    from datapipe.storage.rowid import ids_from_arrow
    from datapipe.storage.sort import equal_ranges

    empty = evidence(pa.array([], pa.binary(16)), "", [], np.empty(0, np.float32), pa.array([], pa.string()))
    shards = ingest.shards("rows")
    bounds = [low for low, _ in equal_ranges(len(shards))][1:]
    names, counts = [], Counter[str]()
    for i, table in enumerate(sorter.sorted_tables(bounds)):
        names.append(f"excluded-{i:05d}.parquet")
        # A row that two rules take out stands twice, the stricter reason first.
        ids = ids_from_arrow(table["row_id"]) if table.num_rows else np.empty((0, 2), np.uint64)
        first = np.append(True, np.any(ids[1:] != ids[:-1], axis=1))[: len(ids)]
        once = table.filter(pa.array(first)) if table.num_rows else empty
        counts.update(once["reason"].to_pylist())
        out.write_table(names[-1], once)
    return names, dict(counts)
