"""A store of soft labels beside the user's own rows, as torch's DataLoader and the Hugging Face Trainer take them.

    rows with row ids + store -> SoftLabelDataset -> row and its place in the store
    such rows -> SoftLabelCollator -> the user's own batch, plus soft labels and the teacher's weight
    that batch + the student's logits -> batch_loss

Rows are joined by row id. Labels of tokens also need `input_ids` in each row, by the teacher's tokenizer and template:
their number and their digest are compared. The Trainer drops columns that it does not know before they are collated;
tell it `remove_unused_columns=False`. Raises `SoftLabelError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from datapipe.distill.codec import LEAST
from datapipe.distill.layout import digest_tokens
from datapipe.distill.losses import NO_LABEL, DenseTargets, SampledTargets, TopTargets, kd_loss, targets_of
from datapipe.errors import SoftLabelError
from datapipe.storage.rowid import ids_to_hex

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from datapipe.distill.losses import Targets
    from datapipe.distill.store import SoftLabelRows, SoftLabelStore
    from datapipe.storage.arrays import Ids, Int64

__all__ = ["PLACE", "SoftLabelCollator", "SoftLabelDataset", "batch_loss", "row_ids_of"]

PLACE = "soft_label_place"
"""Key of a row's place in the store; -1 if it has no soft labels."""

_ID_BYTES, _ID_DIGITS = 16, 32
_SHOWN = 3


class SoftLabelDataset(Dataset[dict[str, Any]]):
    """The user's rows, each with its place in the store under the key `soft_label_place`.

    Args:
        store: Open.
        rows: Mappings by index: a list of dicts, a `datasets.Dataset`.
        row_ids: Of the rows, in their order: uint64 (rows, 2), or 16 bytes or 32 hexadecimal digits each; None reads
            the rows' own `row_id`.
        missing: What becomes of rows without soft labels: `refuse`, or `labels`: they are trained on their label alone.

    Attributes:
        places: Place of each row in the store, int64 (rows,); -1 without soft labels.

    Raises:
        SoftLabelError: Rows without soft labels are refused, ids are no row ids, or there are more or fewer than rows.
    """

    def __init__(
        self,
        store: SoftLabelStore,
        rows: Any,
        *,
        row_ids: Ids | Sequence[bytes | str] | None = None,
        missing: Literal["refuse", "labels"] = "refuse",
    ) -> None:
        self._rows = rows
        ids = row_ids_of(_own_ids(rows) if row_ids is None else row_ids)
        if len(ids) != len(rows):
            raise SoftLabelError(f"there are {len(rows):,} rows and {len(ids):,} row ids")
        if missing not in {"refuse", "labels"}:
            raise SoftLabelError(f"missing must be 'refuse' or 'labels'. Got {missing!r}")
        self.places: Int64 = store.find(ids)
        absent = np.flatnonzero(self.places < 0)
        if len(absent) and missing == "refuse":
            raise SoftLabelError(
                f"{len(absent):,} of {len(rows):,} rows have no soft labels in {store.path}, the first "
                f"{ids_to_hex(ids[absent[:_SHOWN]])}: make them for these rows too, leave the rows out, or train them "
                "on their label alone with missing='labels'"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._rows[int(index)], PLACE: int(self.places[index])}


