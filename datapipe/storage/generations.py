"""More rows for canonical shards that are there: a generation of its own beside each, nothing that is there is touched.

files that came -> columns by role, refused rows -> external sort -> counters continued -> `rows-00000-1.parquet` ...

Shard i of generation g holds the new rows of the i-th of the same S equal ranges of ids. A stage that works shard by
shard therefore makes what is new; readers see the parts of a range as one table, sorted by row id, as if all had been
ingested at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datapipe.storage.ingest import PLACE_FIELDS, IngestSpec, Intake, ingest, not_unique, write_shard
from datapipe.storage.refused import REJECTED, RefusedRows
from datapipe.storage.roles import MAX_CLASSES, RoleReader
from datapipe.storage.rowid import apply_counters, count_duplicates, ids_from_arrow
from datapipe.storage.sort import ExternalSorter, equal_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from datapipe.storage.arrays import Ids, Int64
    from datapipe.storage.images import ImageFiles
    from datapipe.storage.source import Source
    from datapipe.storage.stage import StageDir

MOST_GROWTH = 2
"""Times its first rows that a shard may hold, for it is read whole; beyond that everything is ingested anew."""


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """An ingest that is added to.

    Attributes:
        folder: Its stage directory.
        rows: Names of the files of each shard, one a generation, oldest first.
        places: The same for the places of those rows.
        first_rows: Rows of the first generation.
        files: Files of the source that it read, the first ones of the source as it is now.
        facts: What it returned.
    """

    folder: Path
    rows: tuple[tuple[str, ...], ...]
    places: tuple[tuple[str, ...], ...]
    first_rows: int
    files: int
    facts: Mapping[str, Any]


def ingest_more(
    source: Source,
    out: StageDir,
    *,
    earlier: Earlier,
    spec: IngestSpec,
    scratch: Path,
    progress: Callable[[int], None] | None = None,
    images: ImageFiles | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """Fill `out` with the shards of `earlier` and a generation of the rows of the files that came.

    Only the new files are read; of the old rows only ids and, where classes count, labels. The length of vectors stays
    what it was. Where the rows would be more than `MOST_GROWTH` times those of the first generation, the whole source
    is ingested anew.

    Returns:
        The names of the shards, the parts of each one after the other, and the facts of `ingest` over all rows with
        `generations`, the parts of each shard.

    Raises:
        RowIdError: A new row has the value of another one in the id column; names it and both places.
        SourceError: The source cannot be read.
        OutputError: A shard or the scratch file cannot be written.
    """
    reader = RoleReader(source.schema, spec, dim=earlier.facts["dim"], images=images)
    with ExternalSorter(scratch / "rows") as rows, RefusedRows(scratch / "rejected") as refused:
        intake = Intake(source, spec, reader, rows, refused, first_file=earlier.files)
        intake.read(progress)
        if not rows.rows:  # a generation without rows has its columns all the same
            none = pa.schema([*reader.fields, *PLACE_FIELDS]).empty_table()
            rows.add(np.empty(0, np.uint64), np.empty(0, np.uint64), none)
        if earlier.facts["accepted"] + rows.rows <= MOST_GROWTH * earlier.first_rows:
            refused.write(out, [file.uri for file in source.files], earlier=_refused_before(earlier))
            generation, names, duplicates = len(earlier.rows[0]), _Names(), 0
            for index, (low, high) in enumerate(equal_ranges(len(earlier.rows))):
                own = [f"{family}-{index:05d}-{generation}.parquet" for family in ("rows", "places")]
                duplicates += _write_part(intake, earlier, out, index=index, low=low, high=high, names=own)
                names.add(out, earlier, index, own)
            facts = {**_summed(earlier, intake), "duplicates": earlier.facts["duplicates"] + duplicates}
            facts["generations"] = generation + 1
            return names.all(out), facts
    facts = ingest(source, out, spec=spec, scratch=scratch, images=images)
    return shard_names(out, facts["shards"]), facts


def shard_names(out: StageDir, shards: int) -> list[str]:
    """The names of the shards of an ingest of one generation, in order."""
    names = [f"{family}-{i:05d}.parquet" for family in ("rows", "places") for i in range(shards)]
    return [*names, REJECTED] if out.done(REJECTED) is not None else names


class _Names:
    """Names of all files: those taken over, and the new one of each shard."""

    def __init__(self) -> None:
        self._rows: list[str] = []
        self._places: list[str] = []

    def add(self, out: StageDir, earlier: Earlier, index: int, own: list[str]) -> None:
        for name in (*earlier.rows[index], *earlier.places[index]):
            out.adopt(name, earlier.folder)
        self._rows += [*earlier.rows[index], own[0]]
        self._places += [*earlier.places[index], own[1]]

    def all(self, out: StageDir) -> list[str]:
        rejected = [REJECTED] if out.done(REJECTED) is not None else []
        return [*self._rows, *self._places, *rejected]


def _write_part(
    intake: Intake, earlier: Earlier, out: StageDir, *, index: int, low: int, high: int, names: list[str]
) -> int:
    """Write the new rows of one range, unless they are there; returns how many repeat another row."""
    done = out.done(names[0])
    if done is None or out.done(names[1]) is None:
        digests, table = intake.rows.read_range(low, high)
        known = _ids(earlier, index)
        counters = count_duplicates(digests) + _continued(digests, known)
        repeated = np.flatnonzero(counters)
        if len(repeated) and intake.spec.id_column is not None:
            raise not_unique(intake, _two_places(earlier, index, table, digests, int(repeated[0])))
        ids = apply_counters(digests, counters)
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        done = write_shard(ids[order], table.take(pa.array(order)), out, names, {"duplicates": len(repeated)})
    return int(done.facts["duplicates"])


def _ids(earlier: Earlier, index: int) -> Ids:
    """Ids of the rows of a shard that are there, uint64 (rows, 2), in any order."""
    return ids_from_arrow(_column(earlier, earlier.rows[index], "row_id"))


def _column(earlier: Earlier, names: tuple[str, ...], column: str) -> pa.ChunkedArray:
    tables = [pq.read_table(earlier.folder / name, columns=[column], partitioning=None) for name in names]
    return pa.concat_tables(tables)[column]


def _continued(digests: Ids, known: Ids) -> Int64:
    """For each of the sorted `digests`: how many rows that are there have the same content, int64 (rows,)."""
    before = np.zeros(len(digests), np.int64)
    # Rows of one content share the high word, so only ids with the high word of a new row can matter.
    near = known[np.isin(known[:, 0], digests[:, 0])]
    held = set(map(tuple, near.tolist()))
    if not held:
        return before
    firsts = np.flatnonzero(count_duplicates(digests) == 0)
    for start, stop in zip(firsts, [*firsts[1:], len(digests)], strict=True):
        digest, count = digests[start : start + 1], 0
        while tuple(apply_counters(digest, np.array([count]))[0].tolist()) in held:
            count += 1
        before[start:stop] = count
    return before


def _two_places(earlier: Earlier, index: int, table: pa.Table, digests: Ids, row: int) -> list[dict[str, int]]:
    """Where the two rows of one id stand: the one that was there, or the new one before, and the new one."""
    here: list[dict[str, int]] = table.slice(row, 1).select(["file", "row"]).to_pylist()
    if row and (digests[row] == digests[row - 1]).all():
        return [*table.slice(row - 1, 1).select(["file", "row"]).to_pylist(), *here]
    for name in earlier.places[index]:
        places = pq.read_table(earlier.folder / name, partitioning=None)
        found = np.flatnonzero((ids_from_arrow(places["row_id"]) == digests[row]).all(axis=1))
        if len(found):
            return [*places.slice(int(found[0]), 1).select(["file", "row"]).to_pylist(), *here]
    return here


def _refused_before(earlier: Earlier) -> Iterator[pa.Table]:
    path = earlier.folder / REJECTED
    if path.exists():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield pa.Table.from_batches([batch])


def _summed(earlier: Earlier, intake: Intake) -> dict[str, Any]:
    """The facts over all rows."""
    before, tally = earlier.facts, intake.reader.tally
    rejected = Counter(before["rejected"]) + intake.refused.reasons
    return {
        "rows_in": before["rows_in"] + intake.rows_in,
        "accepted": before["accepted"] + intake.rows.rows,
        "rejected": dict(sorted(rejected.items())),
        "shards": len(earlier.rows),
        "dim": before["dim"],
        "classes": _classes(earlier, intake),
        "text_bytes": before["text_bytes"] + tally.text_bytes,
    }


def _classes(earlier: Earlier, intake: Intake) -> int | None:
    """Distinct labels of all rows; None without labels or where they are too many to be classes."""
    labels = intake.reader.tally.labels
    if earlier.facts["classes"] is None or labels is None:
        return None
    labels = set(labels)
    for names in earlier.rows:
        labels |= set(_column(earlier, names, "label").unique().drop_null().to_pylist())
    return len(labels) if len(labels) <= MAX_CLASSES else None
