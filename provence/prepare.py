"""Items to windows on the CPU, and what the model gave for them to probabilities of units. Needs no torch.

    PruneItem -> Preparer.prepare_many (units, tokens, windows) -> PreparedText
    PreparedText, sums of its stretches, scores of its windows -> unit_scores -> PruneScores

`prepare_many` raises `ItemError` for an item that is unusable, a question too long for the model among them.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from datapipe.errors import ConfigError, ItemError
from datapipe.workers.tasks.rerank import RerankScore
from provence.task import PruneItem, PruneScores
from provence.tokens import CACHE_BYTES, UnitReader
from provence.windows import lay_windows, text_room

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Float32, Int32
    from datapipe.workers.protocol import Item
    from provence.families.base import Conduct
    from provence.tokens import UnitTokenizer, UnitTokens
    from provence.windows import Window

__all__ = [
    "EMPTY_SCORE",
    "PreparedText",
    "Preparer",
    "RawScores",
    "plain_question",
    "relevance",
    "rerank_score",
    "unit_scores",
    "window_length",
]

EMPTY_SCORE = -1e4
"""Relevance of a text without a token, such as one of white space: below what any model gives for others."""

_TITLE_SHARE = 8
"""Fraction of a window that a title may take: an eighth."""

_UNPUNCTUATED = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class PreparedText:
    """A text ready for the model.

    Attributes:
        text: Its units and tokens.
        windows: What the model is to see; at least one.
        length: Tokens of all windows.
        share_at: Threshold of tokens for the share rule.
        tokens: Tokens of question, title and text.
        truncated: Whether the question was cut.
    """

    text: UnitTokens
    windows: list[Window]
    length: int
    share_at: float
    tokens: int
    truncated: bool


class RawScores(NamedTuple):
    """What a forward pass gives for a text, on the host.

    Attributes:
        probabilities: Mean keep probability of each unit's tokens, float32 (units,); 0 for a unit without tokens.
        shares: Share of its tokens above the threshold, float32 (units,), or None.
        score: Relevance; the best of the windows.
    """

    probabilities: Float32
    shares: Float32 | None
    score: float


def window_length(asked: int | None, conduct: Conduct, *, positions: int) -> int:
    """Tokens of a window: those asked for, else the model's own.

    Raises:
        ConfigError: They are more than the positions that the model has.
    """
    if asked is not None and asked > positions:
        raise ConfigError(
            f"max_length must be at most {positions:,} for this model, which has no more positions. Got {asked:,}; "
            "longer texts are read in several windows anyway"
        )
    return min(asked or conduct.max_length, positions)


class Preparer:
    """Ready items for one model; several threads may use one.

    Args:
        tokenizer: Of the model.
        conduct: How the model wants to be used.
        max_length: Tokens of a window.
        cache_bytes: Memory for the units and tokens of texts seen before.

    Raises:
        ConfigError: `max_length` leaves no room for a token of a question and one of a text.
    """

    def __init__(
        self, tokenizer: UnitTokenizer, conduct: Conduct, *, max_length: int, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._tokenizer, self._conduct, self._max_length = tokenizer, conduct, max_length
        self._frame = tokenizer.frame()
        self._reader = UnitReader(tokenizer, spaced=conduct.spaced, trailing=conduct.trailing, cache_bytes=cache_bytes)
        self._question_limit = max_length - self._frame.length - text_room(max_length, self._frame)
        if self._question_limit < 1:
            least = self._frame.length + 2
            raise ConfigError(
                f"max_length must be at least {least} for this model, {self._frame.length} special tokens and one each "
                f"of a question and a text. Got {max_length}"
            )

    def prepare_many(self, items: Sequence[Item], *, first: int = 0) -> list[PreparedText]:
        """Units, tokens and windows of each item.

        Raises:
            ItemError: An item is no PruneItem of texts, its spans do not cover its text, or its question leaves too
                little of a window to the text; its index is counted from `first`.
        """
        for index, item in enumerate(items, first):
            _check(item, index)
        questions = self._pieces([self._worded(item.question) for item in items], "question", first)
        titles = self._pieces([item.title or "" for item in items], "title", first)
        texts = self._reader.read(items, first=first)
        rows = enumerate(zip(items, questions, titles, texts, strict=True), first)
        return [self._prepared(item, question, title, text, index) for index, (item, question, title, text) in rows]

    def _worded(self, question: str) -> str:
        return plain_question(question) if self._conduct.plain_question else question

    def _pieces(self, texts: Sequence[str], name: str, first: int) -> list[Int32]:
        """Tokens of each text; one that stands several times is tokenised once."""
        places: dict[str, int] = {}
        for place, text in enumerate(texts):
            places.setdefault(text, place)
        try:
            found = dict(zip(places, self._tokenizer.pieces(list(places)), strict=True))
        except UnicodeEncodeError as error:
            index = first + places[error.object]
            raise ItemError(f"the {name} of item {index} holds half a surrogate pair", index=index) from error
        return [found[text] for text in texts]

    def _prepared(self, item: PruneItem, question: Int32, title: Int32, text: UnitTokens, index: int) -> PreparedText:
        most = self._question_limit
        if len(question) > most and not item.cut_question:
            raise ItemError(
                f"the question of item {index} has {len(question)} tokens, but at most {most} fit beside a text in "
                f"this model's windows of {self._max_length}; shorten it, or pass cut_question=True to use its first "
                f"{most} tokens",
                index=index,
            )
        seen = question[:most]
        windows = lay_windows(
            self._frame,
            seen,
            title[: min(self._max_length // _TITLE_SHARE, self._question_limit - len(seen))],
            text.ids,
            text.bounds,
            max_length=self._max_length,
        )
        return PreparedText(
            text=text,
            windows=windows,
            length=sum(len(window.ids) for window in windows),
            share_at=self._conduct.threshold if item.share_at is None else item.share_at,
            tokens=len(question) + len(title) + len(text.ids),
            truncated=len(question) > most,
        )


def unit_scores(raw: RawScores, prepared: PreparedText, conduct: Conduct) -> PruneScores:
    """Put what the model gave beside the units that it is about."""
    text = prepared.text
    return PruneScores(
        starts=text.starts,
        ends=text.ends,
        kinds=list(text.kinds),
        parents=text.parents,
        lengths=text.lengths,
        probabilities=raw.probabilities,
        shares=raw.shares,
        score=relevance(raw, prepared),
        tokens=prepared.tokens,
        truncated=prepared.truncated,
        rule=conduct.rule,
        threshold=conduct.threshold,
    )


def relevance(raw: RawScores, prepared: PreparedText) -> float:
    """The score of the best window, on the model's own scale; `EMPTY_SCORE` where there is nothing to score."""
    return raw.score if len(prepared.text.ids) else EMPTY_SCORE


