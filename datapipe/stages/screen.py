"""Rows that must not be trained on, or need not be: matches of an evaluation set, and repeats.

Reads `ingest/rows`, and vectors where near matches are looked for. Writes `excluded-*.parquet`, one a canonical shard:
row_id, reason (`protected` or `duplicate`), rule, similarity, and the text that was matched. Sorted by row_id. Raises
`SelectionError` where no row is left.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from datapipe.errors import SelectionError
from datapipe.pipeline import Context, SetStage, StageOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import pyarrow as pa

    from datapipe.dedup.contained import GramIndex
    from datapipe.storage.arrays import Bool, Float32, Ids
    from datapipe.storage.sort import ExternalSorter
    from datapipe.storage.stage import StageDir

SHOWN_CHARACTERS = 240


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
    """

    dedup: str = "none"
    evaluation: tuple[str, ...] = ()
    threshold: float = 1.0
    content: str = "text"
    split: str | None = None


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """Rows to protect.

    Attributes:
        texts: Their texts; None where the run has vectors only.
        vectors: Their unit vectors, float32 (rows, dim); None where the run has no vectors.
        images: Keys of their images' content, uint64 (rows, 2); None where the run has no images.
    """

    texts: list[str] | None
    vectors: Float32 | None
    images: Ids | None = None


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
    version: ClassVar[int] = 3

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

        matcher = _Matcher(self.evaluation(), self.settings.threshold) if self.evaluation is not None else None
        with ExternalSorter(context.scratch / "excluded") as excluded:
            if self.settings.split is not None:
                for table in _other_splits(inputs["ingest"], self.settings.split):
                    _add(excluded, table)
                for table in _leaks(inputs["ingest"], self.settings.split, self.settings.content):
                    _add(excluded, table)
            if matcher is not None:
                for table in self._protected(matcher, inputs, context):
                    _add(excluded, table)
            if self.settings.dedup != "none" and self.settings.content != "vector":
                for table in _duplicates(matcher, inputs["ingest"], context.scratch, content=self.settings.content):
                    _add(excluded, table)
            if self.settings.dedup == "semantic":
                _add(excluded, _semantic(inputs["duplicates"]))
            names, counts = _write(excluded, inputs["ingest"], out)
        rows = sum(shard.rows for shard in inputs["ingest"].shards("rows"))
        if sum(counts.values()) == rows:
            told = ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))
            raise SelectionError(
                f"all {rows:,} rows were taken out before the choice ({told}), so there is nothing to keep; check what "
                "protect, split and dedup compare them with"
            )
        return names, {"protected": 0, "duplicate": 0, **counts, "rows": rows}

    def _protected(self, matcher: _Matcher, inputs: Mapping[str, StageOutput], context: Context) -> Iterator[pa.Table]:
        rows = inputs["ingest"].tables("rows")
        vectors = rows if self.vectors == "ingest/rows" else None
        others = inputs[self.vectors].tables() if self.vectors is not None and vectors is None else None
        for table in rows:
            beside = next(others) if others is not None else table
            yield matcher.match(table, beside if self.vectors is not None else None)
            context.tick(table.num_rows)


def _duplicates(matcher: _Matcher | None, ingest: StageOutput, scratch: Path, *, content: str) -> Iterator[pa.Table]:
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
        yield _evidence(ids_to_arrow(again), "duplicate", ["exact"] * len(again), ones, shown)


def content_keys(column: pa.ChunkedArray) -> Ids:
    """Keys of texts, of vectors by their bits, or the keys of images as they stand, uint64 (rows, 2)."""
    import pyarrow as pa

    from datapipe.dedup.exact import text_keys
    from datapipe.storage.rowid import ID_TYPE, ids_from_arrow, value_digests

    if column.type == ID_TYPE:
        return ids_from_arrow(column)
    return value_digests(column) if pa.types.is_fixed_size_binary(column.type) else text_keys(column)


