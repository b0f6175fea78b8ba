"""Records how the user's own training sees each row, for the metrics that are made of it.

    recorder = DynamicsRecorder(kept["row_id"].to_list(), classes=77)
    for epoch in range(epochs):
        recorder.epoch()
        for ids, inputs, labels in loader:
            logits = model(inputs)
            ...
            recorder.log(ids, logits=logits.detach(), labels=labels)
    recorder.save("dynamics.parquet")          # then: datapipe curate ... --metric aum --dynamics dynamics.parquet

Three lines in a loop. Ids are the values of the run's id column, or row ids (16 bytes) as `kept.parquet` has them.
The file has a row a row id: row_id, probability, margin and error (lists of float16, one an epoch), and gap and entropy
(float32) of the last epoch. Raises `MetricError` for what a loop logs wrongly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import MetricError
from datapipe.metrics.dynamics import early_epoch, fill_gaps, metrics_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pyarrow as pa
    import torch
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Float32, Ids, Int64

FORMAT = b"datapipe.dynamics/1"
_EACH = ("probability", "margin", "error")
_ONCE = ("gap", "entropy")
_SUM_TOLERANCE = 0.01


class DynamicsRecorder:
    """Accumulates what each epoch said of each row; rows * (6 * epochs + 8) bytes, and a dictionary of the ids.

    A row that an epoch misses (a loop that drops its last batch) keeps its value of the epoch before.

    Args:
        row_ids: All rows that will be logged: integers, strings, or row ids of 16 bytes.
        classes: Their number, >= 2.

    Raises:
        MetricError: An id occurs twice, or there are fewer than two classes or no rows.
    """

    def __init__(self, row_ids: Sequence[Any], *, classes: int) -> None:
        self._ids = _plain(row_ids)
        self._place = {row_id: i for i, row_id in enumerate(self._ids)}
        if classes < 2:  # noqa: PLR2004 - one class is no choice
            raise MetricError(f"dynamics need at least two classes, got classes={classes}")
        if not self._ids:
            raise MetricError("dynamics need at least one row id")
        if len(self._place) != len(self._ids):
            twice = next(row_id for i, row_id in enumerate(self._ids) if self._place[row_id] != i)
            raise MetricError(f"the row id {twice!r} occurs twice in row_ids")
        self._classes = classes
        self._each: dict[str, list[NDArray[np.float16]]] = {name: [] for name in _EACH}
        self._once = {name: np.full(len(self._ids), np.nan, np.float32) for name in _ONCE}
        self._logged = np.zeros(len(self._ids), np.bool_)

    @property
    def epochs(self) -> int:
        """Epochs begun."""
        return len(self._each["margin"])

    def epoch(self) -> None:
        """Begin an epoch."""
        for values in self._each.values():
            values.append(np.full(len(self._ids), np.nan, np.float16))
        self._logged[:] = False

    def log(self, row_ids: Sequence[Any], *, labels: Any, logits: Any = None, probabilities: Any = None) -> None:
        """Take down a batch, before or after the step on it.

        Args:
            row_ids: Of the rows, each once an epoch.
            labels: Classes, whole numbers (rows,) in [0, classes).
            logits: (rows, classes), a tensor or array; excludes `probabilities`.
            probabilities: (rows, classes), each row summing to 1.

        Raises:
            MetricError: No epoch was begun; a row id is unknown or was logged in this epoch; shapes or labels do not
                fit; a value is not finite; probabilities are none.
        """
        from datapipe.metrics.errors_of_heads import predicted

        if not self.epochs:
            raise MetricError("call recorder.epoch() at the beginning of each epoch, before recorder.log()")
        rows = self._rows(_plain(row_ids))
        scores = self._scores(rows, logits, probabilities)
        found = predicted(scores, self._labels(rows, labels))
        for name in _EACH:
            self._each[name][-1][rows] = getattr(found, name).numpy()
        for name in _ONCE:
            self._once[name][rows] = getattr(found, name).numpy()
        self._logged[rows] = True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file that `--dynamics` takes.

        Raises:
            MetricError: Nothing was logged.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from datapipe.storage.rowid import ids_to_arrow

        if not self.epochs or np.isnan(self._once["gap"]).all():
            raise MetricError("nothing was logged: call recorder.epoch() and recorder.log() in the training loop")
        ids = self._row_ids()
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        columns: dict[str, Any] = {"row_id": ids_to_arrow(ids[order])}
        for name, values in self._each.items():
            flat = np.stack(values)[:, order].T.reshape(-1)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), self.epochs)
        columns |= {name: pa.array(values[order]) for name, values in self._once.items()}
        about = {b"format": FORMAT, b"epochs": str(self.epochs).encode(), b"classes": str(self._classes).encode()}
        temporary = Path(path).with_name(Path(path).name + ".partial")
        pq.write_table(pa.table(columns).replace_schema_metadata(about), temporary)
        temporary.replace(path)

    def _row_ids(self) -> Ids:
        import pyarrow as pa

        from datapipe.storage.rowid import ID_BYTES, ID_TYPE, ids_from_arrow, value_digests

        if all(isinstance(each, bytes) and len(each) == ID_BYTES for each in self._ids):
            return ids_from_arrow(pa.array(self._ids, ID_TYPE))
        return value_digests(pa.array(self._ids))

    def _rows(self, row_ids: list[Any]) -> Int64:
        try:
            rows = np.fromiter((self._place[each] for each in row_ids), np.int64, len(row_ids))
        except KeyError as error:
            raise MetricError(f"the row id {error.args[0]!r} is not one of the recorder's row_ids") from None
        again = self._logged[rows]
        if again.any() or len(np.unique(rows)) != len(rows):
            first = int(rows[again][0] if again.any() else rows[_repeats(rows)][0])
            raise MetricError(
                f"the row {self._ids[first]!r} was logged twice in epoch {self.epochs}; call recorder.epoch() "
                "at the beginning of each"
            )
        return rows

    def _scores(self, rows: Int64, logits: Any, probabilities: Any) -> torch.Tensor:
        import torch

        if (logits is None) == (probabilities is None):
            raise MetricError("log either logits or probabilities")
        scores = torch.as_tensor(probabilities if logits is None else logits).detach().cpu().float()
        if scores.shape != (len(rows), self._classes):
            raise MetricError(
                f"the scores have the shape {tuple(scores.shape)}; {len(rows)} rows of {self._classes} classes "
                f"have {(len(rows), self._classes)}"
            )
        bad = ~torch.isfinite(scores).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise MetricError(
                f"the scores of row {self._ids[int(rows[first])]!r} are not finite in epoch {self.epochs}"
            )
        if logits is not None:
            return scores.softmax(1)
        off = ((scores.sum(1) - 1.0).abs() > _SUM_TOLERANCE) | (scores < 0).any(1)
        if off.any():
            first = int(off.nonzero()[0])
            raise MetricError(
                f"the probabilities of row {self._ids[int(rows[first])]!r} sum to {float(scores[first].sum()):.4g} "
                "or one is negative; if they are logits, log them as logits"
            )
        return scores

    def _labels(self, rows: Int64, labels: Any) -> torch.Tensor:
        import torch

        classes = torch.as_tensor(labels).detach().cpu()
        if classes.shape != (len(rows),) or classes.is_floating_point():
            raise MetricError(f"labels are whole numbers of shape ({len(rows)},), got {tuple(classes.shape)}")
        wrong = (classes < 0) | (classes >= self._classes)
        if wrong.any():
            first = int(wrong.nonzero()[0])
            raise MetricError(
                f"the label of row {self._ids[int(rows[first])]!r} is {int(classes[first])}; classes go from 0 to "
                f"{self._classes - 1}"
            )
        return classes.long()


def read_dynamics(path: str | os.PathLike[str]) -> tuple[Ids, dict[str, Float32]]:
    """Read a recorder's file as row ids, ascending, and metrics, float32 (rows,) each; `grand` is not among them.

    Raises:
        MetricError: The file is not one that a recorder wrote; names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datapipe.storage.rowid import ids_from_arrow

    try:
        with pq.ParquetFile(path) as file:
            about: Mapping[bytes, bytes] = file.schema_arrow.metadata or {}
            if about.get(b"format") != FORMAT:
                raise MetricError(f"{path} was not written by DynamicsRecorder.save")
            epochs = int(about[b"epochs"])
            ids, found = [], []
            for batch in file.iter_batches(65_536):
                ids.append(ids_from_arrow(batch["row_id"]))
                found.append(_metrics(batch, epochs))
    except (OSError, pa.ArrowException) as error:
        raise MetricError(f"cannot read the dynamics {path}: {error}") from error
    return np.concatenate(ids), {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def _metrics(batch: pa.RecordBatch, epochs: int) -> dict[str, Float32]:
    course: dict[str, NDArray[Any]] = {}
    for name in _EACH:
        flat = batch[name].flatten().to_numpy(zero_copy_only=False)
        course[name] = fill_gaps(flat.reshape(-1, epochs).T)
    early = early_epoch(epochs)
    course["error"] = course["error"][early : early + 1]
    course |= {name: batch[name].to_numpy(zero_copy_only=False) for name in _ONCE}
    return metrics_of(course)


def _plain(row_ids: Any) -> list[Any]:
    return row_ids.tolist() if hasattr(row_ids, "tolist") else list(row_ids)


def _repeats(rows: Int64) -> Int64:
    order = np.argsort(rows, kind="stable")
    repeats: Int64 = order[1:][rows[order][1:] == rows[order][:-1]]
    return repeats
