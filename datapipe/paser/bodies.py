"""The responses of some rows as a model's body sees them: their tokens, and the state before each.

    rows -> prompt and text -> worker "causal" (hidden) -> Responses: ids, sizes, states in bfloat16, flat

A response that has no tokens, or whose only token has nothing before it, is a row of size 0 and no fault. Raises
`ModelError`, `WorkerError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import ItemError, ModelError
from datapipe.paser.rendering import prompt_and_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa
    from numpy.typing import NDArray

    from datapipe.storage.arrays import Bool, Float32, Int32, Int64
    from datapipe.workers.chat import ChatFormat
    from datapipe.workers.protocol import Worker
    from datapipe.workers.tasks.causal import CausalScores, PlainTokenizer

__all__ = ["COLUMNS", "Form", "Responses", "ask", "read_responses", "refuse_other_cut", "token_counts"]

COLUMNS = ("instruction", "input", "response", "history")
"""What is read of a row of the pool."""


@dataclass(frozen=True)
class Form:
    """How a row becomes text, and how much of it is read.

    Attributes:
        chat: Form of a conversation with the original.
        leading: Of `rendering.leading_text`.
        max_length: Tokens that the models see of a row.
        slice_rows: Rows that go to the worker in one call.
    """

    chat: ChatFormat
    leading: str
    max_length: int
    slice_rows: int

    def texts(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        """Prompt and text of each row. Raises `ModelError` where the template does not take one."""
        return [prompt_and_text(self.chat, row, leading=self.leading) for row in rows]

    def of(self, table: pa.Table) -> list[tuple[str, str]]:
        """The same of rows of the pool."""
        return self.texts(table.select([name for name in COLUMNS if name in table.schema.names]).to_pylist())


@dataclass(frozen=True, eq=False)
class Responses:
    """What a body says of the responses of some rows, row after row.

    Attributes:
        ids: The tokens of which the model sees something before, int32 (tokens,).
        sizes: How many of them each row has, int64 (rows,).
        states: The state before each token, bfloat16 as uint16 (tokens, dim).
        total: Tokens of opening, prompt and response before truncation, int32 (rows,); 0 for a row without a token.
        truncated: Whether the model saw less, bool (rows,).
    """

    ids: Int32
    sizes: Int64
    states: NDArray[np.uint16]
    total: Int32
    truncated: Bool

    def prompt(self, max_length: int) -> Int32:
        """Tokens that the model sees before each response, int32 (rows,)."""
        return (np.minimum(self.total, max_length) - self.sizes).astype(np.int32)


def read_responses(worker: Worker, model: str, texts: Sequence[tuple[str, str]], *, dim: int) -> Responses:
    """Run the body of a model over prompts and texts.

    Args:
        worker: Where it runs.
        model: Its name there.
        texts: Prompt and text of each row.
        dim: Width of its states.
    """
    found = ask(worker, model, texts, hidden=True)
    none = np.empty(0, np.int32)
    ids = [none if each is None else each.token_ids for each in found]
    return Responses(
        ids=np.concatenate([none, *ids]),
        sizes=np.array([len(each) for each in ids], np.int64),
        states=_rounded([each.hidden for each in found if each is not None and each.hidden is not None], dim),
        total=np.array([0 if each is None else each.tokens for each in found], np.int32),
        truncated=np.array([each is not None and each.truncated for each in found], np.bool_),
    )


def ask(worker: Worker, model: str, texts: Sequence[tuple[str, str]], *, hidden: bool) -> list[CausalScores | None]:
    """Hidden states or log probabilities of each text after its prompt, None for a text without tokens."""
    from datapipe.workers.tasks.causal import CausalItem

    items = [CausalItem(text, prompt, hidden=hidden, scores=not hidden) for prompt, text in texts]
    left = list(range(len(items)))
    while True:
        try:
            results: Sequence[Any] = worker.run("causal", [items[at] for at in left], model=model)
        except ItemError as error:
            del left[error.index]
            continue
        scores = dict(zip(left, results, strict=True))
        return [scores.get(at) for at in range(len(items))]


def _rounded(hidden: Sequence[Float32], dim: int) -> NDArray[np.uint16]:
    import torch

    ends = np.cumsum([0, *(len(each) for each in hidden)]).tolist()
    flat = torch.empty(ends[-1], dtype=torch.bfloat16)
    for each, start in zip(hidden, ends, strict=False):
        flat[start : start + len(each)] = torch.from_numpy(each)
    rounded: NDArray[np.uint16] = flat.view(torch.int16).numpy().view(np.uint16)
    return rounded.reshape(-1, dim)


def token_counts(
    tokenizer: PlainTokenizer, texts: Sequence[tuple[str, str]], *, max_length: int
) -> tuple[Int32, Int32]:
    """Tokens of each response that would be scored, and tokens before them, without running a model.

    Returns:
        Both int32 (rows,), as `read_responses` finds them.
    """
    opening = len(tokenizer.opening)
    prompts, answers = (
        np.array([len(ids) for ids in tokenizer.plain(part, first=0)], np.int64)
        for part in ([prompt for prompt, _ in texts], [text for _, text in texts])
    )
    answers = np.minimum(answers, max_length - opening)
    before = opening + np.minimum(prompts, max_length - opening - answers)
    scored = np.where(before == 0, np.maximum(answers - 1, 0), answers)
    before = np.where(answers > 0, np.minimum(opening + prompts + answers, max_length) - scored, 0)
    return scored.astype(np.int32), before.astype(np.int32)


def refuse_other_cut(
    one: Responses, other: Responses, *, names: tuple[str, str], rows: Callable[[], Sequence[str]]
) -> None:
    """Raise `ModelError` naming the first row that two models cut into different tokens.

    Args:
        one: Of the first model.
        other: Of the second, of the same rows.
        names: Of both models.
        rows: Gives the ids of the rows, as text.
    """
    if np.array_equal(one.sizes, other.sizes) and np.array_equal(one.ids, other.ids):
        return
    parts = zip(*(np.split(each.ids, np.cumsum(each.sizes)[:-1]) for each in (one, other)), strict=True)
    row = next(at for at, (ids, others) in enumerate(parts) if not np.array_equal(ids, others))
    raise ModelError(
        f"models {names[0]} and {names[1]} cut the response of row {rows()[row]} into different tokens "
        f"({one.sizes[row]} and {other.sizes[row]}), so their tokenizers differ; if the two belong together, copy the "
        f"tokenizer files of the original into the folder of {names[1]}"
    )
