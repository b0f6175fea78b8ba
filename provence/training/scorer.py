"""A network under training as a scorer of the measuring protocol, and its figures on held-out questions.

passages -> a bank of their own -> windows (whole sentences, as many windows as it takes) -> predict -> PassageScores
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from datapipe.errors import ConfigError
from provence.training.bank import BankBuilder
from provence.training.sources import Guard
from provence.training.store import Store
from provence.training.train import predict
from provence.training.windows import Windows

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from tokenizers import Tokenizer

    from provence.evaluation.protocol import Passage, PassageScores
    from provence.training.bank import Bank
    from provence.training.config import WindowConfig
    from provence.training.network import PrunerNetwork
    from provence.training.windows import Template

__all__ = ["NetworkScorer", "held_figures", "whole_windows"]


@dataclass(eq=False)
class NetworkScorer:
    """Scores passages with a network (`provence.evaluation.protocol.Scorer`).

    Attributes:
        name: In the report.
        network: On its device.
        tokenizer: Of the bank's vocabulary.
        template: Of the network.
        device: Of the network.
        windows: Caps on questions, sentences and windows.
        threshold: Its own.
    """

    name: str
    network: PrunerNetwork
    tokenizer: Tokenizer
    template: Template
    device: torch.device
    windows: WindowConfig
    threshold: float | None = 0.5

    def score(self, passages: Sequence[Passage]) -> list[PassageScores]:
        """Mean keep probability of each sentence, and the best score of a passage's windows."""
        from provence.evaluation.protocol import PassageScores
        from provence.evaluation.sets import Example

        if not passages:
            return []
        builder = BankBuilder(self.tokenizer, self.windows, Guard())
        for each in passages:
            whole = each.example
            spans = (each.starts, each.ends, each.gold)
            part = Example(whole.id, whole.question, "", each.text, *spans, whole.answers, whole.answerable)
            builder.add_alone(part)
        bank = builder.build()
        windows = whole_windows(bank, room=self.windows.max_tokens - self.template.special)
        store = Store.of(bank, windows, self.template, device=self.device)
        found = predict(self.network, store)
        keep, score = found.keep.cpu().numpy().astype(np.float64), found.score.cpu().numpy()
        best = np.full(len(passages), -np.inf)
        np.maximum.at(best, windows.question, score)
        if not np.isfinite(best).all():
            raise ConfigError("a passage without sentences cannot be scored")
        bounds = np.cumsum([len(each.starts) for each in passages])[:-1]
        parts = np.split(keep, bounds)
        return [PassageScores(part, float(one)) for part, one in zip(parts, best, strict=True)]


def held_figures(
    network: PrunerNetwork, store: Store, bank: Bank, windows: Windows, names: Sequence[str]
) -> dict[str, float]:
    """Share of characters removed at 90 % recall for each source's held-out questions, and their mean, `macro`.

    Empty if none is held out.
    """
    from provence.evaluation.metrics import removed_at_recall

    keep = predict(network, store).keep.cpu().numpy().astype(np.float64)
    source = bank.source[windows.question]
    each = np.repeat(source, np.diff(windows.at))
    characters = bank.characters[windows.sentence].astype(np.int64)
    figures: dict[str, float] = {}
    for place, name in enumerate(names):
        chosen = each == place
        gold = windows.label[chosen] == 1
        if gold.any():
            figures[name] = removed_at_recall(keep[chosen], gold, characters[chosen], 0.9)
    return figures | ({"macro": float(np.mean(list(figures.values())))} if figures else {})


def whole_windows(bank: Bank, *, room: int) -> Windows:
    """Each question with its whole document, in as many windows as it takes, sentences in order and once each.

    Args:
        bank: Where they come from.
        room: Tokens of question and sentences of a window.
    """
    lengths = np.diff(bank.token_at)
    question: list[int] = []
    bounds = [0]
    for place in range(bank.questions):
        document = bank.document[place]
        asked = int(bank.word_at[bank.asked[place] + 1] - bank.word_at[bank.asked[place]])
        total = 0
        for sentence in range(int(bank.sentence_at[document]), int(bank.sentence_at[document + 1])):
            if total and asked + total + lengths[sentence] > room:
                question.append(place)
                bounds.append(sentence)
                total = 0
            total += int(lengths[sentence])
        question.append(place)
        bounds.append(int(bank.sentence_at[document + 1]))
    label = np.zeros(bounds[-1], dtype=np.uint8)
    label[bank.sentence_at[bank.document].repeat(np.diff(bank.gold_at)) + bank.gold] = 1
    return Windows(
        question=np.array(question, dtype=np.int32),
        title=np.full(len(question), -1, dtype=np.int32),
        sentence=np.arange(bounds[-1], dtype=np.int32),
        label=cast("np.ndarray", label),
        at=np.array(bounds, dtype=np.int64),
    )
