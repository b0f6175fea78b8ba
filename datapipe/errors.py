"""Every exception of both packages, under one base.

Each error is also the built-in that a caller would reach for (`except ValueError`), and its message says what was
wrong, in which file, column or row, and what to do. A row that is bad is no exception: it goes to `rejected.parquet`
with its reason and the run goes on.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "ColumnError",
    "ConfigError",
    "DatapipeError",
    "DeadlineError",
    "DigestError",
    "IntegrityError",
    "ItemError",
    "LimitError",
    "LockedError",
    "MetricError",
    "MissingExtraError",
    "ModelError",
    "ModelNotFoundError",
    "OutputError",
    "OverloadedError",
    "RejectedError",
    "RowIdError",
    "SelectionError",
    "SoftLabelError",
    "SourceError",
    "StageError",
    "UnsafeModelError",
    "VectorError",
    "WorkerError",
    "WorkerStoppedError",
]


class DatapipeError(Exception):
    """Base of everything that datapipe and provence raise on purpose."""


class ConfigError(DatapipeError, ValueError):
    """Options contradict each other, are out of range, or a config file holds an unknown key."""


class SourceError(DatapipeError, ValueError):
    """A source cannot be read as a table: missing, empty, of unknown format, damaged, or changed since ingest."""


class ColumnError(DatapipeError, LookupError):
    """A column that the run needs is absent, ambiguous, or holds nothing usable; names the columns there are."""


class LimitError(DatapipeError, ValueError):
    """A file is larger than the limits allow: rows, columns, row groups, or bytes once decoded."""


class RowIdError(DatapipeError, ValueError):
    """Row ids are not unique; names the value and two places where it stands."""


class RejectedError(DatapipeError, ValueError):
    """More rows were rejected than `max_rejected` allows."""


class VectorError(DatapipeError, ValueError):
    """Vectors differ in length, are not finite, or do not have the length that their reader expects."""


class MetricError(DatapipeError, ValueError):
    """A metric is unknown, or what it needs (labels, vectors, a teacher) is not there."""


class BudgetError(DatapipeError, ValueError):
    """A budget or a quota is out of range."""


class SelectionError(DatapipeError, ValueError):
    """A selection strategy is unknown or cannot be applied to these scores."""


class SoftLabelError(DatapipeError, ValueError):
    """Soft labels cannot be made, or are of another teacher, class order, preprocessing, tokenizer or rows."""


class StageError(DatapipeError, RuntimeError):
    """A pipeline is wired wrongly, or a stage failed on a shard; names both."""


class LockedError(DatapipeError, RuntimeError):
    """Another process is writing to this run folder."""


class IntegrityError(DatapipeError, RuntimeError):
    """A file on disk is not what its manifest says."""


class OutputError(DatapipeError, OSError):
    """The output folder cannot be written: no permission, no space, or not a folder."""


class ModelError(DatapipeError, ValueError):
    """A model cannot be loaded or used; names the model and the file at fault."""


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No model where the spec points: no such folder, no safetensors in it, or a hub id that is not cached."""


class UnsafeModelError(ModelError):
    """Weights only as pickles, or anything else that would run code of a stranger."""


class DigestError(ModelError):
    """A model's files do not have the digest that the spec states."""


class ItemError(DatapipeError, ValueError):
    """One item of a request is unusable; `index` is its place in the request."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class WorkerError(DatapipeError, RuntimeError):
    """A worker failed on a batch: the model raised, gave numbers that are not finite, or too few results."""


class OverloadedError(WorkerError):
    """A worker's queue is full; the same call may go through after `retry_after` seconds (HTTP 429)."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(WorkerError, TimeoutError):
    """The deadline of a call passed before it was done; what of it had not begun has left the queue (HTTP 504)."""


class WorkerStoppedError(WorkerError):
    """A worker is closed, draining, stuck or dead; says which, and whether it can recover (HTTP 503)."""


class MissingExtraError(DatapipeError, ImportError):
    """An optional package is not installed; the message holds the pip line."""

    @classmethod
    def of(cls, package: str, *, extra: str, purpose: str) -> MissingExtraError:
        """Say which `package` is missing, for which `purpose`, and which `extra` brings it."""
        return cls(f"{purpose} needs {package}, which is not installed: pip install 'secateur[{extra}]'")
