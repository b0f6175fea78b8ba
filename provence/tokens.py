"""Texts to units with their token ids, each text once for however many questions.

    text, kind or own spans -> split -> units -> tokenizer.json, unit by unit -> UnitTokens -> cache, by content

Units are tokenised one by one, so a token belongs to one unit. Needs no torch. `UnitReader.read` raises `ItemError`
for what is no text, and for spans that do not cover it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from datapipe.errors import ItemError, ModelError
from datapipe.workers.tokenizer import TextTokenizer
from provence.units import split
from provence.units.unit import TEXT_KINDS, Unit
from provence.windows import Frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Int32
    from provence.task import PruneItem
    from provence.units.unit import UnitKind

__all__ = ["CACHE_BYTES", "UnitReader", "UnitTokenizer", "UnitTokens", "check_item", "check_spans"]

CACHE_BYTES = 64 << 20
"""Memory for texts whose units and tokens are kept; a text of 1,000 characters takes some 2 KB."""

_CHUNK_CHARACTERS = 1 << 20
"""Characters that are tokenised at once: a token costs some hundred bytes until its id is taken."""

_KEEPING = 600
"""Bytes that keeping a text costs besides its arrays."""

_Key: TypeAlias = bytes


@dataclass(frozen=True, slots=True)
class UnitTokens:
    """A text in units, and their tokens.

    Attributes:
        starts: Offset of each unit's first character, int32 (units,).
        ends: Offset after its last.
        kinds: What each is.
        parents: Place of the unit that gives it its sense; -1 for none.
        ids: Token ids of all units, one after another, int32 (tokens,).
        bounds: Where each unit begins in `ids`, and where the last one ends; (units + 1,).
    """

    starts: Int32
    ends: Int32
    kinds: tuple[UnitKind, ...]
    parents: Int32
    ids: Int32
    bounds: list[int]

    @property
    def lengths(self) -> Int32:
        """Tokens of each unit, int32 (units,)."""
        return np.array([b - a for a, b in pairwise(self.bounds)], np.int32)

    @property
    def nbytes(self) -> int:
        """Memory that it holds, about."""
        return _KEEPING + self.ids.nbytes + 60 * len(self.bounds)


class UnitTokenizer(TextTokenizer):
    """A tokenizer.json for questions and units; adds no special tokens to them."""

    def frame(self) -> Frame:
        """What the tokenizer puts around a pair. Raises `ModelError` if it does not put the first text first."""
        pair = self._whole.encode("question", "text")
        places = [[place for place, of in enumerate(pair.sequence_ids) if of == which] for which in (0, 1)]
        if not all(places) or max(places[0]) > min(places[1]):
            raise ModelError(f"tokenizer.json puts no question before a text: {' '.join(pair.tokens)}")
        bounds = [0, places[0][0], places[0][-1] + 1, places[1][0], places[1][-1] + 1, len(pair)]
        prefix, _, middle, _, suffix = (np.array(pair.ids[a:b], np.int32) for a, b in pairwise(bounds))
        return Frame(prefix, middle, suffix)

    def pieces(self, texts: Sequence[str]) -> list[Int32]:
        """Token ids of each text without special tokens, int32; may be empty. Raises `UnicodeEncodeError`."""
        found: list[Int32] = []
        for chunk in _chunks(texts):
            try:
                encodings = self._whole.encode_batch_fast(chunk, add_special_tokens=False)
            except TypeError:
                for text in chunk:
                    text.encode()  # half a surrogate pair
                raise
            counts = [len(encoding) for encoding in encodings]
            flat = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=sum(counts))
            found += [flat[a:b] for a, b in pairwise(accumulate(counts, initial=0))]
        return found


class UnitReader:
    """Texts to units and tokens; several threads may use one.

    Args:
        tokenizer: Of the model.
        spaced: Whether a unit is tokenised with a space before it, but for the first of a text.
        trailing: Whether it is instead tokenised with the white space that follows it.
        cache_bytes: Memory for texts seen before; 0 keeps none.
    """

    def __init__(
        self, tokenizer: UnitTokenizer, *, spaced: bool, trailing: bool = False, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._tokenizer, self._spaced, self._trailing = tokenizer, spaced, trailing
        self._cache = _Cache(cache_bytes)

    def read(self, items: Sequence[PruneItem], *, first: int = 0) -> list[UnitTokens]:
        """Units and tokens of each item's text; a text that stands in several items is read once.

        Raises:
            ItemError: A text is none, its kind is unknown, or its spans do not cover it; its index is counted from
                `first`.
        """
        keys = [self._key(item, index) for index, item in enumerate(items, first)]
        found: dict[_Key, UnitTokens] = {}
        fresh: dict[_Key, int] = {}
        for place, key in enumerate(keys):
            if key not in found and key not in fresh:
                kept = self._cache.get(key)
                if kept is None:
                    fresh[key] = place
                else:
                    found[key] = kept
        units = {key: units_of(items[place], first + place) for key, place in fresh.items()}
        texts = [text for key, place in fresh.items() for text in self._dressed(items[place], units[key])]
        ids = iter(self._ids(texts, fresh, units, first))
        for key in fresh:
            found[key] = _put_together(units[key], [next(ids) for _ in units[key]])
            self._cache.put(key, found[key])
        return [found[key] for key in keys]

    def _ids(
        self, texts: Sequence[str], fresh: dict[_Key, int], units: dict[_Key, list[Unit]], first: int
    ) -> list[Int32]:
        try:
            return self._tokenizer.pieces(texts)
        except UnicodeEncodeError as error:
            owners = (place for key, place in fresh.items() for _ in units[key])
            index = first + next(place for place, text in zip(owners, texts, strict=True) if not _is_unicode(text))
            raise ItemError(f"item {index} holds half a surrogate pair, which is no text", index=index) from error

    def _dressed(self, item: PruneItem, units: Sequence[Unit]) -> list[str]:
        """The units' texts as the tokenizer is to see them; a title before them is what comes first."""
        if self._trailing:
            return [item.text[start:end] for start, end in pairwise([*(unit.start for unit in units), len(item.text)])]
        follows = " " if self._spaced else ""
        texts = [follows + item.text[unit.start : unit.end] for unit in units]
        if texts and self._spaced and not item.title:
            texts[0] = texts[0][1:]
        return texts

    def _key(self, item: PruneItem, index: int) -> _Key:
        """Digest of what units and tokens depend on."""
        check_item(item, index)
        own = () if item.starts is None or item.ends is None else (item.starts, item.ends)
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{item.kind}\0{bool(item.title)}\0{[len(offsets) for offsets in own]}\0".encode())
        for offsets in own:
            digest.update(np.asarray(offsets, np.int64).tobytes())
        digest.update(item.text.encode("utf-8", "surrogatepass"))
        return digest.digest()


