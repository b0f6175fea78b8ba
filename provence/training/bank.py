"""Documents and questions as token ids, once each: what windows are cut from, small enough to travel.

    [Example, …] of each source -> build_bank (tokenizer, guard, hold-out) -> Bank -> save / load (one .npz)

A sentence is tokenised by itself, so any run of sentences is the concatenation of their ids. Raises `SourceError` for a
damaged file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from datapipe.errors import SourceError
from provence.training.settle import sample_of
from provence.training.sources import shown_title

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tokenizers import Tokenizer

    from datapipe.storage.arrays import Bool, Int32, Int64
    from provence.evaluation.sets import Example
    from provence.training.config import SourceConfig, WindowConfig
    from provence.training.sources import Guard

__all__ = ["Bank", "BankBuilder"]

_WIDE = 1 << 16


@dataclass(frozen=True, eq=False)
class Bank:
    """Everything that windows are made of.

    A span of an array is written `at[i]:at[i + 1]`.

    Attributes:
        tokens: Ids of all sentences, document after document, int32 (tokens,).
        token_at: Bounds of each sentence in `tokens`, int64 (sentences + 1,).
        characters: Characters of each sentence, int32 (sentences,).
        sentence_at: Bounds of each document in the sentences, int64 (documents + 1,).
        title: Each document's title among `words`, -1 for none, int32 (documents,).
        words: Ids of questions and titles, int32 (words,).
        word_at: Bounds of each text in `words`, int64 (texts + 1,).
        asked: Each question among the texts, int32 (questions,).
        document: The document that it is asked of, int32 (questions,).
        source: Its set, int32 (questions,).
        held: Whether it is held out of training, bool (questions,).
        gold: Gold sentences, counted from their document's first, int32.
        gold_at: Bounds of each question in `gold`, int64 (questions + 1,).
        vocabulary: Ids that the tokenizer knows, int64 ().
    """

    tokens: Int32
    token_at: Int64
    characters: Int32
    sentence_at: Int64
    title: Int32
    words: Int32
    word_at: Int64
    asked: Int32
    document: Int32
    source: Int32
    held: Bool
    gold: Int32
    gold_at: Int64
    vocabulary: Int64

    @property
    def questions(self) -> int:
        """How many there are."""
        return len(self.asked)

    def save(self, path: Path) -> None:
        """Write one compressed .npz; ids take two bytes where the vocabulary allows."""
        arrays = {item.name: getattr(self, item.name) for item in fields(self)}
        if int(self.vocabulary) <= _WIDE:
            arrays |= {name: arrays[name].astype(np.uint16) for name in ("tokens", "words")}
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> Bank:
        """Read what `save` wrote. Raises `SourceError` if it is damaged or something else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {item.name: stored[item.name] for item in fields(cls)}
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f"{path} is no bank of token ids: {error}") from error
        return cls(**{n: a.astype(np.int32) if a.dtype == np.uint16 else a for n, a in arrays.items()})


@dataclass(eq=False)
class BankBuilder:
    """Gathers sources into a bank.

    Attributes:
        tokenizer: Of the base encoder, without padding and truncation.
        windows: Caps on questions and sentences.
        guard: Keeps protected questions and documents out.
        refused: Questions that it kept out, by source.
        taken: Questions for training and held out, by source.
        held: A sample of those held out, source by source.
    """

    tokenizer: Tokenizer
    windows: WindowConfig
    guard: Guard
    refused: dict[str, int] = field(default_factory=dict)
    taken: dict[str, tuple[int, int]] = field(default_factory=dict)
    held: list[Example] = field(default_factory=list)
    _texts: dict[str, int] = field(default_factory=dict)
    _documents: dict[tuple[str, tuple[int, ...]], int] = field(default_factory=dict)
    _examples: list[Example] = field(default_factory=list)
    _rows: list[tuple[int, int, int, bool]] = field(default_factory=list)
    _gold: list[Int32] = field(default_factory=list)
    _sources: list[str] = field(default_factory=list)

    def add(self, source: SourceConfig, trained: Iterable[Example], held: Iterable[Example] = ()) -> None:
        """Add the questions of a source; `held` and every so-manieth document of `trained` are for validation only."""
        self._sources.append(source.name)
        counts, refused = [0, 0], 0
        kept: list[Example] = []
        for chosen, examples in ((False, trained), (True, held)):
            for example in examples:
                if not self.guard.admits(example):
                    refused += 1
                    continue
                keep_out = chosen or _is_held(example, source.validation_every)
                self._question(example, held=keep_out)
                counts[keep_out] += 1
                kept += [example] * keep_out
        self.held += sample_of(kept)
        self.refused[source.name] = refused
        self.taken[source.name] = (counts[0], counts[1])

    def add_alone(self, example: Example) -> None:
        """Add a question with a document of its own, even if another has the same; held out."""
        if not self._sources:
            self._sources.append("")
        self._question(example, held=True, alone=True)

    def build(self) -> Bank:
        """Tokenise everything that was added."""
        contexts = [
            [e.context[a:b] for a, b in zip(e.starts.tolist(), e.ends.tolist(), strict=True)] for e in self._examples
        ]
        sentences = [sentence for context in contexts for sentence in context]
        tokens = self._ids(sentences, self.windows.max_sentence)
        words = self._ids(list(self._texts), self.windows.max_question)
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, 4)
        return Bank(
            tokens=_flat(tokens),
            token_at=_bounds([len(ids) for ids in tokens]),
            characters=np.array([len(sentence) for sentence in sentences], dtype=np.int32),
            sentence_at=_bounds([len(context) for context in contexts]),
            title=np.array([self._texts.get(shown_title(e.title), -1) for e in self._examples], dtype=np.int32),
            words=_flat(words),
            word_at=_bounds([len(ids) for ids in words]),
            asked=rows[:, 0].astype(np.int32),
            document=rows[:, 1].astype(np.int32),
            source=rows[:, 2].astype(np.int32),
            held=rows[:, 3] == 1,
            gold=_flat(self._gold),
            gold_at=_bounds([len(gold) for gold in self._gold]),
            vocabulary=np.int64(self.tokenizer.get_vocab_size(with_added_tokens=True)),  # type: ignore[arg-type]
        )

    def _question(self, example: Example, *, held: bool, alone: bool = False) -> None:
        key = (example.context, (len(self._rows),) if alone else tuple(example.starts.tolist()))
        if key not in self._documents:
            self._documents[key] = len(self._examples)
            self._examples.append(example)
            if example.title:
                self._texts.setdefault(shown_title(example.title), len(self._texts))
        place = self._texts.setdefault(example.question, len(self._texts))
        self._rows.append((place, self._documents[key], len(self._sources) - 1, held))
        self._gold.append(np.flatnonzero(example.relevant).astype(np.int32))

    def _ids(self, texts: Sequence[str], most: int) -> list[Int32]:
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids[:most], dtype=np.int32) for encoding in encoded]


def _is_held(example: Example, every: int) -> bool:
    """One document in `every`, by the hash of its title, or of its text where it has none."""
    if not every:
        return False
    key = hashlib.blake2b((example.title or example.context).encode(), digest_size=8).digest()
    return int.from_bytes(key) % every == 0


def _flat(parts: Sequence[Any]) -> Int32:
    return np.concatenate([np.zeros(0, dtype=np.int32), *parts]).astype(np.int32)


def _bounds(lengths: Sequence[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
