"""Sentences that lean on the one before: those that open with a pronoun or a connective, in a few languages."""

from __future__ import annotations

import re

__all__ = ["CHEAP_TOKENS", "leans_back"]

CHEAP_TOKENS = 64
"""An antecedent with more tokens than this is not brought back."""

_WORDS = (
    # English
    "he she it they his her hers its their theirs this that these those such both neither either former latter "
    "then thus hence therefore however moreover furthermore additionally also besides nevertheless nonetheless "
    "instead otherwise meanwhile consequently accordingly similarly likewise conversely afterwards "
    "afterward but and so yet "
    # German
    "er sie es ihr ihre ihrer ihren sein seine seiner dies diese dieser dieses diesem diesen jene jener jenes dort "
    "dann daher deshalb dadurch damit dabei dazu jedoch allerdings ausserdem außerdem trotzdem dennoch zudem danach "
    "somit aber und oder "
    # French
    "il elle ils elles ce cet cette ces cela ceci celui celle ceux celles son sa ses leur leurs cependant toutefois "
    "donc ainsi ensuite puis aussi néanmoins pourtant mais et ou "
    # Spanish, Italian, Portuguese
    "él ella ellos ellas este esta estos estas ese esa eso esto aquel aquella su sus luego entonces además también "
    "pero y egli essa essi esse questo questa questi queste quello quella suo sua loro tuttavia inoltre quindi però ma "
    "ele ela eles elas isso isto esse essa porém então assim mas"
)
_OPENERS = frozenset(_WORDS.split())
_UNPARTED = (
    *("这", "那", "它", "他", "她", "此", "该", "其", "但", "然而", "因此", "所以", "而且", "另外"),
    *("これ", "それ", "あれ", "この", "その", "あの", "彼", "しかし", "また", "そして", "だから"),
)
"""Chinese and Japanese openers; those scripts part no words."""

_FIRST_WORD = re.compile(r"\W*(\w+)")


def leans_back(sentence: str) -> bool:
    """Whether a sentence opens with a word that points to what stands before it."""
    found = _FIRST_WORD.match(sentence[:80])
    return found is not None and (found[1].lower() in _OPENERS or found[1].startswith(_UNPARTED))
