"""How soft labels lie in a table: one row a row of the data, its positions side by side in binary values.

    schema_of(header)                                   the columns, with the header in the metadata
    labels + row ids (+ TokenRows, facts) -> table_of -> table -> labels_of -> labels

| column | in | value |
|---|---|---|
| `row_id` | all | 16 bytes |
| `teacher_log_probabilities` | dense, topk | float16, little-endian: positions * classes, or positions * k |
| `teacher_ids` | topk, sampled | ids of `header.id_bits` bits, packed by row (packing.py) |
| `teacher_tail` | topk | float16 a position: logarithm of the mass of all other classes |
| `teacher_unique` | sampled | a position's number of ids, of the width of a count |
| `teacher_counts` | sampled | a count an id: uint8 up to 255 draws, else uint16 |
| `position_entropy` | sampled | float16 a position, nats |
| `tokens`, `length` | token | int32: scored tokens; tokens of the whole sequence |
| `spans` | token | int32 pairs: begin and end of each run of scored tokens in that sequence |
| `tokens_digest` | token | blake2b-64 of the scored token ids |
| `FACTS` | all | of the row; null where not known |

Widths are fixed where they are the same for all rows. Raises `SoftLabelError`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from datapipe.distill.codec import DenseLabels, SampledLabels, SoftLabels, TopLabels
from datapipe.distill.packing import bytes_of, from_binary, pack, to_binary, unpack
from datapipe.errors import SoftLabelError
from datapipe.storage.rowid import ID_TYPE, ids_to_arrow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from datapipe.distill.header import SoftLabelHeader
    from datapipe.storage.arrays import Bool, Ids, Int32, Int64

__all__ = ["FACTS", "TokenRows", "digest_tokens", "labels_of", "positions_of", "row_bytes", "schema_of", "table_of"]

FACTS: dict[str, pa.DataType] = {
    "label": pa.int32(),
    "label_confidence": pa.float32(),
    "teacher_entropy": pa.float32(),
    "kd_alpha": pa.float32(),
    "contradicts": pa.bool_(),
}
"""What may be known of a row: its label, the teacher's probability of it, the teacher's entropy in nats (mean over the
tokens), the weight of the teacher in the loss, and whether the teacher confidently says otherwise."""

_DIGEST_BYTES = 8
_HALF = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Where the scored tokens of rows stand in their sequences.

    A scored token at place t has a distribution that was predicted from the tokens before it, so a causal model's
    logits at place t - 1 belong to it; t >= 1.

    Attributes:
        tokens: Scored tokens of each row, int32 (rows,).
        lengths: Tokens of the whole sequence, int32 (rows,).
        spans: Begin and end of each run of scored tokens, int32 (runs, 2) for each row.
        digests: `digest_tokens` of the scored tokens of each row.
    """

    tokens: Int32
    lengths: Int32
    spans: Sequence[Int32]
    digests: Sequence[bytes]

    @classmethod
    def of(cls, sequences: Sequence[Int32], scored: Sequence[Bool]) -> TokenRows:
        """Describe rows.

        Args:
            sequences: All token ids of each row, int32 (length,).
            scored: Which of them have soft labels, bool (length,): those of the response.

        Raises:
            SoftLabelError: Lengths differ, or the first token of a sequence is scored; names the place in the batch.
        """
        for place, (ids, mask) in enumerate(zip(sequences, scored, strict=True)):
            if len(ids) != len(mask) or (len(mask) and mask[0]):
                raise SoftLabelError(
                    f"row {place} of the batch has {len(ids)} tokens and a mask of {len(mask)}; they must be as long, "
                    "and the first token, which nothing predicts, cannot be scored"
                )
        edges = [np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]))).astype(np.int32) for mask in scored]
        return cls(
            np.array([mask.sum() for mask in scored], np.int32),
            np.array([len(ids) for ids in sequences], np.int32),
            [edge.reshape(-1, 2) for edge in edges],
            [digest_tokens(ids[mask]) for ids, mask in zip(sequences, scored, strict=True)],
        )


def digest_tokens(ids: Int32 | Int64) -> bytes:
    """Return blake2b-64 of token ids, 8 bytes: a reader's tokens are the teacher's if it is equal."""
    return hashlib.blake2b(np.asarray(ids).astype("<i4").tobytes(), digest_size=_DIGEST_BYTES).digest()


