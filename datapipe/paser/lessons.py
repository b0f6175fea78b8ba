"""Instructions with their answers as token ids, ready to be learnt from.

    prompts, answers -> Lessons (opening + prompt + answer + end, answers marked) -> take(rows)

The tokens are those that the `causal` task of the workers scores: prompt and answer are tokenised apart, and what is
over-long loses the beginning of its prompt first, then the end of its answer. Raises `ConfigError` and `ItemError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datapipe.storage.arrays import Int32, Int64
    from datapipe.workers.folder import ModelFolder
    from datapipe.workers.tasks.causal import PlainTokenizer


@dataclass(frozen=True, eq=False)
class Lessons:
    """Rows to learn from, one after the other.

    Attributes:
        ids: Tokens of all rows, int32 (tokens,).
        lengths: Tokens of each row, int64 (rows,).
        prompts: Of these, how many are read but not learnt, int64 (rows,), at least 1.
        truncated: Rows that lost tokens.
    """

    ids: Int32
    lengths: Int64
    prompts: Int64
    truncated: int = 0

    @property
    def starts(self) -> Int64:
        """Where each row begins in `ids`, int64 (rows,)."""
        found: Int64 = np.cumsum(self.lengths) - self.lengths
        return found

    @property
    def answers(self) -> Int64:
        """Tokens of each row that are learnt, int64 (rows,)."""
        found: Int64 = self.lengths - self.prompts
        return found

    def __len__(self) -> int:
        return len(self.lengths)

    def take(self, rows: Int64) -> Lessons:
        """The rows of these numbers, in this order; a number may come twice."""
        return Lessons(
            self.ids[positions(self.starts[rows], self.lengths[rows])], self.lengths[rows], self.prompts[rows]
        )

    def row(self, number: int) -> Int32:
        """Tokens of one row."""
        start = int(self.lengths[:number].sum())
        return self.ids[start : start + int(self.lengths[number])]


def positions(starts: Int64, lengths: Int64) -> Int64:
    """Numbers start, start + 1 ... of each range, one range after the other, int64 (sum of lengths,)."""
    total = int(lengths.sum())
    shift = starts - (np.cumsum(lengths) - lengths)
    found: Int64 = np.arange(total, dtype=np.int64) + np.repeat(shift, lengths)
    return found


def lessons_of(
    prompts: Sequence[str], answers: Sequence[str], *, folder: ModelFolder, max_length: int, ended: bool = True
) -> Lessons:
    """Tokenise instructions and answers.

    Args:
        prompts: Rendered conversations, each up to where the answer begins.
        answers: What follows.
        folder: Of the model, whose tokenizer reads them.
        max_length: Tokens that a row is cut to, >= 2.
        ended: Whether the token that ends an answer is learnt too; what never ends is no answer.

    Raises:
        ConfigError: `max_length` is below 2, or there are not as many answers as prompts.
        ItemError: An answer has no tokens, or nothing stands before its first; holds its index.
    """
    from datapipe.errors import ItemError
    from datapipe.workers.tasks.causal import PlainTokenizer

    if max_length < 2:  # noqa: PLR2004 - one token to read and one to learn
        raise ConfigError(f"max_length must be 2 or more; got {max_length}")
    if len(prompts) != len(answers):
        raise ConfigError(f"{len(prompts)} prompts and {len(answers)} answers are of different rows")
    tokenizer = PlainTokenizer(folder)
    opening, end = tokenizer.opening, _end(folder, tokenizer) if ended else np.empty(0, np.int32)
    before, after = tokenizer.plain(prompts, first=0), tokenizer.plain(answers, first=0)
    rows, read, truncated = [], [], 0
    for index, (context, answer) in enumerate(zip(before, after, strict=True)):
        if not len(answer) or len(opening) + len(context) == 0:
            lacking = "no tokens" if not len(answer) else "nothing before its answer"
            raise ItemError(f"row {index} has {lacking}, so there is nothing to learn", index=index)
        # One token stays before the answer, however long it is.
        learnt = np.concatenate([answer, end])[: max_length - max(1, len(opening))]
        room = max_length - len(opening) - len(learnt)
        left = context[max(0, len(context) - room) :] if room else context[:0]
        truncated += len(left) < len(context) or len(learnt) < len(answer)
        rows += [opening, left, learnt]
        read.append((len(opening) + len(left), len(learnt)))
    counts = np.array(read, np.int64).reshape(-1, 2)
    ids = np.concatenate(rows).astype(np.int32) if rows else np.empty(0, np.int32)
    return Lessons(ids, counts.sum(1), counts[:, 0], truncated)


def _end(folder: ModelFolder, tokenizer: PlainTokenizer) -> Int32:
    """The token that ends an answer, int32 (1,), or (0,) where the folder names none."""
    from datapipe.workers.chat import ChatFormat

    chat = ChatFormat(folder)
    named = [tokenizer.token_id(token) for token in chat.stop_tokens]
    found = [each for each in [*named, *chat.stop_ids] if each is not None][:1]
    return np.array(found, np.int32)
