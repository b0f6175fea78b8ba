"""Whether a model's own wording of an answer may take the place of the human one.

    reference, candidate -> check -> None, or the first reason why not

Self-data distillation (Thangarasa et al. 2024, arXiv 2410.09982, after Yang et al. 2024, arXiv 2402.13669) keeps the
human answer where the rewritten one talks about its task or comes to another result. The checks here are our own, know
no model, and look at nothing but the texts. In their order:

    unfinished     the model did not end its answer within the tokens that it had
    empty          no letter and no digit
    unchanged      the reference word for word: nothing was distilled
    banned_phrase  it speaks of the reference, of rewriting, or of itself
    too_short, too_long   against the reference's length, `Limits`
    repeats        it runs in circles
    final_answer   the reference comes to a result (a marked one, or it is one itself) and the candidate to another
    numbers        of a reference's three or more numbers fewer than half stand in the candidate
    code           the reference holds JSON or Python that parses, and the candidate none
    language       most letters are of another script
    unrelated      of the words that tell the reference apart hardly any stands in the candidate
"""

from __future__ import annotations

import ast
import json
import re
import threading
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BANNED", "REASONS", "Limits", "Reason", "check", "final_answer"]

Reason: TypeAlias = Literal[
    "unfinished",
    "empty",
    "unchanged",
    "banned_phrase",
    "too_short",
    "too_long",
    "repeats",
    "final_answer",
    "numbers",
    "code",
    "language",
    "unrelated",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

BANNED = (
    "reference answer",
    "known to be right",
    "your response",
    "my response",
    "own words",
    "your turn",
    "given answer",
    "answer provided",
    "provided answer",
    "new answer",
    "answer to the question again",
    "rewritten",
    "rewrite",
    "rephrase",
    "ready to help",
    "as an ai",
)
"""Phrases by which a model gives away that it was shown an answer; one that the human texts hold too is allowed."""

_SHORT = 40
"""Characters up to which a reference is taken for a bare result, which the candidate must hold."""
_CODE = 100_000
"""Characters of the longest text that is tried as Python."""
_LETTERS = 10
"""Letters from which a text has a script."""
_WORDS = 40
"""Words from which a text can be said to run in circles."""
_GRAM, _DISTINCT = 4, 0.6
"""Of a text that runs in circles fewer than this share of its runs of four words are different."""

_STEM, _TELLING, _SHARED = 5, 8, 0.15
"""Letters of a stem; stems from which a reference is told apart by them; share of them that an answer must hold."""

_SOME = 3
"""Different numbers from which a reference is one of numbers."""

_MARKED = (
    re.compile(r"####\s*([-+$]?[\d.,]+)\s*$"),
    re.compile(r"\\boxed\s*\{([^{}]*)\}"),
    re.compile(r"answer\s+is\s*:?\s*(?=([^\n]+))", re.IGNORECASE),
)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)```", re.DOTALL)
_STATEMENTS = (ast.Assign, ast.AugAssign, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.For, ast.Call)
"""What prose never parses to; `word` and `a, b` are expressions, and Python too."""
_EDGES = " \t\n.,;:!?\"'`*_()[]{}$"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much longer or shorter than the reference an answer may be.

    Attributes:
        shortest: Least share of the reference's characters, 0 ... 1; counts for references of more than 200 characters.
        longest: Most times the reference's characters, >= 1, beyond `slack`.
        slack: Characters that an answer may have whatever the length of the reference; short ones may grow.
    """

    shortest: float = 0.2
    longest: float = 4.0
    slack: int = 600


_FEW = 200
_quiet = threading.Lock()


def check(
    candidate: str, *, reference: str, instruction: str, ended: bool = True, limits: Limits | None = None
) -> Reason | None:
    """Return the first reason why `candidate` may not stand for `reference`, or None.

    Args:
        candidate: The model's wording.
        reference: The human answer.
        instruction: What both answer, with its input.
        ended: Whether the model ended the candidate itself.
        limits: Of its length; None takes the defaults.
    """
    bounds = limits or Limits()
    if not ended:
        return "unfinished"
    if not any(each.isalnum() for each in candidate):
        return "empty"
    if _flat(candidate) == _flat(reference):
        return "unchanged"
    human = f"{instruction}\n{reference}".casefold()
    said = candidate.casefold()
    if any(phrase in said and phrase not in human for phrase in BANNED):
        return "banned_phrase"
    return _length(candidate, reference, bounds) or _content(candidate, reference)


def _length(candidate: str, reference: str, limits: Limits) -> Reason | None:
    have, had = len(candidate.strip()), len(reference.strip())
    if had > _FEW and have < limits.shortest * had:
        return "too_short"
    return "too_long" if have > max(limits.slack, limits.longest * had) else None


def _content(candidate: str, reference: str) -> Reason | None:
    if _circles(candidate) and not _circles(reference):
        return "repeats"
    if not _same_result(candidate, reference):
        return "final_answer"
    numbers = _numbers(reference)
    if len(numbers) >= _SOME and 2 * len(numbers & _numbers(candidate)) < len(numbers):
        return "numbers"
    if any(kind(reference) and not kind(candidate) for kind in (_holds_json, _holds_python)):
        return "code"
    script = _script(reference)
    if script is not None and _script(candidate) not in {script, None}:
        return "language"
    telling = _stems(reference)
    shared = len(telling & _stems(candidate))
    return "unrelated" if len(telling) >= _TELLING and shared < _SHARED * len(telling) else None


def final_answer(text: str) -> str | None:
    r"""The result that a text marks as its own: after `####`, in `\boxed{}`, after "answer is"; None without a mark.

    Of several marks the last one counts; of what follows it, the number where there is one, else its first clause. A
    long clause is prose, no result.
    """
    found = [(match.start(), match.group(1)) for pattern in _MARKED for match in pattern.finditer(text)]
    if not found:
        return None
    _, told = max(found)
    number = _NUMBER.search(told)
    if number is not None:
        return number.group()
    clause = re.split(r"[.,;]", told)[0].strip(_EDGES)
    return clause if 0 < len(clause) <= _SHORT else None


def _same_result(candidate: str, reference: str) -> bool:
    """Whether the candidate comes to the reference's result, or the reference to none."""
    result = final_answer(reference)
    if result is None:
        bare = reference.strip(_EDGES)
        return len(bare) > _SHORT or "\n" in bare or _holds(candidate, bare)
    number = _number(result)
    if number is None:
        return _holds(candidate, result)
    marked = final_answer(candidate)
    told = [marked] if marked is not None else _NUMBER.findall(candidate)[-1:]
    return any(_number(each) == number for each in told)