def schema_of(header: SoftLabelHeader) -> pa.Schema:
    """Return the schema of a store, with the header in its metadata."""
    fields = [pa.field("row_id", ID_TYPE, nullable=False)]
    if header.level == "token":
        fields += [pa.field(name, pa.int32(), nullable=False) for name in ("tokens", "length")]
        fields += [pa.field("spans", pa.binary(), nullable=False)]
        fields += [pa.field("tokens_digest", pa.binary(_DIGEST_BYTES), nullable=False)]
    for name, width in _widths(header).items():
        fixed = width is not None and header.level == "row"
        fields.append(pa.field(name, pa.binary(width) if fixed else pa.binary(), nullable=False))
    fields += [pa.field(name, kind) for name, kind in FACTS.items()]
    return pa.schema(fields, metadata=header.to_metadata())


def row_bytes(header: SoftLabelHeader) -> int:
    """Return about how many bytes one position takes, uncompressed; drawn labels at their most."""
    widest = 0 if header.draws is None else bytes_of(np.array(header.draws), header.id_bits) + header.draws
    return int(16 + sum(width or 0 for width in _widths(header).values()) + widest)


def table_of(
    header: SoftLabelHeader,
    row_ids: Ids,
    labels: SoftLabels,
    *,
    tokens: TokenRows | None = None,
    facts: Mapping[str, Any] | None = None,
) -> pa.Table:
    """Lay out the labels of rows.

    Args:
        header: What they are.
        row_ids: uint64 (rows, 2), in the order of the positions.
        labels: Of all positions, row after row.
        tokens: Which positions are whose; with level `token`.
        facts: Some of `FACTS`, by name: numpy or Arrow arrays (rows,), null where unknown.

    Raises:
        SoftLabelError: Labels of another mode or shape, other numbers of positions, or an unknown fact.
    """
    sizes = _sizes(header, len(row_ids), labels, tokens)
    columns: dict[str, pa.Array] = {"row_id": ids_to_arrow(row_ids)}
    if tokens is not None:
        runs = np.array([4 * span.size for span in tokens.spans], np.int64)
        spans = np.concatenate([np.empty(0, np.int32), *(span.reshape(-1) for span in tokens.spans)]).astype("<i4")
        columns["tokens"] = pa.array(tokens.tokens, pa.int32())
        columns["length"] = pa.array(tokens.lengths, pa.int32())
        columns["spans"] = to_binary(spans, runs, fixed=None)
        columns["tokens_digest"] = pa.array(list(tokens.digests), pa.binary(_DIGEST_BYTES))
    widths = _widths(header)
    for name, (content, row_sizes) in _contents(header, labels, sizes).items():
        columns[name] = to_binary(content, row_sizes, fixed=widths[name] if header.level == "row" else None)
    known = dict(facts or {})
    for name, kind in FACTS.items():
        found = known.pop(name, None)
        columns[name] = pa.nulls(len(row_ids), kind) if found is None else pa.array(found).cast(kind)
    if known:
        raise SoftLabelError(f"unknown facts {sorted(known)}; known are {sorted(FACTS)}")
    return pa.table(columns, schema=schema_of(header))


def positions_of(header: SoftLabelHeader, table: pa.Table) -> Int64:
    """Return the positions of each row, int64 (rows,)."""
    if header.level == "row":
        return np.ones(table.num_rows, np.int64)
    sizes: Int64 = table["tokens"].to_numpy().astype(np.int64)
    return sizes


def labels_of(header: SoftLabelHeader, table: pa.Table) -> SoftLabels:
    """Return the labels of all positions of a table, row after row.

    Raises:
        SoftLabelError: The bytes do not fit the header: the file is damaged.
    """
    sizes = positions_of(header, table)
    positions = int(sizes.sum())
    if header.mode == "dense":
        return DenseLabels(_numbers(table, "teacher_log_probabilities", _HALF, positions, header.classes))
    if header.k is not None:
        packed, _ = from_binary(_whole(table, "teacher_ids"))
        ids = unpack(packed, sizes * header.k, header.id_bits).reshape(positions, header.k)
        values = _numbers(table, "teacher_log_probabilities", _HALF, positions, header.k)
        labels: SoftLabels = TopLabels(ids, values, _numbers(table, "teacher_tail", _HALF, positions, 1)[:, 0])
    else:
        labels = _sampled(header, table, sizes)
        ids = labels.ids
    if ids.size and int(ids.max()) >= header.classes:
        raise SoftLabelError(
            f"a class id is {int(ids.max()):,}, and there are {header.classes:,} classes: the file is damaged, make it "
            "again"
        )
    return labels