class SoftLabelCollator:
    """Makes a batch of the user's rows and adds what the store knows of them.

    To the user's own batch come:

        soft_labels     targets of `kd_loss`: one position a row, or all scored tokens of the batch, row after row
        kd_alpha        weight of the teacher at each position, float32: the row's own in the store, else `alpha`;
                        0 for rows without soft labels
        soft_rows, soft_places, soft_classes
                        for tokens only, int64 (positions,): the row in the batch, the place of the logits (one before
                        the token's own), and the token

    Args:
        store: Open.
        alpha: Weight of the teacher, 0 ... 1, for rows without one of their own; None refuses such rows.
        collate: From rows (without `row_id` and `soft_label_place`) to the user's batch; None takes torch's own.
        own_alpha: Whether a row's own weight goes before `alpha`.
        padding: Where the user's batch is filled up; for tokens.
    """

    def __init__(
        self,
        store: SoftLabelStore,
        *,
        alpha: float | None = None,
        collate: Callable[[list[dict[str, Any]]], Any] | None = None,
        own_alpha: bool = True,
        padding: Literal["right", "left"] = "right",
    ) -> None:
        if alpha is not None and not 0 <= alpha <= 1:
            raise SoftLabelError(f"alpha must be 0 ... 1. Got {alpha}")
        self._store, self._alpha, self._own_alpha = store, alpha, own_alpha
        self._collate = default_collate if collate is None else collate
        self._padding = padding

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make the batch. Raises `SoftLabelError` for items of another dataset, or tokens other than the teacher's."""
        if any(PLACE not in item for item in items):
            raise SoftLabelError(
                f"a row has no {PLACE!r}: wrap the rows in SoftLabelDataset, and tell a Trainer "
                "remove_unused_columns=False"
            )
        places = np.array([item[PLACE] for item in items], np.int64)
        found = self._store.read(places[places >= 0])
        alphas = np.zeros(len(items), np.float32)
        alphas[places >= 0] = self._weights(found)
        tokens = self._store.header.level == "token"
        ids = [_host(item.get("input_ids"), place) for place, item in enumerate(items)] if tokens else []
        own = [{key: value for key, value in item.items() if key not in {PLACE, "row_id"}} for item in items]
        batch = dict(self._collate(own))
        if not tokens:
            batch["soft_labels"] = _filled(targets_of(found.labels, found.header), torch.from_numpy(places >= 0))
            return {**batch, "kd_alpha": torch.from_numpy(alphas)}
        return {**batch, **self._tokens(items, ids, places >= 0, found, alphas, width=_width_of(batch))}

    def _weights(self, found: SoftLabelRows) -> Any:
        own = found.fact("kd_alpha")
        if not self._own_alpha:
            own.mask[:] = True
        if self._alpha is None and own.mask.any():
            row = ids_to_hex(found.row_ids[own.mask][:1])[0]
            raise SoftLabelError(f"row {row} has no weight of the teacher in {self._store.path}: give one as alpha=")
        return own.filled(0.0 if self._alpha is None else self._alpha)

    def _tokens(
        self,
        items: Sequence[Mapping[str, Any]],
        ids: Sequence[Int64],
        known: Any,
        found: SoftLabelRows,
        alphas: Any,
        *,
        width: int,
    ) -> dict[str, Any]:
        """Where the scored tokens of the batch are; rows without soft labels bring those that have a label."""
        expected = found.table.select(["row_id", "length", "tokens_digest"]).to_pylist()
        stored = iter(zip(_scored_of(found), expected, strict=True))
        scored = []
        for place, item in enumerate(items):
            if known[place]:
                own, row = next(stored)
                _compare(ids[place], own, row)
            else:
                own = _labelled(item, place)
            scored.append(own)
        sizes = np.array([len(each) for each in scored], np.int64)
        begins = [width - len(each) if self._padding == "left" else 0 for each in ids]
        rows = np.repeat(np.arange(len(items)), sizes)
        where = np.concatenate([own + begin - 1 for own, begin in zip(scored, begins, strict=True)])
        classes = np.concatenate([each[own] for each, own in zip(ids, scored, strict=True)])
        there = torch.from_numpy(np.repeat(known, sizes))
        return {
            "soft_labels": _filled(targets_of(found.labels, found.header), there),
            "kd_alpha": torch.from_numpy(np.repeat(alphas, sizes)),
            "soft_rows": torch.from_numpy(rows),
            "soft_places": torch.from_numpy(where),
            "soft_classes": torch.from_numpy(classes),
        }


def batch_loss(student_logits: torch.Tensor, batch: Mapping[str, Any], *, temperature: float = 1.0) -> torch.Tensor:
    """Return `kd_loss` of a batch that `SoftLabelCollator` made, averaged over its positions.

    Args:
        student_logits: Floating (rows, classes); of tokens (rows, length, classes), as a causal model gives them.
        batch: With `labels`, int64 (rows,), where it is of rows.
        temperature: T > 0; 1 for sampled labels.

    Raises:
        SoftLabelError: As `kd_loss`, or nothing in the batch is scored.
    """
    if "soft_places" not in batch:
        return kd_loss(
            student_logits, batch["soft_labels"], batch["labels"], alpha=batch["kd_alpha"], temperature=temperature
        )
    if not len(batch["soft_places"]):
        raise SoftLabelError("no token of the batch is scored: there is nothing to learn from it")
    device = student_logits.device
    logits = student_logits[batch["soft_rows"].to(device), batch["soft_places"].to(device)]
    return kd_loss(
        logits, batch["soft_labels"], batch["soft_classes"], alpha=batch["kd_alpha"], temperature=temperature
    )


