"""The rows that teachers are asked about, and their answers as tables.

ingest/rows [+ places] + select -> wanted -> row_id, columns, place      labels + scores -> part_table -> part
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.errors import SoftLabelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from datapipe.distill.header import SoftLabelHeader
    from datapipe.pipeline import StageOutput

__all__ = ["part_table", "wanted", "wanted_rows"]


def wanted_rows(inputs: Mapping[str, StageOutput], *, kept: bool) -> int:
    """How many rows are wanted: all accepted, or the kept ones."""
    ingest = inputs["ingest"]
    if not kept:
        return sum(shard.rows for shard in ingest.shards("rows"))
    return int(inputs["select"].facts["counts"].get("kept", 0))


def wanted(
    inputs: Mapping[str, StageOutput], columns: Sequence[str], *, kept: bool, places: bool = False
) -> Iterator[pa.Table]:
    """Yield row_id, `columns` and `place` (among all rows) of the wanted rows, in row_id order, a table a shard.

    Args:
        inputs: `ingest`, and `select` where only kept rows are wanted.
        columns: Of `ingest/rows`.
        kept: Whether only kept rows are wanted.
        places: Whether file and row of the source are wanted too.
    """
    import numpy as np
    import pyarrow as pa

    from datapipe.stages.select import read_selection

    ingest = inputs["ingest"]
    chosen = read_selection(inputs["select"], ingest.shards("rows")) if kept else None
    found = ingest.tables("places", columns=["file", "row"]) if places else None
    start = 0
    for table in ingest.tables("rows", columns=["row_id", *columns]):
        numbers = pa.array(np.arange(start, start + table.num_rows, dtype=np.int64))
        start += table.num_rows
        rows = table.append_column("place", numbers)
        if found is not None:
            where = next(found)
            rows = rows.append_column("file", where["file"]).append_column("row", where["row"])
        if chosen is not None:
            choice = next(chosen)
            if not choice["row_id"].equals(table["row_id"]):
                raise SoftLabelError("the choice of the run is of other rows than those ingested; run curate again")
            rows = rows.filter(choice["kept"])
        if rows.num_rows:
            yield rows.combine_chunks()


def part_table(header: SoftLabelHeader, ids: Any, cut: Any, labels: Any, scores: Mapping[str, Any]) -> pa.Table:
    """Lay labels and scores out as a part: a store's columns, then the scores."""
    import numpy as np
    import pyarrow as pa

    from datapipe.distill.layout import table_of

    unknown = labels < 0
    facts = {
        "label": pa.array(labels.astype(np.int32), mask=unknown),
        "label_confidence": pa.array(scores["confidence"], mask=unknown),
        "teacher_entropy": pa.array(scores["entropy"]),
    }
    table = table_of(header, ids, cut, facts=facts)
    for name, values in scores.items():
        table = table.append_column(pa.field(f"score_{name}", pa.float32()), pa.array(values))
    return table
