"""One schema for all files of a source, and the cast of a batch to it.

The result depends on the set of types that a column has, never on the order or number of files. Ways of storing leave
no trace: dictionaries, views, large offsets and extensions become the plain type of their values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from datapipe.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["conform", "ordered", "plain_schema", "unify"]

_SIGNED = {8: pa.int8(), 16: pa.int16(), 32: pa.int32(), 64: pa.int64()}
_UNSIGNED = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32(), 64: pa.uint64()}
_FLOATS = {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}
_PLAIN = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}
_UNITS = ("s", "ms", "us", "ns")
_WORD_BITS = 64
_DECIMAL_DIGITS = (38, 76)
_STORAGE_KEYS = (b"PARQUET:", b"_PL_", b"ARROW:")


def plain_schema(schema: pa.Schema, *, uri: str) -> pa.Schema:
    """Return the schema without ways of storing; field metadata stays (it says what a vector is), schema metadata goes.

    Raises:
        SourceError: Two columns share a name, or a column has a type that no row can hold on to; names the column.
    """
    seen: set[str] = set()
    fields = []
    for field in schema:
        if field.name in seen:
            raise SourceError(f"{uri}: two columns are called {field.name!r}; rename one of them")
        seen.add(field.name)
        kept = {key: value for key, value in (field.metadata or {}).items() if not key.startswith(_STORAGE_KEYS)}
        try:
            fields.append(pa.field(field.name, _plain(field.type), metadata=kept or None))
        except TypeError:
            raise SourceError(f"{uri}: column {field.name!r} is of type {field.type}, which cannot be read") from None
    return pa.schema(fields)


def unify(schemas: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """Unite the schemas of all files: columns of each, of the narrowest type that holds every file's values.

    Integers widen; integers with floats become float64; null gives way; struct fields are united. A column's metadata
    stays where all files agree on it.

    Args:
        schemas: (uri, schema as `plain_schema` returns it) of each file.

    Raises:
        SourceError: Files hold types of one column that have none in common; names the column, two files and types.
    """
    places: dict[str, int] = {}
    kinds: dict[str, dict[pa.DataType, str]] = {}
    notes: dict[str, dict[tuple[tuple[bytes, bytes], ...], None]] = {}
    for uri, schema in schemas:
        for place, field in enumerate(schema):
            places[field.name] = max(places.get(field.name, 0), place)
            kinds.setdefault(field.name, {}).setdefault(field.type, uri)
            notes.setdefault(field.name, {}).setdefault(tuple(sorted((field.metadata or {}).items())))
    united = []
    for name in ordered(places):
        kind = _unite(kinds[name])
        if kind is None:
            raise SourceError(_conflict(name, list(kinds[name].items())))
        agreed = dict(next(iter(notes[name]))) if len(notes[name]) == 1 else None
        united.append(pa.field(name, kind, metadata=agreed or None))
    return pa.schema(united)


def ordered(places: dict[str, int]) -> list[str]:
    """Names by the last place at which each was seen, ties by name: the order of records that leave fields out."""
    return sorted(places, key=lambda name: (places[name], name))


def conform(batch: pa.RecordBatch, schema: pa.Schema, *, uri: str) -> pa.Table:
    """Return the columns of `schema` from `batch`, cast; a column that the batch lacks is null.

    Raises:
        SourceError: A value does not survive the cast; names the column.
    """
    names = set(batch.schema.names)
    columns = []
    for field in schema:
        if field.name not in names:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else _cast(column, field.type))
        except pa.ArrowInvalid as error:
            raise SourceError(f"{uri}: column {field.name!r} cannot be read as {field.type}: {error}") from error
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if _has_coded_views(column.type):
        column = _uncoded_views(column)
    # Integers above 2^53 lose digits as float64, which is what a column of integers and floats means.
    return pc.cast(column, options=pc.CastOptions(target_type=kind, allow_float_truncate=True))


def _has_coded_views(kind: Any) -> bool:
    """Whether there are dictionaries of views in the type, which Arrow cannot decode."""
    if pt.is_dictionary(kind):
        return bool(pt.is_string_view(kind.value_type) or pt.is_binary_view(kind.value_type))
    return any(_has_coded_views(kind.field(index).type) for index in range(kind.num_fields))


def _uncoded_views(array: Any) -> Any:
    """The same values with dictionaries of plain strings."""
    kind = array.type
    if not _has_coded_views(kind):
        return array
    if pt.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(_plain(kind.value_type)))
    nulls = pc.is_null(array)
    if pt.is_struct(kind):
        children = [_uncoded_views(array.field(index)) for index in range(kind.num_fields)]
        fields = [pa.field(kind.field(index).name, child.type) for index, child in enumerate(children)]
        return pa.StructArray.from_arrays(children, fields=fields, mask=nulls)
    if pt.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        return pa.FixedSizeListArray.from_arrays(_uncoded_views(values), kind.list_size, mask=nulls)
    offsets = pa.array(array.offsets.to_numpy())
    return type(array).from_arrays(offsets, _uncoded_views(array.values), mask=nulls)


def _plain(kind: Any) -> pa.DataType:
    """Strip ways of storing; TypeError where the type cannot be held."""
    if isinstance(kind, pa.BaseExtensionType) or pt.is_dictionary(kind):
        return _plain(kind.value_type if pt.is_dictionary(kind) else kind.storage_type)
    if pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pt.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    if pt.is_struct(kind):
        return pa.struct([(kind.field(index).name, _plain(kind.field(index).type)) for index in range(kind.num_fields)])
    if pt.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pt.is_nested(kind) or pt.is_run_end_encoded(kind) or pt.is_interval(kind):
        raise TypeError
    return _PLAIN.get(kind, kind)


def _unite(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """Narrowest type that holds the values of all; None if there is none."""
    some = list(dict.fromkeys(kind for kind in kinds if not pt.is_null(kind)))
    if len(some) <= 1:
        return some[0] if some else pa.null()
    rules: tuple[tuple[Callable[[pa.DataType], bool], Callable[[list[Any]], pa.DataType | None]], ...] = (
        (_is_number, _unite_numbers),
        (_is_listed, _unite_lists),
        (pt.is_struct, _unite_structs),
        (pt.is_timestamp, _unite_timestamps),
        (pt.is_decimal, _unite_decimals),
        (_is_binary, lambda _: pa.binary()),
    )
    for applies, rule in rules:
        if all(applies(kind) for kind in some):
            return rule(some)
    return None


def _unite_numbers(kinds: list[Any]) -> pa.DataType | None:
    if not all(pt.is_integer(kind) for kind in kinds):
        floats = [kind.bit_width for kind in kinds if pt.is_floating(kind)]
        return _FLOATS[max(floats)] if len(floats) == len(kinds) else pa.float64()
    signed = max((kind.bit_width for kind in kinds if pt.is_signed_integer(kind)), default=0)
    unsigned = max((kind.bit_width for kind in kinds if pt.is_unsigned_integer(kind)), default=0)
    if not signed:
        return _UNSIGNED[unsigned]
    bits = max(signed, 2 * unsigned)
    return _SIGNED[bits] if bits <= _WORD_BITS else None


def _unite_lists(kinds: list[Any]) -> pa.DataType | None:
    inner = _unite(kind.value_type for kind in kinds)
    if inner is None:
        return None
    sizes = {kind.list_size if pt.is_fixed_size_list(kind) else None for kind in kinds}
    size = sizes.pop() if len(sizes) == 1 else None
    return pa.list_(inner) if size is None else pa.list_(inner, size)


def _unite_structs(kinds: list[Any]) -> pa.DataType | None:
    places: dict[str, int] = {}
    inner: dict[str, list[pa.DataType]] = {}
    for kind in kinds:
        for place in range(kind.num_fields):
            field = kind.field(place)
            places[field.name] = max(places.get(field.name, 0), place)
            inner.setdefault(field.name, []).append(field.type)
    united = [(name, _unite(inner[name])) for name in ordered(places)]
    return None if any(kind is None for _, kind in united) else pa.struct(united)


def _unite_timestamps(kinds: list[Any]) -> pa.DataType | None:
    if len({kind.tz for kind in kinds}) > 1:
        return None
    return pa.timestamp(max((kind.unit for kind in kinds), key=_UNITS.index), tz=kinds[0].tz)


def _unite_decimals(kinds: list[Any]) -> pa.DataType | None:
    scale = max(kind.scale for kind in kinds)
    digits = max(kind.precision - kind.scale for kind in kinds) + scale
    if digits > _DECIMAL_DIGITS[1]:
        return None
    return pa.decimal128(digits, scale) if digits <= _DECIMAL_DIGITS[0] else pa.decimal256(digits, scale)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind))


def _is_listed(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_fixed_size_list(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_fixed_size_binary(kind))


def _conflict(name: str, found: list[tuple[pa.DataType, str]]) -> str:
    """Name two files whose types of a column have none in common, or all of them where it takes three."""
    for kind, uri in found[1:]:
        if _unite([found[0][0], kind]) is None:
            found = [found[0], (kind, uri)]
            break
    kinds = " and ".join(f"{kind} in {uri}" for kind, uri in found)
    return f"column {name!r} is {kinds}: no type holds both; write it as one type in all files"