def row_ids_of(values: Ids | Sequence[bytes | str]) -> Ids:
    """Return row ids as uint64 (rows, 2), from such an array, 16 bytes each, or 32 hexadecimal digits each.

    Raises:
        SoftLabelError: A value is no row id; names it and its place.
    """
    if isinstance(values, np.ndarray) and values.dtype == np.uint64:
        return values.reshape(-1, 2)
    raw = []
    for place, value in enumerate(values):
        try:
            own = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
        except (TypeError, ValueError):
            own = b""
        if len(own) != _ID_BYTES:
            raise SoftLabelError(
                f"row {place} has the row id {value!r}; it must be {_ID_BYTES} bytes or {_ID_DIGITS} hexadecimal digits"
            )
        raw.append(own)
    return np.frombuffer(b"".join(raw), ">u8").astype(np.uint64).reshape(-1, 2)


def _own_ids(rows: Any) -> Any:
    """The rows' own ids: a whole column where there are columns."""
    columns = getattr(rows, "column_names", None)
    if columns is not None and "row_id" in columns:
        return rows["row_id"]
    if not len(rows) or "row_id" in rows[0]:
        return [row["row_id"] for row in rows]
    raise SoftLabelError(
        f"the rows have no 'row_id' but {sorted(columns or rows[0])}: give them as row_ids=, in the order of the rows"
    )


def _filled(targets: Targets, there: torch.Tensor) -> Targets:
    """Targets of all positions, from those of the positions that have some; the others have a weight of 0."""
    if bool(there.all()):
        return targets

    def spread(values: torch.Tensor, nothing: float = 0.0) -> torch.Tensor:
        whole = values.new_full((len(there), *values.shape[1:]), nothing)
        whole[there] = values
        return whole

    if isinstance(targets, DenseTargets):
        return DenseTargets(spread(targets.log_probabilities))
    if isinstance(targets, TopTargets):
        return TopTargets(spread(targets.ids), spread(targets.log_probabilities), spread(targets.tail, LEAST))
    return SampledTargets(spread(targets.ids), spread(targets.weights), spread(targets.entropy))


def _scored_of(found: SoftLabelRows) -> list[Int64]:
    """Places of the scored tokens of each row."""
    spans = [np.frombuffer(raw, "<i4").reshape(-1, 2) for raw in found.table["spans"].to_pylist()]
    return [
        np.concatenate([np.empty(0, np.int64), *(np.arange(begin, end, dtype=np.int64) for begin, end in own)])
        for own in spans
    ]


def _host(values: Any, place: int) -> Int64:
    if values is None:
        raise SoftLabelError(f"row {place} of the batch has no 'input_ids'; labels of tokens are joined with tokens")
    found: Int64 = np.asarray(values, np.int64).reshape(-1)
    return found


def _compare(ids: Int64, scored: Int64, expected: Mapping[str, Any]) -> None:
    """Refuse tokens that are not those the teacher read."""
    row, remedy = expected["row_id"].hex(), "cut rows with the teacher's tokenizer, template and maximal length"
    if len(ids) != expected["length"]:
        raise SoftLabelError(f"row {row} has {len(ids)} tokens, and the teacher read {expected['length']}; {remedy}")
    if digest_tokens(ids[scored]) != expected["tokens_digest"]:
        raise SoftLabelError(f"row {row} has other tokens than those that the teacher read; {remedy}")


def _labelled(item: Mapping[str, Any], place: int) -> Int64:
    if "labels" not in item:
        raise SoftLabelError(
            f"row {place} of the batch has neither soft labels nor 'labels', {NO_LABEL} where a token is not learnt"
        )
    labels = np.asarray(item["labels"], np.int64).reshape(-1)
    own: Int64 = np.flatnonzero(labels != NO_LABEL)
    return own[own > 0]


def _width_of(batch: Mapping[str, Any]) -> int:
    return int(batch["input_ids"].shape[1])
