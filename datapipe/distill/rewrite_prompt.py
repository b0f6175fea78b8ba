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
    "You answer instructions. With each instruction comes a correct answer. Give the same answer in your own style: "
    "keep its facts, numbers, names and code, and its language. Write the answer alone. Do not mention that you were "
    "shown one."
)


def prompt(instruction: str, given: str, response: str) -> tuple[str, str]:
    """Return the system text and the user's text for one row.

    Args:
        instruction: What is to be done.
        given: What it is to be done with; empty for nothing.
        response: The human answer. One that marks its result has the model mark it too.
    """
    parts = ["### Instruction", instruction.strip()]
    if given.strip():
        parts += ["### Input", given.strip()]
    parts += ["### Correct answer", response.strip()]
    result = final_answer(response)
    close = "Now answer the instruction in your own style."
    if result:
        close += f' Explain the steps and end with: "The answer is {result}."'
    return _SYSTEM, "\n\n".join([*parts, close])
