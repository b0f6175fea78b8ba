"""Errors in the words of a command: `--target-recall` for `target_recall`, a file for the place of an item.

with in_words_of_a_command(files): ...        ConfigError, ItemError, ... -> the same class, as it is typed
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError, ItemError, MetricError, SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["STDIN", "called", "in_words_of_a_command"]

STDIN = "-"

_OPTION = re.compile(
    r"(?<![\w./-])'?(target_recall|budget_tokens|top_n|min_keep|always_keep_first|cut_question|max_length)'?(?:=True)?"
    r"(?![\w/-]|\.\w)"
    r"|'(threshold|pin)'(?= option)|^(threshold)(?= and )|^(backend|device|dtype|limit|seed)(?= must)"
    r"|(?<=no row of )(split)(?= ')|(?<=, )(split)(?= )"
)
"""An option in a message, as the API calls it."""

_PHRASES = {
    "calibration= (--calibration)": "--calibration",
    ", or None for all.": ", or left out for all.",
    "--split None:": "--split all:",
    "leave device and dtype out": "leave --device out",
}
_BASELINE = re.compile(r"^no baseline (?=.*\. There are )")


@contextmanager
def in_words_of_a_command(names: Sequence[str] = ()) -> Iterator[None]:
    """Raise what is raised inside with options as they are typed, and with a file of `names` for an item's place."""
    try:
        yield
    except ItemError as error:
        said = _typed(str(error))
        if error.index < len(names):
            file = called(names[error.index])
            said = said.replace(f"the question of item {error.index} ", "the question ")
            said = re.sub(rf"\bitem {error.index}\b", lambda _: file, said)
        raise ItemError(said, index=error.index) from error
    except (ConfigError, MetricError, SourceError) as error:
        raise type(error)(_typed(str(error))) from error


def called(name: str) -> str:
    """What a file is called in messages."""
    return "standard input" if name == STDIN else name


def _typed(message: str) -> str:
    message = _OPTION.sub(lambda found: "--" + next(filter(None, found.groups())).replace("_", "-"), message)
    for said, typed in _PHRASES.items():
        message = message.replace(said, typed)
    return _BASELINE.sub("--baselines has no baseline ", message)
