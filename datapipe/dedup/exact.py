"""Rows whose texts are the same once case, spacing and closing punctuation are forgotten.

texts -> normalise_text -> text_keys (blake2b-128) -> exact_duplicates (external sort by key, then by row id).

Two rows are duplicates when their keys are equal; of each such group the row with the lowest row id stays. So the
answer depends on the set of rows alone: not on their order, their cut into shards, or the memory there was.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ColumnError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa

    from datapipe.storage.arrays import Bool, Ids

__all__ = ["exact_duplicates", "normalise_text", "text_keys"]

QUOTES = "\"'`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f"
LEADING = QUOTES + "\u00a1\u00bf"
"""Taken off the front: quotation marks and the inverted marks of Spanish. Signs and dots there have a meaning."""
TRAILING = QUOTES + ".,;:!?\u3001\u3002\u060c\u061b\u061f\u06d4\u0964\u0965"
"""Taken off the end: quotation marks and what closes a sentence or clause. Brackets stay: `:)` is not `:(`."""
INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")
"""Soft hyphen, zero-width space, word joiner and byte-order mark; the joiners that shape Indic and emoji text stay."""


def normalise_text(text: str) -> str:
    """Return the form under which two texts are the same text.

    In this order: NFKC (so that full-width forms, ligatures and the ellipsis become plain letters and dots); invisible
    characters out; case folding and NFKC again (folding can leave decomposed letters); every run of white space to one
    space, none at the ends; quotation marks and the inverted marks of Spanish off the front; quotation marks and
    `. , ; : ! ?` with their CJK, Arabic and Devanagari kin off the end. A text of nothing else keeps what it has, so
    `"..."` is not `"?!"` and neither is the empty text. Digits, signs, brackets and marks inside the text stay: `C#` is
    not `C`, `-5` is not `5`, `:)` is not `:(`.
    """
    folded = unicodedata.normalize("NFKC", text)
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", INVISIBLE.sub("", folded).casefold())
    collapsed = " ".join(folded.casefold().split())
    return collapsed.lstrip(LEADING + " ").rstrip(TRAILING + " ") or collapsed


def text_keys(texts: pa.Array | pa.ChunkedArray | list[str]) -> Ids:
    """Return the blake2b-128 digest of each normalised text, uint64 (rows, 2) as big-endian words; O(characters).

    Raises:
        ColumnError: A text is null or not a string; names the first such row.
    """
    values: Iterable[object] = texts if isinstance(texts, list) else texts.to_pylist()
    digests = bytearray()
    for row, text in enumerate(values):
        if not isinstance(text, str):
            kind = "null" if text is None else f"of type {type(text).__name__}"
            raise ColumnError(f"a text key needs a string, but row {row} is {kind}; reject such rows first")
        # A lone surrogate cannot be UTF-8; its three-byte form is as good a name for it.
        encoded = normalise_text(text).encode("utf-8", "surrogatepass")
        digests += hashlib.blake2b(encoded, digest_size=16).digest()
    return np.frombuffer(bytes(digests), dtype=">u8").astype(np.uint64).reshape(-1, 2)


def exact_duplicates(batches: Iterable[tuple[Ids, Ids]], scratch: Path) -> Iterator[tuple[Ids, Ids]]:
    """Find every row whose key another row with a lower id has.

    Out of core: two external sorts (by key, then by row id) hold the pairs on disk under `scratch`, 32 bytes a row and
    as many a duplicate; memory is the sorters' budget plus one range of rows.

    Args:
        batches: (row ids, keys), uint64 (rows, 2) each, in any order and any cut; a row id comes once.
        scratch: Folder for the sorters; they leave nothing behind.

    Yields:
        (row ids, ids of the rows kept instead), uint64 (pairs, 2) each; the first ascends over all batches.
    """
    import pyarrow as pa

    from datapipe.storage.rowid import ids_from_arrow, ids_to_arrow
    from datapipe.storage.sort import ExternalSorter

    with ExternalSorter(scratch / "duplicates") as pairs:
        with ExternalSorter(scratch / "keys") as by_key:
            for ids, keys in batches:
                columns = {"row_id": ids_to_arrow(ids), "key": ids_to_arrow(keys)}
                by_key.add(keys[:, 0], keys[:, 1], pa.table(columns))
            # A range is cut between two values of `hi`, so a group of equal keys never lies in two tables.
            for table in by_key.sorted_tables():
                again, kept = _later_of_equal(ids_from_arrow(table["row_id"]), ids_from_arrow(table["key"]))
                columns = {"row_id": ids_to_arrow(again), "kept": ids_to_arrow(kept)}
                pairs.add(again[:, 0], again[:, 1], pa.table(columns))
        for table in pairs.sorted_tables():
            if table.num_rows:
                yield ids_from_arrow(table["row_id"]), ids_from_arrow(table["kept"])


def _later_of_equal(ids: Ids, keys: Ids) -> tuple[Ids, Ids]:
    """Return, for rows sorted by key, every row but the lowest of its key, and beside it that lowest row."""
    order = np.lexsort((ids[:, 1], ids[:, 0], keys[:, 1], keys[:, 0]))
    ids, keys = ids[order], keys[order]
    first: Bool = np.ones(len(ids), dtype=np.bool_)
    first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    kept = ids[np.flatnonzero(first)[np.cumsum(first) - 1]] if len(ids) else ids
    return ids[~first], kept[~first]
