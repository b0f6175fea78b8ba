"""Texts as tests look at them: each unit's own text, kind and parent's text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from provence.units import split

if TYPE_CHECKING:
    from provence.units import TextKind


def texts(text: str, kind: TextKind = "prose") -> list[str]:
    return [text[unit.start : unit.end] for unit in split(text, kind=kind)]


def read(text: str, kind: TextKind) -> list[tuple[str, str, str | None]]:
    """(kind, text, text of the parent) of every unit."""
    units = split(text, kind=kind)
    own = [text[unit.start : unit.end] for unit in units]
    return [
        (unit.kind, told, None if unit.parent is None else own[unit.parent])
        for unit, told in zip(units, own, strict=True)
    ]


def parents(text: str, kind: TextKind) -> dict[str, str | None]:
    return {told: parent for _, told, parent in read(text, kind)}
