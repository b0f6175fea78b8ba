"""Parts of a source: rows of another part than the one chosen from, and rows of that part that match one of another.

    ingest/rows, [vectors] -> evidence, as `datapipe.stages.matching` writes it

A row that an evaluation or test part holds too tells nothing of what a model has learnt. `exact_leaks` keeps 16 bytes
a row of the other parts in memory, `all_leaks` their texts and twice their vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.stages.matching import EvaluationSet, Matcher, content_keys, evidence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from datapipe.pipeline import StageOutput
    from datapipe.storage.arrays import Float32, Ids

LEAK = "leak"
OTHER = "a row of another split"


def other_splits(ingest: StageOutput, split: str) -> Iterator[pa.Table]:
    """Evidence for the rows of other parts of the source, and of none."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    for table in ingest.tables("rows", columns=["row_id", "split"]):
        other = table.filter(pc.fill_null(pc.not_equal(table["split"], split), fill_value=True))
        count = other.num_rows
        shown = pa.array([f"split {part}" for part in other["split"].to_pylist()], pa.string())
        ones = np.ones(count, np.float32)
        yield evidence(other["row_id"].combine_chunks(), "other_split", ["split"] * count, ones, shown)


def exact_leaks(ingest: StageOutput, split: str, content: str) -> Iterator[pa.Table]:
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
            yield evidence(ids, LEAK, ["exact"] * count, np.ones(count, np.float32), shown)


def all_leaks(
    rows: Callable[[], Iterator[tuple[pa.Table, pa.Table | None]]], split: str, content: str, *, threshold: float
) -> Iterator[pa.Table]:
    """Evidence for rows of the part that equal or quote a row of another, or lie near it where there are vectors.

    Args:
        rows: Starts a pass over the shards and, beside each, the table of its vectors; called twice.
        split: The part that is chosen from.
        content: The column by which rows are equal.
        threshold: Cosine from which two rows are near.
    """
    matcher = Matcher(_others(rows(), split, content), threshold, content=content)
    for table, beside in rows():
        own = _in_part(table, split)
        if own is not None and content in table.column_names:
            vectors = beside.filter(own) if beside is not None else None
            yield matcher.match(table.filter(own), vectors, reason=LEAK)


def _in_part(table: pa.Table, split: str) -> pa.Array | None:
    """Which rows belong to the part, bool; None where none does."""
    import pyarrow.compute as pc

    own = pc.fill_null(pc.equal(table["split"], split), fill_value=False)
    return own if pc.any(own).as_py() else None


def _others(shards: Iterator[tuple[pa.Table, pa.Table | None]], split: str, content: str) -> EvaluationSet:
    """The rows of the other parts."""
    import numpy as np
    import pyarrow.compute as pc

    from datapipe.storage.vectors import decode

    texts: list[str] = []
    keys: list[Ids] = [np.empty((0, 2), np.uint64)]
    vectors: list[Float32] = []
    for table, beside in shards:
        other = pc.fill_null(pc.not_equal(table["split"], split), fill_value=True)
        rest = table.filter(other)
        if not rest.num_rows:
            continue
        if content == "text":
            texts += [text or "" for text in rest["text"].to_pylist()]
        elif content in table.column_names:
            keys.append(content_keys(rest[content]))
        if beside is not None:
            vectors.append(decode(beside.filter(other)["vector"]))
    return EvaluationSet(
        texts=texts if content == "text" else None,
        vectors=np.concatenate(vectors) if vectors else None,
        keys=np.concatenate(keys) if content != "text" else None,
        called=OTHER,
    )
