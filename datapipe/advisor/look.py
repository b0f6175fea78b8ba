"""A look at a data set: what advice depends on, in one pass and a sample.

source -> columns -> keys of all rows (exact repeats), counts of labels, a sample by content -> vectors -> `Facts`

The sample is drawn by the digest of the content, so it does not depend on how the source is cut or ordered. Memory: 16
bytes a row, and the sample. Raises `ColumnError` for columns that are not there.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from datapipe.errors import ColumnError

if TYPE_CHECKING:
    import pyarrow as pa

    from datapipe.config import CurateConfig
    from datapipe.selection.evidence import Modality
    from datapipe.settings import Settings
    from datapipe.storage.arrays import Float32, Ids
    from datapipe.storage.source import Source

SAMPLE_ROWS = 1000
NEAR = 0.98
"""Cosine from which two rows count as near copies; the default of `protect_threshold`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a data set.

    Attributes:
        rows: Rows.
        modality: What they are.
        labelled: Rows with a label; None where no label column was named.
        classes: Distinct labels; None likewise.
        smallest_class: Rows of the smallest class; None likewise.
        largest_class: Rows of the largest class; None likewise.
        repeats: Part of the rows that repeat another one's content exactly, 0 ... 1.
        near_repeats: Part of the sample that has another row of the sample at a cosine of `NEAR` or more; in the whole
            set it can only be more. None without vectors.
        sampled: Rows of the sample; 0 without vectors.
        dimensions: Effective dimensions of the sample's unit vectors: (sum l)^2 / sum l^2 over the eigenvalues l of
            their covariance. None without vectors.
        cluster_balance: Entropy of the sizes of sqrt(sample) clusters over its greatest value, 0 ... 1; None likewise.
    """

    rows: int
    modality: Modality
    labelled: int | None = None
    classes: int | None = None
    smallest_class: int | None = None
    largest_class: int | None = None
    repeats: float = 0.0
    near_repeats: float | None = None
    sampled: int = 0
    dimensions: float | None = None
    cluster_balance: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Rows drawn by content.

    Attributes:
        vectors: Unit vectors, float32 (rows, dim).
        labels: Label of each row as text, None where it has none; empty without a label column.
    """

    vectors: Float32
    labels: tuple[str | None, ...]


def look(
    source: Source, config: CurateConfig, *, settings: Settings, sample_rows: int = SAMPLE_ROWS
) -> tuple[Facts, Sample | None]:
    """Read a source once and measure a sample of it.

    Args:
        source: What to look at.
        config: Names the columns, the model and the device.
        settings: Of the machine.
        sample_rows: Rows to embed, or to take the vectors of.

    Returns:
        The facts, and the sample; None where there are no vectors and no text to embed.

    Raises:
        ColumnError: A named column is not in the source, or there is nothing to look at.
    """
    column, modality = _content(source, config)
    label = config.label_column
    if label is not None and label not in source.schema.names:
        raise ColumnError(f"label_column {label!r} is not in the source; its columns are {_names(source)}")
    seen = _Pass(sample_rows)
    for batch in source.batches([column, *([label] if label is not None else [])], rejected=lambda _: None):
        seen.add(batch.table, column, label)
    if not seen.rows:
        raise ColumnError(f"the column {column!r} holds no row to look at")
    sample = _sample(seen, modality, config, settings, has_vectors=config.embedding_column is not None)
    return _facts(seen, modality, sample, labelled=label is not None), sample


def _content(source: Source, config: CurateConfig) -> tuple[str, Modality]:
    import pyarrow as pa

    from datapipe.stages.columns import resolve_columns

    if config.embedding_column is None and config.text_column is None:
        binary = [each.name for each in source.schema if pa.types.is_binary(each.type)]
        if binary and "text" not in source.schema.names:
            return binary[0], "images"
    columns = resolve_columns(config, source.schema)
    if columns.vector is not None:
        return columns.vector, "text" if columns.text is not None else "other"
    return str(columns.text), "text"


def _names(source: Source) -> str:
    return ", ".join(source.schema.names)


