"""One way to damage a model, from a folder or hub id and a file of texts.

    MODEL, --blocks | --width | --bits, texts -> `datapipe.paser.damage` -> OUT

Raises `ConfigError`, `SourceError`, `ColumnError` and `ModelError`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from datapipe.errors import ColumnError, ConfigError, SourceError
from datapipe.paser.damage import Damage, drop_blocks, narrow, round_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.storage.source import Source
    from datapipe.workers.folder import ModelFolder

__all__ = ["damage"]

_TEXT = "text"


def damage(  # noqa: PLR0913 - kinds of damage exclude each other, and each has its own number
    model: str,
    out: str | Path,
    *,
    blocks: int | None = None,
    width: float | None = None,
    bits: int | None = None,
    group: int = 64,
    texts: str | None = None,
    text_column: str | None = None,
    rows: int = 128,
    device: str = "auto",
) -> Damage:
    """Write a damaged copy of a model.

    Args:
        model: A folder or a cached hub id.
        out: Folder to be made.
        blocks: Blocks that stay. Excludes `width` and `bits`.
        width: Part of the neurons of each feed-forward layer that stays. Excludes `blocks` and `bits`.
        bits: Bits of a weight. Excludes `blocks` and `width`.
        group: Neighbouring inputs that share a scale, >= 2; for `bits`.
        texts: What blocks and neurons are measured on: rows with a text, or instructions, which are read as the model's
            chat template has them.
        text_column: Of the texts; None takes `text`, else looks for instructions.
        rows: Of the texts that are read, >= 1.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: Not one of the three was asked for, it is out of range, texts are missing, or `out` exists.
        SourceError: The texts hold nothing that can be read.
        ColumnError: The texts have no such column.
        ModelError: The model is of another kind, or cannot be loaded.
    """
    from datapipe.workers.device import resolve_device
    from datapipe.workers.folder import resolve
    from datapipe.workers.spec import ModelSpec

    asked = {"blocks": blocks, "width": width, "bits": bits}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(f"damage is one of blocks, width and bits; got {' and '.join(given) or 'none of them'}")
    if bits is None and texts is None:
        raise ConfigError(f"{given[0]} is measured on texts: name a file of them")
    if rows < 1:
        raise ConfigError(f"rows must be 1 or more; got {rows}")
    folder, to = resolve(ModelSpec("model", model, task="causal")), Path(out)
    if bits is not None:
        return round_weights(folder.root, to, bits=bits, group=group)
    where = resolve_device(device)
    read = list(itertools.islice(_texts(str(texts), text_column, folder), rows))
    if not read:
        raise SourceError(f"{texts} holds no text to measure on")
    if blocks is not None:
        return drop_blocks(folder.root, to, keep=blocks, texts=read, device=str(where))
    return narrow(folder.root, to, keep=float(width or 0.0), texts=read, device=str(where))


def _texts(source: str, column: str | None, folder: ModelFolder) -> Iterator[str]:
    from datapipe.storage.source import open_source

    opened = open_source(source)
    name = column or (_TEXT if _TEXT in opened.schema.names else None)
    if name is None:
        return _instructions(opened, folder)
    if name not in opened.schema.names:
        raise ColumnError(f"text column {name!r} is not in {source}; its columns are {', '.join(opened.schema.names)}")
    return _column(opened, name)


def _column(opened: Source, name: str) -> Iterator[str]:
    for batch in opened.batches([name]):
        for text in batch.table[name].to_pylist():
            if isinstance(text, str) and text:
                yield text


def _instructions(opened: Source, folder: ModelFolder) -> Iterator[str]:
    from datapipe.paser.recovery import rendered
    from datapipe.storage.instructions import columns_of, read_pairs

    roles = columns_of(opened.schema.names)
    for batch in opened.batches():
        pairs, _ = read_pairs(batch.table, roles, max_chars=1 << 20)
        for prompt, answer in zip(*rendered(pairs, folder), strict=True):
            yield prompt + answer
