"""Labelled sets for training, and what must not be in them.

    SourceConfig -> read_source -> [Example, …] -> Guard.admits -> [Example, …] without anything of the protected sets

A pruner's figures are worth nothing if it has seen the passages that they are measured on, and sets overlap: one
article is `test` in one set and `train` in another. So a question is left out if its document has the title of a
protected document, or if one of the two texts contains the other, or if the same question is protected. Raises what
`read_examples` raises.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from provence.evaluation.sets import Example
    from provence.training.config import SourceConfig

__all__ = ["Guard", "normal", "read_source", "shown_title"]

_NOT_WORD = re.compile(r"\W+")
_TELLING = 20
"""Characters that a sentence needs for its reappearance to mean something."""


def normal(text: str) -> str:
    """Lower-cased words with single blanks: texts that differ in marks and white space only become equal."""
    return _NOT_WORD.sub(" ", text.lower()).strip()


def shown_title(title: str) -> str:
    """A title as it is shown to a model: blanks for the underscores of Wikipedia's addresses."""
    return title.replace("_", " ")


def read_source(source: SourceConfig, folder: Path) -> list[Example]:
    """The questions of a source's splits that have a document, in the order of the file.

    Raises:
        ConfigError: A split is `test`, which is for figures.
        SourceError: The file cannot be read, or has no such split.
    """
    from provence.evaluation.sets import read_examples

    if "test" in source.splits:
        raise ConfigError(f"source {source.name}: its test split is for figures and cannot be trained on")
    path = folder / f"{source.name}.parquet"
    found = [example for split in source.splits for example in read_examples(path, split=split)]
    return [example for example in found if example.starts.size and normal(example.question)]


@dataclass(eq=False)
class Guard:
    """What is kept out of training.

    Attributes:
        titles: Titles of protected documents, in normal form.
        questions: Protected questions, in normal form.
        openings: Protected documents in normal form, by each telling sentence of theirs.
    """

    titles: set[str] = field(default_factory=set)
    questions: set[str] = field(default_factory=set)
    openings: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def over(cls, examples: Iterable[Example]) -> Guard:
        """Protect these questions and their documents."""
        guard = cls()
        known: set[str] = set()
        for example in examples:
            guard.questions.add(normal(example.question))
            if title := normal(shown_title(example.title)):
                guard.titles.add(title)
            if example.context not in known:
                known.add(example.context)
                whole = normal(example.context)
                for sentence in _telling(example):
                    guard.openings[sentence].add(whole)
        return guard

    def admits(self, example: Example) -> bool:
        """Whether nothing of a protected question or document shows in this one."""
        return (
            normal(shown_title(example.title)) not in self.titles
            and normal(example.question) not in self.questions
            and not self.shares_document(example)
        )

    def shares_document(self, example: Example) -> bool:
        """Whether a protected document contains this one's, or the other way round."""
        others: set[str] = set()
        for sentence in _telling(example):
            others |= self.openings.get(sentence, set())
        if not others:
            return False
        whole = normal(example.context)
        return any(other in whole or whole in other for other in others)


def _telling(example: Example) -> list[str]:
    """Sentences of the document long enough to be told by, in normal form; the whole text if none is."""
    spans = zip(example.starts.tolist(), example.ends.tolist(), strict=True)
    sentences = [normal(example.context[start:end]) for start, end in spans]
    return [sentence for sentence in sentences if len(sentence) >= _TELLING] or [normal(example.context)]
