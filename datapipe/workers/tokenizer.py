"""Texts to token ids, as the model's own tokenizer.json says, without padding, and truncated only by us.

texts -> TextTokenizer.encode -> Tokens (ids for the model, count before truncation)
"""

from __future__ import annotations

import math
from itertools import accumulate, chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from datapipe.errors import ItemError, ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenizers import Encoding

    from datapipe.storage.arrays import Int32
    from datapipe.workers.folder import ModelFolder

__all__ = ["TextTokenizer", "Tokens"]

_CHUNK_CHARACTERS = 1 << 21
"""Characters that are tokenised at once: a token costs some hundred bytes until its id is taken."""


class Tokens(NamedTuple):
    """A text ready for the model.

    Attributes:
        ids: Token ids with the special tokens, int32 (length,), after truncation.
        total: Tokens before truncation, special tokens included.
    """

    ids: Int32
    total: int

    @property
    def length(self) -> int:
        """Tokens that the model sees."""
        return len(self.ids)

    @property
    def truncated(self) -> bool:
        """Whether the model sees less than the whole text."""
        return self.total > len(self.ids)


class TextTokenizer:
    """A tokenizer.json, with its own padding and truncation switched off.

    Args:
        folder: Where tokenizer.json lies.
        max_length: Tokens that a text is cut to, special tokens included; None never cuts.
        lower: Whether texts are lower-cased first.
        prefix: Put before every text.

    Raises:
        ModelNotFoundError: There is no tokenizer.json.
        ModelError: It is damaged.
    """

    def __init__(
        self, folder: ModelFolder, *, max_length: int | None = None, lower: bool = False, prefix: str = ""
    ) -> None:
        from tokenizers import Tokenizer

        path = folder.path("tokenizer.json")
        if not path.is_file():
            raise ModelNotFoundError(
                f"model {folder.name}: {folder.root} has no tokenizer.json; write one with "
                f"AutoTokenizer.from_pretrained({str(folder.root)!r}).save_pretrained(NEW_FOLDER)"
            )
        content = path.read_text(encoding="utf-8")
        try:
            self._whole, self._cutting = Tokenizer.from_str(content), Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises plain Exception
            raise ModelError(f"model {folder.name}: {path} is no tokenizer ({error})") from error
        self._whole.no_padding()
        self._whole.no_truncation()
        self._cutting.no_padding()
        if max_length is not None:
            self._cutting.enable_truncation(max_length)
        self._limit = math.inf if max_length is None else max_length
        self._lower, self._prefix = lower, prefix

    @property
    def vocabulary(self) -> int:
        """Highest token id, plus one."""
        return max(self._whole.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, texts: Sequence[str], *, first: int = 0) -> list[Tokens]:
        """Token ids of each text.

        Raises:
            ItemError: Something is not text, holds half a surrogate pair, or has no tokens; its index is counted from
                `first`.
        """
        result: list[Tokens] = []
        for start, encodings in self._encoded(texts, first=first):
            counts = [len(encoding) for encoding in encodings]
            flat = np.fromiter(chain.from_iterable(e.ids for e in encodings), dtype=np.int32, count=sum(counts))
            ends = accumulate(counts)
            result.extend(Tokens(flat[end - count : end], count) for end, count in zip(ends, counts, strict=True))
            if 0 in counts:
                place = start + counts.index(0)
                raise ItemError(f"item {first + place} has no tokens", index=first + place)
            long = [place for place in range(start, len(result)) if result[place].total > self._limit]
            for place, cut in zip(
                long, self._cutting.encode_batch_fast([self._dressed(texts[place]) for place in long]), strict=True
            ):
                result[place] = Tokens(np.array(cut.ids, dtype=np.int32), result[place].total)
        return result

    def count(self, texts: Sequence[str]) -> Int32:
        """Tokens of each text before truncation, special tokens included, int32 (texts,). Raises `ItemError`."""
        counts = np.empty(len(texts), dtype=np.int32)
        for start, encodings in self._encoded(texts, first=0):
            counts[start : start + len(encodings)] = [len(encoding) for encoding in encodings]
        return counts

    def _dressed(self, text: str) -> str:
        return self._prefix + (text.lower() if self._lower else text)

    def _encoded(self, texts: Sequence[str], *, first: int) -> Iterator[tuple[int, list[Encoding]]]:
        start = characters = 0
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise ItemError(f"item {first + place} must be text. Got {type(text).__name__}", index=first + place)
            if place > start and characters + len(text) > _CHUNK_CHARACTERS:
                yield start, self._batch(texts[start:place], first=first + start)
                start, characters = place, 0
            characters += len(text)
        if start < len(texts):
            yield start, self._batch(texts[start:], first=first + start)

    def _batch(self, texts: Sequence[str], *, first: int) -> list[Encoding]:
        dressed = [self._dressed(text) for text in texts] if self._lower or self._prefix else list(texts)
        try:
            return self._whole.encode_batch_fast(dressed)
        except TypeError as error:
            for place, text in enumerate(texts):
                if not _is_unicode(text):
                    message = f"item {first + place} holds half a surrogate pair, which is no text"
                    raise ItemError(message, index=first + place) from error
            raise


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