def _holds(candidate: str, result: str) -> bool:
    """Whether a short result stands in the candidate: as a number among its numbers, else word for word."""
    number = _number(result)
    if number is not None:
        return any(_number(each) == number for each in _NUMBER.findall(candidate))
    wanted = re.escape(_flat(result).casefold())
    return re.search(rf"(?<!\w){wanted}(?!\w)", _flat(candidate).casefold()) is not None


def _number(text: str) -> Fraction | None:
    plain = text.strip().strip("$%").rstrip(".")
    if _NUMBER.fullmatch(plain) is None:
        return None
    try:
        return Fraction(*(Fraction(part) for part in plain.replace(",", "").split("/")))
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, or nothing to divide by
        return None


def _numbers(text: str) -> set[Fraction]:
    return {number for each in _NUMBER.findall(text) if (number := _number(each)) is not None}


def _flat(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _stems(text: str) -> set[str]:
    """Beginnings of the longer words, so that other forms of a word count as the same; numbers whole."""
    return {word[:_STEM] for word in re.findall(r"\w+", text.casefold()) if len(word) >= _STEM or word.isdigit()}


def _circles(text: str) -> bool:
    words = text.split()
    if len(words) < _WORDS:
        return False
    grams = Counter(tuple(words[at : at + _GRAM]) for at in range(len(words) - _GRAM + 1))
    return len(grams) < _DISTINCT * grams.total()


def _pieces(text: str, languages: frozenset[str]) -> Iterator[str]:
    """The text as a whole, and its fenced blocks of these languages."""
    yield text
    for language, block in _FENCE.findall(text):
        if language.casefold() in languages:
            yield block


def _holds_json(text: str) -> bool:
    return any(_is_json(piece) for piece in _pieces(text, frozenset({"", "json"})))


def _is_json(text: str) -> bool:
    if not text.strip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _holds_python(text: str) -> bool:
    return any(_is_python(piece) for piece in _pieces(text, frozenset({"", "python", "py", "python3"})))


def _is_python(text: str) -> bool:
    if len(text) > _CODE:
        return False
    try:
        with _quiet, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that a newer Python will refuse
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(isinstance(node, _STATEMENTS) for node in ast.walk(tree))


def _script(text: str) -> str | None:
    """The script of most letters (LATIN, CYRILLIC, CJK ...); None for fewer than ten letters."""
    letters = [each for each in text[:4000] if each.isalpha()]
    if len(letters) < _LETTERS:
        return None
    counted = Counter(_script_of(each) for each in letters)
    return max(counted, key=lambda name: (counted[name], name))


@cache
def _script_of(letter: str) -> str:
    name = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if name in {"CJK", "HIRAGANA", "KATAKANA"} else name
