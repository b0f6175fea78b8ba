"""What stages that score share: rows and classes read in step, and columns written a canonical shard each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import MetricError
from datapipe.stages.device import DeviceStage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from numpy.typing import NDArray

    from datapipe.pipeline import Context, StageOutput
    from datapipe.proxies.heads import HeadData
    from datapipe.storage.arrays import Bool, Ids, Int32, Int64
    from datapipe.storage.stage import StageDir


@dataclass(frozen=True, kw_only=True)
class RowInputs:
    """Where a stage finds its rows.

    Attributes:
        vectors: The stage of the vectors.
        labelled: Whether labels are wanted too.
        screened: Whether rows may be excluded; those are not learnt from.
    """

    vectors: str
    labelled: bool
    screened: bool

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages to read."""
        rows = ("ingest/rows",) if self.labelled and self.vectors != "ingest/rows" else ()
        return (self.vectors, *rows, *(("screen/excluded",) if self.screened else ()))


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows in row_id order.

    Attributes:
        ids: uint64 (rows, 2).
        codes: bfloat16 bits of the vectors on scratch, uint16 (rows, dim).
        labels: Class, int32 (rows,); -1 for a null, and without labels.
        names: Of the classes, sorted.
        left: Whether screening left the row, bool (rows,).
    """

    ids: Ids
    codes: NDArray[np.uint16]
    labels: Int32
    names: list[str]
    left: Bool

    def data(self) -> HeadData:
        """The rows with labels, to be learnt by heads.

        Raises:
            MetricError: Fewer than two classes are left.
        """
        from datapipe.proxies.heads import HeadData

        trained = np.flatnonzero((self.labels >= 0) & self.left)
        return HeadData(self.codes, self.labels, trained, len(self.names))


@dataclass(frozen=True)
class HeadStage(DeviceStage):
    """A stage that trains heads on frozen vectors.

    Attributes:
        rows: Where the rows are.
    """

    rows: RowInputs

    @property
    def needs(self) -> tuple[str, ...]:
        """Vectors, labels where they are wanted, exclusions where there may be some."""
        return self.rows.needs


def read_rows(where: RowInputs, inputs: Mapping[str, StageOutput], context: Context) -> Rows:
    """Read ids and labels into memory (29 bytes a row) and vectors into a file on scratch."""
    from datapipe.stages.vectors import left_after_screening
    from datapipe.storage.rowid import ids_from_arrow
    from datapipe.storage.vectors import codes

    names = class_names(inputs["ingest"]) if where.labelled else []
    ids, labels, left = [], [], []
    rows = inputs["ingest"].tables("rows", columns=["label"]) if where.labelled else None
    excluded = inputs["screen"].tables("excluded", columns=["row_id"]) if where.screened else None
    name, _, family = where.vectors.partition("/")
    path, dim = context.scratch / "vectors.bf16", 0
    with path.open("wb") as file:
        for table in inputs[name].tables(family or None, columns=["row_id", "vector"]):
            ids.append(ids_from_arrow(table["row_id"]))
            bits = codes(table["vector"])
            file.write(np.ascontiguousarray(bits).tobytes())
            dim = bits.shape[1]
            left.append(left_after_screening(table, excluded))
            if rows is None:
                labels.append(np.full(table.num_rows, -1, np.int32))
            else:
                labels.append(class_numbers(next(rows)["label"], names).astype(np.int32))
            context.tick(table.num_rows)
    whole = np.concatenate(ids)
    return Rows(
        ids=whole,
        codes=np.memmap(path, np.uint16, "r", shape=(len(whole), dim)),
        labels=np.concatenate(labels),
        names=names,
        left=np.concatenate(left),
    )


def write_aligned(
    inputs: StageOutput, family: str | None, out: StageDir, *, prefix: str, columns: Mapping[str, NDArray[Any]]
) -> list[str]:
    """Write row_id and `columns`, whole and in row order, as one shard a shard of `inputs`; returns the names."""
    import pyarrow as pa

    names, start = [], 0
    for i, table in enumerate(inputs.tables(family, columns=["row_id"])):
        rows = slice(start, start + table.num_rows)
        start += table.num_rows
        names.append(f"{prefix}-{i:05d}.parquet")
        own = {name: pa.array(np.ascontiguousarray(values[rows])) for name, values in columns.items()}
        out.write_table(names[-1], pa.table({"row_id": table["row_id"], **own}))
    return names


def file_digest(path: str) -> str:
    """sha256 of a file that a run was given. Raises `MetricError` where it cannot be read."""
    import hashlib

    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MetricError(f"cannot read {path}: {error.strerror}") from error


def class_names(ingest: StageOutput) -> list[str]:
    """The distinct labels of all rows, sorted."""
    found: set[str] = set()
    for table in ingest.tables("rows", columns=["label"]):
        found.update(table["label"].unique().drop_null().to_pylist())
    return sorted(found)


def class_numbers(labels: pa.ChunkedArray, names: list[str]) -> Int64:
    """Place of each label among `names`, int64 (rows,); -1 for a null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(labels, value_set=pa.array(names, pa.string()))
    return np.array(pc.fill_null(found, -1).to_numpy(), np.int64)