def _sampled(header: SoftLabelHeader, table: pa.Table, sizes: Int64) -> SampledLabels:
    positions = int(sizes.sum())
    width = _count_type(header)
    unique = _numbers(table, "teacher_unique", width, positions, 1)[:, 0].astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(unique)])
    of_rows = np.diff(offsets[np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])])
    packed, _ = from_binary(_whole(table, "teacher_ids"))
    counts = _numbers(table, "teacher_counts", width, int(offsets[-1]), 1)[:, 0].astype(np.uint16)
    entropy = _numbers(table, "position_entropy", _HALF, positions, 1)[:, 0]
    return SampledLabels(unpack(packed, of_rows, header.id_bits), counts, offsets, entropy)


def _widths(header: SoftLabelHeader) -> dict[str, int | None]:
    """Bytes of one position in each column of labels; None where they differ."""
    if header.mode == "dense":
        return {"teacher_log_probabilities": 2 * header.classes}
    if header.k is not None:
        ids = int(bytes_of(np.array(header.k), header.id_bits))
        return {"teacher_ids": ids, "teacher_log_probabilities": 2 * header.k, "teacher_tail": 2}
    count = _count_type(header).itemsize
    return {"teacher_ids": None, "teacher_counts": None, "teacher_unique": count, "position_entropy": 2}


def _contents(header: SoftLabelHeader, labels: SoftLabels, sizes: Int64) -> dict[str, tuple[NDArray[Any], Int64]]:
    """Numbers of each column, and the bytes of them that belong to each row."""
    if isinstance(labels, DenseLabels):
        return {"teacher_log_probabilities": (labels.log_probabilities.astype(_HALF), sizes * 2 * header.classes)}
    if isinstance(labels, TopLabels):
        k = labels.ids.shape[1]
        packed = pack(labels.ids.reshape(-1), sizes * k, header.id_bits)
        return {
            "teacher_ids": (packed, bytes_of(sizes * k, header.id_bits)),
            "teacher_log_probabilities": (labels.log_probabilities.astype(_HALF), sizes * 2 * k),
            "teacher_tail": (labels.tail.astype(_HALF), sizes * 2),
        }
    width = _count_type(header)
    of_rows = np.diff(labels.offsets[np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])])
    unique = np.diff(labels.offsets).astype(width)
    return {
        "teacher_ids": (pack(labels.ids, of_rows, header.id_bits), bytes_of(of_rows, header.id_bits)),
        "teacher_counts": (labels.counts.astype(width), of_rows * width.itemsize),
        "teacher_unique": (unique, sizes * width.itemsize),
        "position_entropy": (labels.entropy.astype(_HALF), sizes * 2),
    }


def _sizes(header: SoftLabelHeader, rows: int, labels: SoftLabels, tokens: TokenRows | None) -> Int64:
    """Positions of each row, after checking that everything fits."""
    if (tokens is None) == (header.level == "token"):
        raise SoftLabelError(f"TokenRows go with labels of tokens and with no others; these are of {header.level}s")
    sizes = np.ones(rows, np.int64) if tokens is None else tokens.tokens.astype(np.int64)
    if len(sizes) != rows or int(sizes.sum()) != len(labels):
        raise SoftLabelError(
            f"{len(labels):,} positions do not make {rows:,} rows of {int(sizes.sum()):,} positions together"
        )
    if not _fits(header, labels):
        raise SoftLabelError(
            f"{type(labels).__name__} of that width are no labels of mode {header.mode!r} with {header.classes:,} "
            f"classes, k {header.k} and draws {header.draws}"
        )
    return sizes


def _fits(header: SoftLabelHeader, labels: SoftLabels) -> bool:
    if isinstance(labels, DenseLabels):
        return header.mode == "dense" and bool(labels.log_probabilities.shape[1] == header.classes)
    if isinstance(labels, TopLabels):
        return bool(labels.ids.shape[1] == header.k)
    return header.draws is not None


def _count_type(header: SoftLabelHeader) -> np.dtype[Any]:
    return np.dtype("<u1" if (header.draws or 0) <= np.iinfo(np.uint8).max else "<u2")


def _numbers(table: pa.Table, name: str, kind: np.dtype[Any], positions: int, each: int) -> NDArray[Any]:
    raw, _ = from_binary(_whole(table, name))
    if len(raw) != positions * each * kind.itemsize:
        raise SoftLabelError(
            f"column {name!r} has {len(raw):,} bytes and {positions:,} positions need "
            f"{positions * each * kind.itemsize:,}: the file is damaged, make it again"
        )
    return np.frombuffer(raw, kind).reshape(positions, each)


def _whole(table: pa.Table, name: str) -> pa.Array:
    column = table[name]
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
