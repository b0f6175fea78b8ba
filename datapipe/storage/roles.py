"""From the rows of a source to the columns that a run uses, and the rows that it cannot use with their reasons.

columns of the source, by role -> text, vector, image, label, group, split of the accepted rows | refused rows

Of an image the canonical rows hold the key of its content; the image stays where it is. Reasons: `null_id`,
`null_text`, `empty_text`, `text_too_long`, `too_large`, `null_vector`, `wrong_length`, `not_finite`, `zero_vector`,
then those of images (`images.py` and who checks them). A row has one reason, the first in this order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datapipe.errors import ColumnError, VectorError
from datapipe.storage.images import check_image_type
from datapipe.storage.rowid import ID_TYPE
from datapipe.storage.vectors import encode, normalise, to_matrix, vector_field, vector_info, vector_lengths

if TYPE_CHECKING:
    from collections.abc import Callable

    from datapipe.storage.arrays import Bool, Float32
    from datapipe.storage.images import ImageFiles

    Refused: TypeAlias = dict[int, tuple[str, str]]
    """Reason and detail of each refused row, by its position in the batch."""

MAX_CLASSES = 100_000


@dataclass(frozen=True, kw_only=True)
class IngestSpec:
    """Columns by role, and limits; None where a role is not filled.

    Attributes:
        text_column: Strings to embed.
        vector_column: Vectors that the source brings: lists of numbers, or encoded as vectors.py says.
        label_column: Class labels, of any flat type; read as text.
        group_column: What to balance by; read as text.
        split_column: Parts of the source (train, test, ...); read as text.
        image_column: Image files, paths to them, or structs of both.
        id_column: Unique names of the rows; None names them by their content.
        shard_rows: Most rows of a shard on average, >= 1.
        shard_bytes: Most bytes of a shard on average, >= 1; binds where rows are large. A shard is held in memory.
        max_cell_bytes: Bytes of the largest string or binary value; a row with a larger one is refused.
        max_text_chars: Characters of the longest text; a row with a longer one is refused.
    """

    text_column: str | None = None
    vector_column: str | None = None
    label_column: str | None = None
    group_column: str | None = None
    split_column: str | None = None
    image_column: str | None = None
    id_column: str | None = None
    shard_rows: int = 32_768
    shard_bytes: int = 128 << 20
    max_cell_bytes: int = 16 << 20
    max_text_chars: int = 1 << 24

    @property
    def named(self) -> dict[str, str]:
        """The columns that are named, by role."""
        roles = {
            "text": self.text_column,
            "vector": self.vector_column,
            "label": self.label_column,
            "group": self.group_column,
            "split": self.split_column,
            "image": self.image_column,
            "id": self.id_column,
        }
        return {role: name for role, name in roles.items() if name is not None}


@dataclass
class Tally:
    """What was seen in the source so far.

    Attributes:
        held: Roles of which some row held a value.
        lengths: Rows by the length of their vector.
        labels: Distinct labels of accepted rows; None once there are more than `MAX_CLASSES`.
        text_bytes: Bytes of the texts of accepted rows, in UTF-8.
    """

    held: set[str] = field(default_factory=set)
    lengths: Counter[int] = field(default_factory=Counter)
    labels: set[str] | None = field(default_factory=set)
    text_bytes: int = 0

    @property
    def classes(self) -> int | None:
        """How many distinct labels there are; None where they are too many to be classes."""
        return len(self.labels) if self.labels is not None else None

    def usual_length(self) -> int | None:
        """The length that most vectors have, the longest of those that are equally common; None without vectors."""
        return max(self.lengths, key=lambda length: (self.lengths[length], length), default=None)


class RoleReader:
    """Turns batches of a source into the run's columns.

    Args:
        schema: The source's.
        spec: Columns by role.
        dim: The length of vectors; None takes that of the first one. Rows of another length are refused.
        images: Reads the image column; needed where the spec names one.

    Raises:
        ColumnError: A named column is absent, or of a type that its role cannot use; names the columns there are.
    """

    def __init__(
        self, schema: pa.Schema, spec: IngestSpec, *, dim: int | None = None, images: ImageFiles | None = None
    ) -> None:
        for role, name in spec.named.items():
            if name not in schema.names:
                there = ", ".join(schema.names)
                raise ColumnError(f"{role} column {name!r} is not in the source; its columns are {there}")
            _check_type(role, schema.field(name))
        self.tally = Tally()
        self.dim = dim
        self._spec, self._images = spec, images

    @property
    def fields(self) -> list[pa.Field]:
        """Fields of the columns that `read` returns."""
        named = self._spec.named
        fields = [pa.field("text", pa.string(), nullable=False)] if "text" in named else []
        if "vector" in named and self.dim is not None:
            fields.append(vector_field("vector", dim=self.dim, model="given", digest="", normalised=True))
        if "image" in named:
            fields.append(pa.field("image", ID_TYPE, nullable=False))
        return fields + [pa.field(role, pa.string()) for role in ("label", "group", "split") if role in named]

    def read(self, table: pa.Table, *, file: int = 0) -> tuple[list[pa.Array], Bool, Refused]:
        """Return the columns `fields` of the accepted rows, which those are, bool (rows,), and why not the others.

        Args:
            table: Rows of the source.
            file: The source's file that holds them.
        """
        refused: Refused = {}
        columns = {role: table[name] for role, name in self._spec.named.items()}
        self.tally.held |= {role for role, column in columns.items() if column.null_count < table.num_rows}
        if "id" in columns:
            _refuse(refused, columns["id"].is_null(), "null_id", _always(f"column {self._spec.id_column!r} is null"))
        if "text" in columns:
            self._check_text(columns["text"], refused)
        self._check_sizes(table, refused)
        unit = self._unit_vectors(columns["vector"], refused) if "vector" in columns else None
        keys = self._image_keys(columns["image"], refused, file) if "image" in columns else []
        accepted = np.ones(table.num_rows, np.bool_)
        accepted[list(refused)] = False
        return self._accepted(columns, unit, keys, accepted), accepted, refused

    def _accepted(
        self, columns: dict[str, pa.ChunkedArray], unit: Float32 | None, keys: list[bytes], accepted: Bool
    ) -> list[pa.Array]:
        whole = bool(accepted.all())
        arrays = []
        for each in self.fields:
            if each.name == "vector" and unit is not None:
                arrays.append(encode(unit if whole else unit[accepted]))
                continue
            if each.name == "image":
                arrays.append(pa.array(keys, ID_TYPE))
                continue
            column = columns[each.name] if whole else columns[each.name].filter(pa.array(accepted))
            arrays.append(column.cast(pa.string()))
            if each.name == "text":
                self.tally.text_bytes += pc.sum(pc.binary_length(arrays[-1])).as_py() or 0
            if each.name == "label" and self.tally.labels is not None:
                self.tally.labels |= set(pc.unique(arrays[-1]).drop_null().to_pylist())
                self.tally.labels = self.tally.labels if len(self.tally.labels) <= MAX_CLASSES else None
        return arrays

    def _check_text(self, text: pa.ChunkedArray, refused: Refused) -> None:
        name, most = self._spec.text_column, self._spec.max_text_chars
        visible = pc.binary_length(pc.utf8_ltrim_whitespace(text))
        _refuse(refused, text.is_null(), "null_text", _always(f"column {name!r} is null"))
        _refuse(refused, pc.equal(visible, 0), "empty_text", _always(f"column {name!r} holds white space only"))
        if _largest(pc.binary_length(text)) > most:
            lengths, told = pc.utf8_length(text), f"characters, more than max_text_chars={most:,}"
            long = pc.greater(lengths, most)
            _refuse(refused, long, "text_too_long", lambda row: f"column {name!r} holds {lengths[row]} {told}")

    def _image_keys(self, column: pa.ChunkedArray, refused: Refused, file: int) -> list[bytes]:
        """Keys of the images of the rows that are not refused, in row order; refuses those without a usable image."""
        if self._images is None:
            raise ColumnError(f"nobody reads the image column {self._spec.image_column!r}; this is a bug")
        rows = [row for row in range(len(column)) if row not in refused]
        keys: list[bytes] = []
        for row, found in zip(rows, self._images.keys(column.take(pa.array(rows, pa.int64())), file=file), strict=True):
            if isinstance(found, bytes):
                keys.append(found)
            else:
                refused[row] = found
        return keys

    def _check_sizes(self, table: pa.Table, refused: Refused) -> None:
        most = self._spec.max_cell_bytes
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
                sizes = pc.binary_length(column)
                if _largest(sizes) > most:
                    told = f"column {name!r} holds a value of more than max_cell_bytes={most:,}"
                    _refuse(refused, pc.greater(sizes, most), "too_large", _always(told))

    def _unit_vectors(self, column: pa.ChunkedArray, refused: Refused) -> Float32:
        """Unit vectors of all rows, float32 (rows, dim); anything where the row has none."""
        name, lengths = self._spec.vector_column, vector_lengths(column)
        found, rows = np.unique(lengths[lengths > 0], return_counts=True)
        self.tally.lengths.update(dict(zip(found.tolist(), rows.tolist(), strict=True)))
        if self.dim is None and len(found):
            self.dim = int(lengths[lengths > 0][0])
        _refuse(refused, lengths < 0, "null_vector", _always(f"column {name!r} is null"))
        right = np.equal(lengths, -2 if self.dim is None else self.dim)
        told = f"numbers, the other rows {self.dim}"
        _refuse(refused, ~right, "wrong_length", lambda row: f"column {name!r} holds {lengths[row]} {told}")
        if self.dim is not None and not right.any():
            return np.zeros((len(right), self.dim), np.float32)
        matrix = to_matrix(column if right.all() else column.filter(pa.array(right)))
        directed, bad = normalise(matrix)
        if bad.any():
            infinite = np.zeros(len(right), np.bool_)
            infinite[np.flatnonzero(right)[bad]] = ~np.isfinite(matrix[bad]).all(axis=1)
            _refuse(refused, infinite, "not_finite", _always(f"column {name!r} holds NaN, null or infinity"))
            zero = np.zeros(len(right), np.bool_)
            zero[np.flatnonzero(right)[bad]] = True
            _refuse(refused, zero, "zero_vector", _always(f"column {name!r} holds zeros only, which point nowhere"))
        if right.all():
            return directed
        unit = np.zeros((len(right), matrix.shape[1]), np.float32)
        unit[right] = directed
        return unit


def _check_type(role: str, column: pa.Field) -> None:
    """Refuse a column whose type its role cannot use."""
    kind = column.type
    if pa.types.is_null(kind):
        raise ColumnError(f"{role} column {column.name!r} holds nothing but nulls; name another column")
    if role == "text" and not pa.types.is_string(kind):
        raise ColumnError(f"text column {column.name!r} is {kind}; it must hold strings")
    if role == "image":
        check_image_type(column)
    if role in {"label", "group", "split"} and (pa.types.is_nested(kind) or pa.types.is_binary(kind)):
        raise ColumnError(f"{role} column {column.name!r} is {kind}; it must hold strings, numbers or times")
    if role == "vector":
        try:
            if pa.types.is_fixed_size_binary(kind):
                vector_info(column)
            else:
                vector_lengths(pa.array([], kind))
        except VectorError as error:
            raise ColumnError(f"vector column {column.name!r}: {error}") from error


def _refuse(refused: Refused, rows: Bool | pa.ChunkedArray, reason: str, detail: Callable[[int], str]) -> None:
    """Note every row that `rows` marks; a null marks nothing, and a reason that stands stays."""
    if isinstance(rows, pa.ChunkedArray):
        if not pc.any(rows).as_py():
            return
        rows = rows.fill_null(False).to_numpy()  # noqa: FBT003
    for row in np.flatnonzero(rows).tolist():
        if row not in refused:
            refused[row] = (reason, detail(row))


def _always(detail: str) -> Callable[[int], str]:
    return lambda _: detail


def _largest(lengths: pa.ChunkedArray) -> int:
    return int(pc.max(lengths).as_py() or 0)
