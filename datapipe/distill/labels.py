"""Whether a teacher's classes are the run's: their number, names and order.

    teacher's names, run's names, map of one to the other -> place of each of the run's classes among the teacher's

The order of the classes is silent in every file of logits, so nothing is guessed: names must be the run's, in whatever
order, or a map must say which is which. Raises `SoftLabelError` with both lists, `ConfigError` for a map that is none.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from datapipe.errors import ConfigError, SoftLabelError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Int64

__all__ = ["LabelMap", "class_places", "read_label_map"]

LabelMap: TypeAlias = "Mapping[str, str] | Sequence[str]"
"""The run's class of each of the teacher's, by the teacher's name or in the order of its logits."""

_SHOWN = 8


def class_places(
    teacher: str,
    found: Sequence[str] | None,
    wanted: Sequence[str],
    *,
    count: int,
    mapping: LabelMap | None = None,
) -> Int64:
    """Return where each of the run's classes stands among the teacher's, int64 (classes,).

    Args:
        teacher: Its name, for messages.
        found: Names of its classes in the order of its logits; None where it tells none.
        wanted: Names of the run's classes.
        count: Logits that it gives.
        mapping: Which of the run's classes each of the teacher's is; None where the names are the same.

    Raises:
        SoftLabelError: The classes are not the same; says both lists and what to do.
    """
    names = _renamed(teacher, found, count, mapping)
    place = {name: at for at, name in enumerate(names)}
    if len(place) == len(names) == len(wanted) and place.keys() == set(wanted):
        return np.array([place[name] for name in wanted], np.int64)
    missing = [name for name in wanted if name not in place]
    strange = [name for name in names if name not in set(wanted)]
    told = "" if not missing else f"; it has no {_few(missing)}"
    told += "" if not strange else f"; the run has no {_few(strange)}"
    raise SoftLabelError(
        f"teacher {teacher} has {count} classes, {_few(names)}, and the run {len(wanted)}, {_few(wanted)}{told}. Say "
        "which is which with a label map (--label-map FILE: {teacher's name: run's label}, or the run's labels as a "
        "list in the order of the teacher's logits), or take a teacher of these classes"
    )


def read_label_map(path: str | os.PathLike[str] | Path) -> LabelMap:
    """Read a map of labels: JSON, an object from the teacher's names to the run's labels, or a list of the latter.

    Raises:
        ConfigError: The file cannot be read or holds something else.
    """
    from pathlib import Path

    try:
        body = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the label map {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"the label map {path} is not JSON: {error}") from error
    if isinstance(body, list) and all(isinstance(each, str) for each in body):
        return body
    if isinstance(body, dict) and all(isinstance(each, str) for each in body.values()):
        return body
    raise ConfigError(
        f"the label map {path} must be an object of strings, or a list of strings. Got {type(body).__name__}"
    )


def _renamed(teacher: str, found: Sequence[str] | None, count: int, mapping: LabelMap | None) -> list[str]:
    if mapping is None:
        return list(found) if found is not None else [str(at) for at in range(count)]
    if not isinstance(mapping, dict):
        if len(mapping) != count:
            raise SoftLabelError(
                f"the label map names {len(mapping)} classes, {_few(list(mapping))}, and teacher {teacher} has {count}"
            )
        return list(mapping)
    if found is None:
        raise SoftLabelError(
            f"teacher {teacher} tells no names of its classes: give the label map as a list in the order of its logits"
        )
    absent = [name for name in found if name not in mapping]
    if absent:
        raise SoftLabelError(
            f"the label map lacks {_few(absent)} of teacher {teacher}'s {len(found)} classes; it has "
            f"{_few(list(mapping))}"
        )
    return [mapping[name] for name in found]


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"[{shown}, … {len(names) - _SHOWN} more]" if len(names) > _SHOWN else f"[{shown}]"
