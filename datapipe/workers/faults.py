"""Errors of this package as plain values, so that they cross processes and come out as what they were.

    ItemError("item 3 …", index=3) -> to_plain -> {"kind", "message", "notes", "fields"} -> from_plain -> ItemError

An exception of another package goes as the `WorkerError` that it is for the caller; no pickle is written or read.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any, cast

from datapipe.errors import DatapipeError, ItemError, WorkerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["RemoteTracebackError", "from_plain", "shifted", "to_plain"]


class RemoteTracebackError(Exception):
    """Where in the other process an error was raised; the cause of the error that was made from it."""

    def __str__(self) -> str:
        return f"in another process:\n{self.args[0]}"


def to_plain(error: BaseException) -> dict[str, Any]:
    """Describe an error by JSON values: kind, message, notes, fields such as `index`, and its traceback as text."""
    known = isinstance(error, DatapipeError)
    message = str(error) if known else f"{type(error).__name__}: {error}"
    return {
        "kind": f"{type(error).__module__}:{type(error).__qualname__}" if known else _name(WorkerError),
        "message": message,
        "notes": list(getattr(error, "__notes__", [])),
        "fields": {name: value for name, value in vars(error).items() if isinstance(value, (int, float, str))},
        "traceback": "".join(traceback.format_exception(error)),
    }


def from_plain(described: Mapping[str, Any]) -> DatapipeError:
    """Make the error again, its traceback as the cause.

    An error takes its message and, by keyword, its fields. One of a class that this process has not loaded becomes a
    `WorkerError`.
    """
    kind = _find(described["kind"])
    make = cast("Callable[..., DatapipeError]", kind)
    try:
        error = make(described["message"], **described["fields"])
    except TypeError:
        error = make(described["message"])
    for note in described["notes"]:
        error.add_note(note)
    error.__cause__ = RemoteTracebackError(described["traceback"])
    return error


def shifted(error: ItemError, by: int) -> ItemError:
    """The same error, for a request of which what failed was the part that begins at item `by`."""
    there = error.index + by
    moved = ItemError(str(error).replace(f"item {error.index}", f"item {there}", 1), index=there)
    moved.__cause__ = error.__cause__
    return moved


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _find(name: str) -> type[DatapipeError]:
    """The class of that name; only among modules that are loaded, since what comes from outside loads nothing."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    known = isinstance(found, type) and issubclass(found, DatapipeError)
    return cast("type[DatapipeError]", found) if known else WorkerError
