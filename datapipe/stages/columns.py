"""Which column of a source plays which role: as asked, or the only candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datapipe.errors import ColumnError

if TYPE_CHECKING:
    import pyarrow as pa

    from datapipe.config import CurateConfig


DEFAULT_TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Column names by role; None where a role is not filled.

    Attributes:
        text: Text to embed and to show.
        vector: Vectors that the source brings.
        label: Class labels.
        balance: Groups that each get a floor.
        image: Image files to embed and to show.
        split: Parts of the source.
        id: Unique names of the rows.
    """

    text: str | None
    vector: str | None
    label: str | None
    balance: str | None
    id: str | None
    image: str | None = None
    split: str | None = None


def resolve_columns(config: CurateConfig, schema: pa.Schema) -> Columns:
    """Find the run's columns in a source.

    Raises:
        ColumnError: A named column is absent, or no text column was named and there is not exactly one candidate; lists
            the columns there are.
    """
    for role in (
        "text_column",
        "embedding_column",
        "label_column",
        "balance",
        "id_column",
        "image_column",
        "split_column",
    ):
        name = getattr(config, role)
        if name is not None and name not in schema.names:
            raise ColumnError(f"{role} {name!r} is not in the source; its columns are {', '.join(schema.names)}")
    text = config.text_column
    if text is None and config.embedding_column is None and config.image_column is None:
        text = _only_text(schema)
    return Columns(
        text=text,
        vector=config.embedding_column,
        label=config.label_column,
        balance=config.balance,
        id=config.id_column,
        image=config.image_column,
        split=config.split_column,
    )


def text_columns(config: CurateConfig) -> tuple[str, ...]:
    """Columns that are strings whatever a file without types holds: the one named, else the one taken by default."""
    if config.text_column is not None:
        return (config.text_column,)
    if config.image_column is not None:
        return (config.image_column,)
    return (DEFAULT_TEXT,) if config.embedding_column is None else ()


def _only_text(schema: pa.Schema) -> str:
    strings = [field.name for field in schema if is_text(field.type)]
    if DEFAULT_TEXT in strings:
        return DEFAULT_TEXT
    if len(strings) == 1:
        return str(strings[0])
    found = f"several columns hold text ({', '.join(strings)})" if strings else "no column holds text"
    there = ", ".join(schema.names)
    raise ColumnError(
        f"{found}: name one with text_column, vectors with embedding_column, or images with image_column; "
        f"the columns are {there}"
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this Arrow type holds strings, dictionary-coded or not."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
