"""What a text is cut into: units with exact offsets, and which of them gives another its sense.

Units lie in order and do not overlap; between them, before the first and after the last there is white space only. So
every visible character lies in one unit, and the units with the gaps are the text. A byte order mark at its head is no
white space: it belongs to the first unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

__all__ = ["TEXT_KINDS", "UNIT_KINDS", "TextKind", "Unit", "UnitKind"]

TextKind: TypeAlias = Literal["auto", "prose", "markdown", "code", "json", "log"]
"""How a text is to be read; `auto` looks at the text."""

UnitKind: TypeAlias = Literal["sentence", "heading", "item", "table_header", "table_row", "code", "line", "value"]

TEXT_KINDS: tuple[TextKind, ...] = get_args(TextKind)
UNIT_KINDS: tuple[UnitKind, ...] = get_args(UnitKind)


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a text that is kept or cut as a whole.

    Attributes:
        start: Offset of its first character in the text, as Python counts.
        end: Offset after its last character; start < end.
        kind: What it is.
        parent: Place, in the list of units, of the unit without which this one makes no sense: the heading that it
            stands under, the sentence that leads a list in, a table's header, the signature of a block of code. Smaller
            than its own place; None if it stands for itself.
    """

    start: int
    end: int
    kind: UnitKind = "sentence"
    parent: int | None = None
