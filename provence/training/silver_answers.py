"""What a language model is asked, and what its reply says of each sentence.

    Passage -> prompt_of -> a reply -> cited -> judge -> Verdict (relevant sentences, or why the reply is of no use)

The model answers from numbered sentences and cites each that it used, the best of the prompts that Provence compares
(Chirkova et al., arXiv 2501.16214, section 3); which sentence is relevant then follows from what was needed to answer.
Pure functions of text; nothing here raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["PROMPT_VERSION", "Passage", "Verdict", "cited", "judge", "prompt_of"]

PROMPT_VERSION: Final = 1
"""Raised whenever `prompt_of` changes, so that replies to another prompt are not taken for replies to this one."""

_INSTRUCTIONS: Final = """\
Below are numbered sentences and a question. Answer the question in a few sentences, from the numbered sentences \
alone, not from what you know otherwise. At the end of each statement, cite every sentence it rests on by its number \
in square brackets. If the sentences do not hold the answer, reply with exactly: No answer

An example:
[0] Rome
[1] Rome lies on the Tiber.
[2] It is said that Romulus founded it.
[3] He did so in 753 BC.
Question: Who founded Rome, and when?
Reply: Romulus is said to have founded it [2], in 753 BC [3].

Now it is your turn."""
"""The example shows small models the form; large ones do without."""

_BRACKETS: Final = re.compile(r"\[([^\[\]]*)\]")
_NUMBERS: Final = re.compile(r"([0-9]+)(?:\s*[-\u2013\u2014]\s*([0-9]+))?")
_NOTHING: Final = re.compile(r"\bno answer\b", re.IGNORECASE)
_THOUGHT_END: Final = "</think>"
_DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Passage:
    """A question and the sentences that may answer it.

    Attributes:
        question: Any text.
        title: Shown as sentence 0 if not empty; then the first sentence of the text is number 1.
        text: What the sentences lie in.
        spans: (start, end) of each sentence in `text`.
    """

    question: str
    title: str
    text: str
    spans: tuple[tuple[int, int], ...]

    @property
    def titled(self) -> bool:
        """Whether number 0 is the title."""
        return bool(self.title)

    @property
    def shown(self) -> list[str]:
        """The numbered lines: the title, if there is one, and the sentences."""
        sentences = [self.text[start:end] for start, end in self.spans]
        return [" ".join(line.split()) for line in ([self.title, *sentences] if self.titled else sentences)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply says of a passage.

    Attributes:
        reason: Why the reply is of no use: `copied`, `cut_off`, `uncited`, `only_title` or `out_of_range`; empty if it
            is of use.
        relevant: 1 for each sentence of the text that the answer rests on, else 0; all 0 where there is no answer.
        citations: Different numbers that were cited.
        out_of_range: Those of them that no line has; they are left out.
    """

    reason: str
    relevant: tuple[int, ...] = ()
    citations: int = 0
    out_of_range: int = 0

    @property
    def parsed(self) -> bool:
        """Whether the reply had the form that was asked for, whatever became of it."""
        return self.reason not in {"copied", "cut_off", "uncited"}


def prompt_of(passage: Passage) -> str:
    """What the model is asked, as one message of a user; white space within a line is folded."""
    lines = "\n".join(f"[{number}] {line}" for number, line in enumerate(passage.shown))
    return f"{_INSTRUCTIONS}\n{lines}\nQuestion: {' '.join(passage.question.split())}"


def cited(reply: str) -> frozenset[int] | None:
    """Numbers cited in square brackets; empty for "No answer", None if the reply cites nothing.

    Every whole number within brackets counts, so `[0, 2]` and `[0][2]` are the same; `[1-3]` are three. What a model
    thinks aloud before `</think>` does not count. A reply that begins with "No answer" cites nothing, whatever follows;
    elsewhere the words count only where no number is cited. Numbers of more than six digits stand for one that no
    passage has. Linear in the length of the reply.
    """
    answer = reply.rpartition(_THOUGHT_END)[2].strip()
    if _NOTHING.match(answer.lstrip("\"'*_`([ \n")):
        return frozenset()
    numbers: set[int] = set()
    for content in _BRACKETS.findall(answer):
        for first, last in _NUMBERS.findall(content):
            begin, end = _number(first), _number(last or first)
            numbers.update(range(begin, end + 1) if 0 <= end - begin < 100 else (begin, end))  # noqa: PLR2004
    if numbers:
        return frozenset(numbers)
    return frozenset() if _NOTHING.search(answer) else None


def judge(reply: str, passage: Passage, *, finished: bool = True) -> Verdict:
    """Turn a reply into labels, by the filters of Provence.

    Refused are replies without a citation, those that cite the title alone (`only_title`: models cite it for want of
    better), and those that cite nothing that there is. Beside others, numbers that no line has are left out and
    counted; if the title alone is left then, nothing is relevant. Beyond Provence's filters a reply is refused that
    reached the limit of its length, for it lacks its last citations (`cut_off`), and one that gives most of the
    numbered lines back, two at least, as small models do (`copied`).

    Args:
        reply: What the model wrote.
        passage: What it was asked about.
        finished: Whether it ended by itself.
    """
    numbers = cited(reply)
    nothing = (0,) * len(passage.spans)
    if numbers and _copies(reply, passage):
        return Verdict("copied")
    if not finished and numbers != frozenset():
        return Verdict("cut_off")
    if numbers is None:
        return Verdict("uncited")
    if not numbers:
        return Verdict("", nothing)
    first = 1 if passage.titled else 0
    known = {number for number in numbers if number < len(passage.spans) + first}
    wrong = len(numbers) - len(known)
    if numbers == {0} and passage.titled:
        return Verdict("only_title", citations=1)
    if not known:
        return Verdict("out_of_range", citations=len(numbers), out_of_range=wrong)
    relevant = tuple(int(place + first in known) for place in range(len(passage.spans)))
    return Verdict("", relevant, len(numbers), wrong)


def _copies(reply: str, passage: Passage) -> bool:
    said, lines = " ".join(reply.split()), passage.shown
    copied = sum(f"[{number}] {line}" in said for number, line in enumerate(lines))
    return copied >= max(2, len(lines) / 2)


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= _DIGITS else 10**_DIGITS