class _Pass:
    """Keys, label counts and the rows of the smallest keys."""

    def __init__(self, sample_rows: int) -> None:
        self.rows = 0
        self.labels: Counter[str] = Counter()
        self._keys: list[Ids] = []
        self._most = sample_rows
        self._drawn: dict[tuple[int, int], tuple[Any, str | None]] = {}

    def add(self, table: pa.Table, column: str, label: str | None) -> None:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        from datapipe.dedup.exact import text_keys
        from datapipe.storage.rowid import content_digests

        table = table.filter(pc.is_valid(table[column]))
        is_text = not (pa.types.is_nested(table[column].type) or pa.types.is_binary(table[column].type))
        keys = text_keys(table[column].cast("string")) if is_text else content_digests(table.select([column]))
        self._keys.append(keys)
        self.rows += len(keys)
        labels = table[label].cast("string") if label is not None else None
        if labels is not None:
            for count in pc.value_counts(labels).to_pylist():
                if count["values"] is not None:
                    self.labels[count["values"]] += count["counts"]
        order = np.lexsort((keys[:, 1], keys[:, 0]))[: self._most]
        for at in order.tolist():
            key = (int(keys[at, 0]), int(keys[at, 1]))
            self._drawn.setdefault(key, (table[column][at], labels[at].as_py() if labels is not None else None))
        if len(self._drawn) > 2 * self._most:
            self._drawn = dict(sorted(self._drawn.items(), key=lambda item: item[0])[: self._most])

    def drawn(self) -> list[tuple[Any, str | None]]:
        """Content and label of the sample, in the order of keys."""
        return [row for _, row in sorted(self._drawn.items(), key=lambda item: item[0])[: self._most]]

    def repeats(self) -> float:
        import numpy as np

        keys = np.concatenate(self._keys)
        return 1 - len(np.unique(keys, axis=0)) / len(keys)


def _sample(
    seen: _Pass, modality: Modality, config: CurateConfig, settings: Settings, *, has_vectors: bool
) -> Sample | None:
    import numpy as np
    import pyarrow as pa

    from datapipe.storage.vectors import normalise, to_matrix

    drawn = seen.drawn()
    if has_vectors:
        matrix = to_matrix(pa.array([value.as_py() for value, _ in drawn], drawn[0][0].type))
    elif modality == "text":
        from datapipe.embedding.text import embed_texts
        from datapipe.stages.embedder import Embedder

        embedder = Embedder(config.model, device=config.device or settings.device)
        texts = [value.as_py() for value, _ in drawn]
        matrix = embed_texts(embedder.worker(), texts, model=embedder.name)[0]
    else:
        return None
    vectors, undirected = normalise(np.asarray(matrix, np.float32))
    labels = tuple(label for (_, label), out in zip(drawn, undirected, strict=True) if not out)
    return Sample(vectors=vectors[~undirected], labels=labels if config.label_column is not None else ())


def _facts(seen: _Pass, modality: Modality, sample: Sample | None, *, labelled: bool) -> Facts:
    counts = seen.labels
    facts: dict[str, Any] = {"rows": seen.rows, "modality": modality, "repeats": seen.repeats()}
    if labelled:
        facts |= {
            "labelled": counts.total(),
            "classes": len(counts),
            "smallest_class": min(counts.values(), default=0),
            "largest_class": max(counts.values(), default=0),
        }
    if sample is not None and len(sample.vectors) > 1:
        facts |= geometry(sample.vectors)
    return Facts(**facts)


def geometry(vectors: Float32) -> dict[str, Any]:
    """Measure unit vectors, float32 (rows, dim), rows >= 2; the fields of `Facts` from `near_repeats` on."""
    import numpy as np

    from datapipe.metrics.kmeans import spherical_kmeans
    from datapipe.metrics.prototypes import default_k

    rows = vectors.astype(np.float64)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1.0)
    spread = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    squares = float((spread**2).sum())
    k = default_k(len(vectors))
    clusters = (vectors @ spherical_kmeans(vectors, k=k, seed=0, threads=1).T).argmax(axis=1)
    shares = np.bincount(clusters, minlength=k) / len(vectors)
    shares = shares[shares > 0]
    entropy = float(-(shares * np.log(shares)).sum())
    return {
        "near_repeats": float((cosines.max(axis=1) >= NEAR).mean()),
        "sampled": len(vectors),
        "dimensions": float(spread.sum()) ** 2 / squares if squares else 0.0,
        "cluster_balance": entropy / math.log(k) if k > 1 else 1.0,
    }