class _Cache:
    """What was used last stays, up to so many bytes; safe to share between threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._kept: OrderedDict[_Key, UnitTokens] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: _Key) -> UnitTokens | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def put(self, key: _Key, value: UnitTokens) -> None:
        if value.nbytes > self._most_bytes:
            return
        with self._lock:
            if key in self._kept:
                return
            self._kept[key] = value
            self._bytes += value.nbytes
            while self._bytes > self._most_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes


def check_item(item: PruneItem, index: int) -> None:
    """Raise `ItemError` unless the text is one, its kind is known, and its spans, if it has any, are whole numbers."""
    if not isinstance(item.text, str):
        raise ItemError(f"the text of item {index} must be text. Got {type(item.text).__name__}", index=index)
    if item.kind not in TEXT_KINDS:
        message = f"the kind of item {index} must be one of {', '.join(TEXT_KINDS)}. Got {item.kind!r}"
        raise ItemError(message, index=index)
    if (item.starts is None) != (item.ends is None):
        raise ItemError(f"item {index} has starts without ends, or ends without starts", index=index)
    for offsets in (item.starts, item.ends):
        found = np.asarray([] if offsets is None else offsets)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
            raise ItemError(f"starts and ends of item {index} must be lists of whole numbers", index=index)


def units_of(item: PruneItem, index: int) -> list[Unit]:
    """The units of a checked item's text: the caller's own, or what it is split into.

    Raises:
        ItemError: Its spans do not cover its text.
    """
    if item.starts is not None and item.ends is not None:
        check_spans(item.text, item.starts, item.ends, index=index)
        return [Unit(int(start), int(end)) for start, end in zip(item.starts, item.ends, strict=True)]
    return split(item.text, kind=item.kind)


def check_spans(text: str, starts: Sequence[int] | Int32, ends: Sequence[int] | Int32, *, index: int) -> None:
    """Raise `ItemError` unless the spans lie in order, do not overlap, and leave out white space only."""
    if len(starts) != len(ends):
        raise ItemError(f"item {index} has {len(starts)} starts, but {len(ends)} ends", index=index)
    done = 0
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if not done <= start < end <= len(text):
            raise ItemError(
                f"span {place} of item {index} must begin at {done} or later and end after that, within the "
                f"{len(text)} characters of the text. Got {start} to {end}",
                index=index,
            )
        _refuse_visible(text, done, start, index)
        done = end
    _refuse_visible(text, done, len(text), index)


def _refuse_visible(text: str, start: int, end: int, index: int) -> None:
    between = text[start:end]
    if between and not between.isspace():
        raise ItemError(
            f"the spans of item {index} leave out characters {start} to {end}, {between.strip()[:40]!r}; every visible "
            "character must lie in one",
            index=index,
        )


def _put_together(units: Sequence[Unit], ids: Sequence[Int32]) -> UnitTokens:
    return UnitTokens(
        starts=_fixed([unit.start for unit in units]),
        ends=_fixed([unit.end for unit in units]),
        kinds=tuple(unit.kind for unit in units),
        parents=_fixed([-1 if unit.parent is None else unit.parent for unit in units]),
        ids=np.concatenate(ids) if ids else np.empty(0, np.int32),
        bounds=list(accumulate(map(len, ids), initial=0)),
    )


def _fixed(values: Sequence[int]) -> Int32:
    """An array that nobody can change: callers are given those that the cache keeps."""
    found = np.array(values, np.int32)
    found.flags.writeable = False
    return found


def _chunks(texts: Sequence[str]) -> list[list[str]]:
    """Texts in order, in lists of about `_CHUNK_CHARACTERS`."""
    chunks: list[list[str]] = []
    characters = _CHUNK_CHARACTERS
    for text in texts:
        if characters >= _CHUNK_CHARACTERS:
            chunks.append([])
            characters = 0
        chunks[-1].append(text)
        characters += len(text)
    return chunks


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
