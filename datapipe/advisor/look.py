"""A look at a data set: what advice depends on, in one pass and a sample.

source -> columns -> keys of all rows (exact repeats), counts of labels, a sample by content -> vectors -> `Facts`

The sample is drawn by the digest of the content, so it does not depend on how the source is cut or ordered. Memory: 16
bytes a row, and the sample. Raises `ColumnError` for columns that are not there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from datapipe.errors import ColumnError

if TYPE_CHECKING:
    import pyarrow as pa

    from datapipe.config import CurateConfig
    from datapipe.selection.evidence import Modality
    from datapipe.settings import Settings
    from datapipe.storage.arrays import Float32, Ids
    from datapipe.storage.source import Source

SAMPLE_ROWS = 1000


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
        near_repeats: Part of the sample that has another row of the sample at a cosine of 0.98 or more; in the whole
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
        The facts, and the sample; None for images without a vision model to embed them.

    Raises:
        ColumnError: A named column is not in the source, or there is nothing to look at.
        ModelError: The model cannot embed what the column holds.
    """
    config = with_images(config, source)
    column, modality = _content(source, config)
    label = config.label_column
    if label is not None and label not in source.schema.names:
        raise ColumnError(f"label_column {label!r} is not in the source; its columns are {_names(source)}")
    seen = _Pass(sample_rows, is_text=modality == "text" and config.embedding_column is None)
    for batch in source.batches([column, *([label] if label is not None else [])], rejected=lambda _: None):
        seen.add(batch.table, column, label, file=batch.file)
    if not seen.rows:
        raise ColumnError(f"the column {column!r} holds no row to look at")
    sample = _sample(seen, source, config, settings)
    return _facts(seen, modality, sample, labelled=label is not None), sample


def with_images(config: CurateConfig, source: Source) -> CurateConfig:
    """The config with the image column named, where none was and the source has bytes and no text."""
    import pyarrow as pa

    if (config.embedding_column, config.text_column, config.image_column) != (None, None, None):
        return config
    binary = [each.name for each in source.schema if pa.types.is_binary(each.type)]
    if not binary or "text" in source.schema.names:
        return config
    return replace(config, image_column=binary[0])


def _content(source: Source, config: CurateConfig) -> tuple[str, Modality]:
    from datapipe.stages.columns import resolve_columns
    from datapipe.storage.images import check_image_type

    columns = resolve_columns(config, source.schema)
    if columns.image is not None:
        check_image_type(source.schema.field(columns.image))
    kind: Modality = "images" if columns.image is not None else "text" if columns.text is not None else "other"
    return str(columns.vector or columns.image or columns.text), kind


def _names(source: Source) -> str:
    return ", ".join(source.schema.names)


class _Drawn(NamedTuple):
    """A row of the sample: its content, its label, and the file of the source that it stands in."""

    value: Any
    label: str | None
    file: int


class _Pass:
    """Keys, label counts and the rows of the smallest keys."""

    def __init__(self, sample_rows: int, *, is_text: bool) -> None:
        self.rows, self._is_text = 0, is_text
        self.labels: Counter[str] = Counter()
        self._keys: list[Ids] = []
        self._most = sample_rows
        self._drawn: dict[tuple[int, int], _Drawn] = {}

    def add(self, table: pa.Table, column: str, label: str | None, *, file: int) -> None:
        import numpy as np
        import pyarrow.compute as pc

        from datapipe.dedup.exact import text_keys
        from datapipe.storage.rowid import content_digests

        table = table.filter(pc.is_valid(table[column]))
        keys = text_keys(table[column].cast("string")) if self._is_text else content_digests(table.select([column]))
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
            told = labels[at].as_py() if labels is not None else None
            self._drawn.setdefault(key, _Drawn(table[column][at], told, file))
        if len(self._drawn) > 2 * self._most:
            self._drawn = dict(sorted(self._drawn.items(), key=lambda item: item[0])[: self._most])

    def drawn(self) -> list[_Drawn]:
        """The sample, in the order of keys."""
        return [row for _, row in sorted(self._drawn.items(), key=lambda item: item[0])[: self._most]]

    def repeats(self) -> float:
        import numpy as np

        keys = np.concatenate(self._keys)
        return 1 - len(np.unique(keys, axis=0)) / len(keys)


def _sample(seen: _Pass, source: Source, config: CurateConfig, settings: Settings) -> Sample | None:
    import numpy as np
    import pyarrow as pa

    from datapipe.storage.vectors import normalise, to_matrix

    drawn = seen.drawn()
    if config.embedding_column is not None:
        matrix = to_matrix(pa.array([row.value.as_py() for row in drawn], drawn[0].value.type))
    elif config.image_column is None:
        matrix = _embed_texts(drawn, config, settings)
    elif config.model != "default":
        drawn, matrix = _embed_images(drawn, source, config, settings)
    else:
        return None
    vectors, undirected = normalise(np.asarray(matrix, np.float32))
    labels = tuple(row.label for row, out in zip(drawn, undirected, strict=True) if not out)
    return Sample(vectors=vectors[~undirected], labels=labels if config.label_column is not None else ())


def _embed_texts(drawn: list[_Drawn], config: CurateConfig, settings: Settings) -> Float32:
    from datapipe.embedding.text import embed_texts
    from datapipe.stages.embedder import Embedder

    embedder = Embedder(config.model, device=config.device or settings.device)
    return embed_texts(embedder.worker(), [row.value.as_py() for row in drawn], model=embedder.name).vectors


def _embed_images(
    drawn: list[_Drawn], source: Source, config: CurateConfig, settings: Settings
) -> tuple[list[_Drawn], Float32]:
    """The rows whose image can be used, and their vectors."""
    from datapipe.embedding.image import check_image, embed_images
    from datapipe.stages.embedder import Embedder
    from datapipe.stages.images import image_files
    from datapipe.storage.images import UnreadableImageError

    files = image_files(source, str(config.image_column), settings=settings)
    usable, images = [], []
    for row in drawn:
        try:
            data = files.read(row.value.as_py(), file=row.file)
        except UnreadableImageError:
            continue  # a run refuses the row with this reason
        if check_image(data) is None:
            usable.append(row)
            images.append(data)
    if not images:
        raise ColumnError(f"none of {len(drawn):,} sampled images in the column {config.image_column!r} can be used")
    embedder = Embedder(config.model, device=config.device or settings.device, task="embed_image")
    return usable, embed_images(embedder.worker(), images, model=embedder.name, batch=embedder.batch)


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
        from datapipe.advisor.geometry import geometry

        facts |= geometry(sample.vectors)
    return Facts(**facts)
