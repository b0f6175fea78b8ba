"""The rows that a page shows: a sample in row_id order, and a few of each large stratum as examples."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

    from datapipe.report.facts import StratumExamples
    from datapipe.storage.arrays import Float32, Ids, Int64

SHOWN_STRATA = 12
SHOWN_EXAMPLES = 3


class Sample:
    """Rows to show, in row_id order."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.scores: list[float] = []
        self.kept: list[bool] = []
        self.strata: list[str] = []
        self.texts: list[str] = []
        self.vectors: list[Float32] = []

    def add(
        self,
        places: Int64,
        ids: pa.ChunkedArray,
        scores: Float32,
        choice: pa.Table,
        own: pa.Table,
        beside: pa.Table | None,
    ) -> None:
        """Remember the rows at `places` of aligned columns."""
        import pyarrow as pa

        from datapipe.storage.vectors import decode

        take = pa.array(places)
        self.ids += [row_id.hex() for row_id in ids.take(take).to_pylist()]
        self.scores += scores[places].tolist()
        self.kept += choice["kept"].take(take).to_pylist()
        self.strata += choice["stratum"].take(take).to_pylist()
        if "text" in own.column_names:
            self.texts += own["text"].take(take).to_pylist()
        if beside is not None and len(places):
            self.vectors.append(decode(beside["vector"].take(take)))


def examples_of(sample: Sample) -> tuple[StratumExamples, ...]:
    """The first kept and dropped rows of the strata that hold most of the sample; ties by name."""
    from datapipe.report.facts import Example, StratumExamples

    sizes = Counter(name for name in sample.strata if name)
    largest = sorted(sizes, key=lambda name: (-sizes[name], name))[:SHOWN_STRATA]
    shown = {name: ([], []) for name in largest}  # type: dict[str, tuple[list[Example], list[Example]]]
    texts = sample.texts or [""] * len(sample.ids)
    for row_id, text, score, kept, name in zip(
        sample.ids, texts, sample.scores, sample.kept, sample.strata, strict=True
    ):
        if name in shown and len(shown[name][not kept]) < SHOWN_EXAMPLES:
            shown[name][not kept].append(Example(row_id=row_id, text=text, score=score))
    return tuple(
        StratumExamples(stratum=name, kept=tuple(kept), dropped=tuple(dropped))
        for name, (kept, dropped) in shown.items()
    )


def rows_in(column: pa.ChunkedArray, wanted: Ids) -> Int64:
    """Places in `column` of the ids in `wanted`, ascending, int64."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from datapipe.storage.rowid import ids_to_arrow

    found = pc.is_in(column, value_set=ids_to_arrow(wanted)).combine_chunks()
    return np.flatnonzero(np.asarray(pa.array(found).to_numpy(zero_copy_only=False))).astype(np.int64)
