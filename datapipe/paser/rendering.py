"""A row of an instruction pool as a language model reads it: what stands before the answer, and the answer.

    history, instruction, input -> chat template of the original model -> prompt;  response -> text

Both models read the same words, or their distributions could not be compared. Raises `ModelError` for a template that
does not run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapipe.workers.chat import ChatFormat
    from datapipe.workers.tasks.causal import PlainTokenizer

__all__ = ["leading_text", "prompt_and_text"]


def prompt_and_text(chat: ChatFormat, row: Mapping[str, Any], *, leading: str = "") -> tuple[str, str]:
    """Return the prompt and the text that follows it.

    Args:
        chat: Form of a conversation with the model; without a template the messages stand with empty lines between.
        row: `instruction`, `input`, `response`, and `history` (messages of `role` and `content`) where there is one.
        leading: Of `leading_text`: taken off the prompt, since the tokenizer puts it there once more.

    Raises:
        ModelError: The template does not take the messages.
    """
    asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
    prompt = chat.render("", asked, history=row.get("history") or ())
    return prompt.removeprefix(leading), row["response"]


def leading_text(chat: ChatFormat, tokenizer: PlainTokenizer) -> str:
    """The beginning-of-text token where both the template and the tokenizer write it; else nothing."""
    first = chat.special.get("bos_token", "")
    alone = len(tokenizer.opening) == 1 and bool(first) and chat.template is not None
    return first if alone and tokenizer.token_id(first) == tokenizer.opening[0] else ""