def rerank_score(raw: RawScores, prepared: PreparedText, conduct: Conduct) -> RerankScore:
    """The relevance between 0 and 1, as users of rerankers expect it: of a logit the sigmoid; 0 where it is empty."""
    score = relevance(raw, prepared)
    if score == EMPTY_SCORE:
        score = 0.0
    elif not conduct.squashed:
        small = math.exp(-abs(score))  # never overflows
        score = (1.0 if score >= 0 else small) / (1.0 + small)
    return RerankScore(score, prepared.tokens, prepared.truncated)


def plain_question(question: str) -> str:
    """The question in lower case, without ASCII punctuation, white space collapsed: how Provence was trained."""
    return " ".join(question.lower().translate(_UNPUNCTUATED).split())


def _check(item: Item, index: int) -> None:
    if not isinstance(item, PruneItem):
        raise ItemError(f"item {index} must be a PruneItem. Got {type(item).__name__}", index=index)
    for name, value in (("question", item.question), ("title", item.title or "")):
        if not isinstance(value, str):
            raise ItemError(f"the {name} of item {index} must be text. Got {type(value).__name__}", index=index)
    if item.share_at is not None and not 0 <= item.share_at <= 1:
        raise ItemError(f"share_at of item {index} must lie between 0 and 1. Got {item.share_at}", index=index)
