"""The special tokens of a pair, and one bank for encoders whose vocabularies differ by a shift.

    tokenizer.json -> open_tokenizer -> template_of (against the bank's) -> Template

Raises `ModelError` where a pair is not written as special tokens round both texts, or the vocabularies do not match.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapipe.errors import ModelError, ModelNotFoundError
from provence.training.windows import Template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from datapipe.workers.folder import ModelFolder

__all__ = ["open_tokenizer", "template_of"]

_PROBES = ("water", "stone")


def open_tokenizer(folder: ModelFolder) -> Tokenizer:
    """The tokenizer of a folder without padding and truncation. Raises `ModelNotFoundError` if it has none."""
    from tokenizers import Tokenizer

    path = folder.path("tokenizer.json")
    if not path.is_file():
        raise ModelNotFoundError(f"model {folder.name}: {folder.root} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def template_of(tokenizer: Tokenizer, bank: Tokenizer | None = None) -> Template:
    """How a pair is written, and the shift of ids against the tokenizer that made the bank.

    Args:
        tokenizer: Of the encoder.
        bank: Of the bank; None if it is the same.

    Raises:
        ModelError: The pair is written otherwise, or ids do not differ by one shift for all words.
    """
    ids = tokenizer.encode(*_PROBES).ids
    inside = [tokenizer.encode(probe, add_special_tokens=False).ids for probe in _PROBES]
    places = [_find(ids, part) for part in inside]
    if not inside[0] or not inside[1] or -1 in places or places[0] >= places[1]:
        raise ModelError(
            f"a pair of texts is written as {ids}, which is not question, then text, between special tokens"
        )
    first, second = places[0] + len(inside[0]), places[1] + len(inside[1])
    shift = 0 if bank is None else _shift(tokenizer, bank)
    return Template(tuple(ids[: places[0]]), tuple(ids[first : places[1]]), tuple(ids[second:]), shift)


def _find(ids: list[int], part: list[int]) -> int:
    return next((place for place in range(len(ids)) if ids[place : place + len(part)] == part), -1)


def _shift(tokenizer: Tokenizer, bank: Tokenizer) -> int:
    theirs, ours = tokenizer.get_vocab(), bank.get_vocab()
    special = {token.content for token in bank.get_added_tokens_decoder().values()}
    special |= {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    shifts = {theirs[word] - place for word, place in ours.items() if word in theirs and word not in special}
    missing = [word for word in ours if word not in theirs and word not in special]
    if len(shifts) != 1 or missing:
        raise ModelError(
            f"the vocabularies of teacher and student differ by {len(shifts)} shifts, and {len(missing)} words are in "
            "one only; ids can be shared only if all words differ by the same shift"
        )
    return shifts.pop()
