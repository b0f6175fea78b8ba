"""What the original model is asked, so that it says a known answer in its own words.

    instruction, input, reference answer -> prompt -> (system text, what the user says)

The text is ours. That the model sees the human answer while it writes its own is the method's (arXiv 2402.13669; used
to recover pruned models in arXiv 2410.09982).
"""

from __future__ import annotations

from datapipe.distill.rewrite_checks import final_answer

__all__ = ["PROMPT_VERSION", "prompt"]

PROMPT_VERSION = 1
"""Raised with every change of the words below."""

_SYSTEM = (
    "You rewrite answers. Say the answer that you are given again in your own words. Keep its facts, numbers, names, "
    "code and language. Write the new answer alone."
)


def prompt(instruction: str, given: str, response: str) -> tuple[str, str]:
    """Return the system text and the user's text for one row.

    Args:
        instruction: What is to be done.
        given: What it is to be done with; empty for nothing.
        response: The human answer. One that marks its result has the model mark it too.
    """
    question = "\n\n".join(part.strip() for part in (instruction, given) if part.strip())
    close = "Write this answer to the question again in your own words."
    result = final_answer(response)
    if result is not None:
        close += f' Keep its steps and end with: "The answer is {result}."'
    return _SYSTEM, f"Question:\n{question}\n\nAnswer:\n{response.strip()}\n\n{close}"