def _other_splits(ingest: StageOutput, split: str) -> Iterator[pa.Table]:
    """Evidence for the rows of other parts of the source, and of none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    for table in ingest.tables("rows", columns=["row_id", "split"]):
        other = table.filter(pc.fill_null(pc.not_equal(table["split"], split), fill_value=True))
        count = other.num_rows
        shown = pa.array([f"split {part}" for part in other["split"].to_pylist()], pa.string())
        ones = np.ones(count, np.float32)
        yield _evidence(other["row_id"].combine_chunks(), "other_split", ["split"] * count, ones, shown)


def _leaks(ingest: StageOutput, split: str, content: str) -> Iterator[pa.Table]:
    """Evidence for rows of the part that equal a row of another; 16 bytes a row of the others."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from datapipe.dedup.protect import protect_exact, sort_keys

    def parts() -> Iterator[tuple[pa.Table, pa.Table]]:
        for table in ingest.tables("rows"):
            if content in table.column_names:
                own = pc.fill_null(pc.equal(table["split"], split), fill_value=False)
                yield table.filter(own), table.filter(pc.invert(own))

    keys = [np.empty((0, 2), np.uint64), *(content_keys(other[content]) for _, other in parts() if other.num_rows)]
    there = sort_keys(np.concatenate(keys))[0]
    for own, _ in parts():
        if own.num_rows:
            found = own.filter(pa.array(protect_exact(content_keys(own[content]), there)[0]))
            count = found.num_rows
            shown = pa.array(["a row of another split"] * count, pa.string())
            ids = found["row_id"].combine_chunks()
            yield _evidence(ids, "protected", ["exact"] * count, np.ones(count, np.float32), shown)


def _semantic(duplicates: StageOutput) -> pa.Table:
    """Evidence for the rows that say the same as another."""
    import pyarrow as pa

    from datapipe.storage.rowid import ids_from_arrow, ids_to_arrow, ids_to_hex

    table = next(duplicates.tables())
    kept = ids_to_hex(ids_from_arrow(table["kept"])) if table.num_rows else []
    shown = pa.array([f"row {name}" for name in kept], pa.string())
    ids = ids_to_arrow(ids_from_arrow(table["row_id"])) if table.num_rows else pa.array([], pa.binary(16))
    return _evidence(ids, "duplicate", ["semantic"] * len(kept), table["similarity"].to_numpy(), shown)


class _Matcher:
    """The three rules of protection over one evaluation set."""

    def __init__(self, evaluation: EvaluationSet, threshold: float) -> None:
        from datapipe.dedup.contained import gram_index
        from datapipe.dedup.exact import text_keys
        from datapipe.dedup.protect import sort_keys

        self._evaluation, self._threshold = evaluation, threshold
        self._index: GramIndex | None = None
        keys = text_keys(evaluation.texts) if evaluation.texts else evaluation.images
        self._keyed = keys is not None and len(keys) > 0
        if keys is not None and self._keyed:
            self._keys, self._places = sort_keys(keys)
        if evaluation.texts:
            self._index = gram_index(evaluation.texts)

    def exactly(self, keys: Ids) -> Bool:
        """Whether each key is one of the evaluation set's, bool (rows,)."""
        import numpy as np

        from datapipe.dedup.protect import protect_exact

        return protect_exact(keys, self._keys)[0] if self._keyed else np.zeros(len(keys), np.bool_)

    def match(self, rows: pa.Table, vectors: pa.Table | None) -> pa.Table:
        """Evidence for every row of `rows` that a rule finds."""
        import numpy as np
        import pyarrow as pa

        from datapipe.dedup.contained import protect_contained
        from datapipe.dedup.protect import RULES, combine_matches, protect_exact, protect_near
        from datapipe.storage.vectors import decode

        exact = contained = near = None
        if self._keyed:
            found, place = protect_exact(content_keys(rows["image" if self._index is None else "text"]), self._keys)
            exact = (found, np.where(found, self._places[np.maximum(place, 0)], -1))
        if self._index is not None:
            contained = protect_contained(rows["text"].to_pylist(), self._index)
        if vectors is not None and self._evaluation.vectors is not None:
            near = protect_near(decode(vectors["vector"]), self._evaluation.vectors, threshold=self._threshold)
        matches = combine_matches(exact=exact, contained=contained, near=near)
        texts_ = self._evaluation.texts
        shown = [texts_[i][:SHOWN_CHARACTERS] if texts_ else f"evaluation row {i}" for i in matches.evaluation.tolist()]
        rules = [RULES[i] for i in matches.rules.tolist()]
        ids = rows["row_id"].combine_chunks().take(pa.array(matches.rows))
        return _evidence(ids, "protected", rules, matches.similarity, pa.array(shown, pa.string()))


def _evidence(ids: pa.Array, reason: str, rules: list[str], similarity: Float32, match: pa.Array) -> pa.Table:
    import pyarrow as pa

    reasons = pa.array([reason] * len(ids), pa.string())
    columns = [ids, reasons, pa.array(rules, pa.string()), pa.array(similarity, pa.float32()), match]
    return pa.table(columns, names=["row_id", "reason", "rule", "similarity", "match"])


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

    empty = _evidence(pa.array([], pa.binary(16)), "", [], np.empty(0, np.float32), pa.array([], pa.string()))
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
