"""What JSON records hold: kinds of values at every place of an object, over all records, and the types they need.

A place of one kind has a type; integers with floats are float64. A column whose values are of kinds without a common
type is kept as JSON text, so that nothing of it is lost.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from datapipe.storage.formats.kinds import Kind, integer_kind, scalar_type
from datapipe.storage.formats.types import ordered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["ObjectShape", "depth", "fitted"]

# Plain integers: the flags are set for every value, and an IntFlag would be ten times slower.
_BOOL, _INT, _FLOAT, _TEXT = int(Kind.BOOL), int(Kind.INT), int(Kind.FLOAT), int(Kind.TEXT)
_LIST, _STRUCT = int(Kind.LIST), int(Kind.STRUCT)
_SCALARS = {str: _TEXT, float: _FLOAT, bool: _BOOL, type(None): 0}
_FLOAT_BITS = 1023


class _Shape:
    """Kinds of the values at one place."""

    __slots__ = ("element", "fields", "grow", "high", "kinds", "low")

    def __init__(self, grow: Callable[[], None]) -> None:
        self.kinds = 0
        self.low = 0
        self.high = 0
        self.element: _Shape | None = None
        self.fields: ObjectShape | None = None
        self.grow = grow

    def add(self, values: Sequence[Any]) -> None:
        kinds = set(map(type, values))
        for kind in kinds:
            flag = _SCALARS.get(kind)
            if flag is not None:
                self.kinds |= flag
                continue
            own: Sequence[Any] = values if len(kinds) == 1 else [value for value in values if type(value) is kind]
            if kind is int:
                self.kinds |= _INT
                self.low = min(self.low, *own, 0)
                self.high = max(self.high, *own, 0)
            elif kind is list:
                self.kinds |= _LIST
                self.element = self.element or _Shape(self.grow)
                self.element.add(list(chain.from_iterable(own)))
            else:
                self.kinds |= _STRUCT
                self.fields = self.fields or ObjectShape(self.grow)
                self.fields.add(own)

    def type(self) -> pa.DataType | None:
        """The type that holds all values, or None."""
        if self.kinds == _LIST:
            inner = self.element.type() if self.element is not None else pa.null()
            return None if inner is None else pa.list_(inner)
        if self.kinds == _STRUCT and self.fields is not None:
            inner = self.fields.types()
            # Parquet has no struct without fields.
            return pa.struct(list(inner.items())) if inner and None not in inner.values() else None
        kinds = Kind(self.kinds)
        if kinds & Kind.INT:
            kinds |= integer_kind(self.low, self.high)
            if max(-self.low, self.high) >= 1 << _FLOAT_BITS:
                return None
        return scalar_type(kinds)


class ObjectShape:
    """Kinds of the values under each name of objects.

    Args:
        grow: Called for each new name; raises where there are too many.
    """

    def __init__(self, grow: Callable[[], None]) -> None:
        self._grow = grow
        self._shapes: dict[str, _Shape] = {}
        self._places: dict[str, int] = {}

    def add(self, records: Sequence[dict[str, Any]]) -> None:
        """Take in objects."""
        alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for record in records:
            alike.setdefault(tuple(record), []).append(record)
        for names, group in alike.items():
            for place, name in enumerate(names):
                if name not in self._shapes:
                    self._grow()
                    self._shapes[name] = _Shape(self._grow)
                self._places[name] = max(self._places.get(name, 0), place)
                self._shapes[name].add([record[name] for record in group])

    def types(self) -> dict[str, pa.DataType | None]:
        """Type of each name, None where its values have none in common; in the common order of the objects."""
        return {name: self._shapes[name].type() for name in ordered(self._places)}


def depth(values: Sequence[Any]) -> int:
    """Levels of lists and objects in any of the values, 0 for scalars."""
    level = 0
    while not {list, dict}.isdisjoint(map(type, values)):
        level += 1
        inner = (value.values() if type(value) is dict else value for value in values if type(value) in {list, dict})
        values = list(chain.from_iterable(inner))
    return level


def fitted(value: Any, kind: Any) -> Any:
    """Return `value` as Arrow takes it for the type: integers as floats where the type is float64."""
    if value is None:
        return None
    if pa.types.is_floating(kind):
        return float(value)
    if pa.types.is_list(kind):
        return [fitted(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        inner = [kind.field(index) for index in range(kind.num_fields)]
        return {field.name: fitted(value.get(field.name), field.type) for field in inner}
    return value
