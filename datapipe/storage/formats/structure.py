"""Whether a record batch that came from outside is sound, before anything follows its offsets and indices."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from datapipe.errors import SourceError

__all__ = ["check_structure"]

_TEXT_AS_BYTES = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def check_structure(batch: pa.RecordBatch, *, uri: str) -> None:
    """Refuse a batch that points outside itself. Text that is not UTF-8 passes: that is a matter of single rows.

    Raises:
        SourceError: An offset or index points outside its buffer or dictionary, or a length is wrong.
    """
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise SourceError(f"{uri} is damaged: {error}") from error
        for column in batch.columns:
            column.view(_without_text(column.type)).validate(full=True)


def _without_text(kind: Any) -> pa.DataType:
    """The same layout with bytes in place of strings."""
    if pt.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _without_text(kind.value_type), ordered=kind.ordered)
    if pt.is_struct(kind):
        inner = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([pa.field(field.name, _without_text(field.type), field.nullable) for field in inner])
    if pt.is_list(kind):
        return pa.list_(_without_text(kind.value_type))
    if pt.is_large_list(kind):
        return pa.large_list(_without_text(kind.value_type))
    if pt.is_fixed_size_list(kind):
        return pa.list_(_without_text(kind.value_type), kind.list_size)
    return _TEXT_AS_BYTES.get(kind, kind)
