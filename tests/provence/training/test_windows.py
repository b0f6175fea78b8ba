"""Banks and windows: what a pruner sees of a real set, and what it never sees."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datapipe.errors import ConfigError, ModelError, SourceError
from provence.evaluation.protocol import passages_of
from provence.training.bank import Bank, BankBuilder
from provence.training.config import SourceConfig, WindowConfig
from provence.training.distil import joined_windows
from provence.training.epochs import EpochDrawer
from provence.training.sampler import training_windows
from provence.training.sources import Guard, read_source
from provence.training.store import Store, assemble, plan
from provence.training.templates import template_of
from provence.training.windows import Template, Windows, protocol_windows
from tests.provence.training.tiny import CPU, DATA, SQUAD, bank, examples, template, tokenizer

if TYPE_CHECKING:
    from pathlib import Path


def sentences_of(windows: Windows, place: int) -> list[int]:
    found: list[int] = windows.sentence[windows.at[place] : windows.at[place + 1]].tolist()
    return found


def test_a_window_is_question_and_sentences_between_the_special_tokens_of_the_tokenizer() -> None:
    example = examples()[0]
    builder = BankBuilder(tokenizer(), WindowConfig(), Guard())
    builder.add_alone(example)
    made = builder.build()
    count = len(example.starts)
    windows = Windows(
        question=np.zeros(1, np.int32),
        title=np.full(1, -1, np.int32),
        sentence=np.arange(count, dtype=np.int32),
        label=example.relevant.astype(np.uint8),
        at=np.array([0, count]),
    )
    flat = assemble(made, windows, template(), device=CPU)
    cut = [example.context[a:b] for a, b in zip(example.starts.tolist(), example.ends.tolist(), strict=True)]
    expected = tokenizer().encode(example.question, " ".join(cut))
    assert flat.ids.tolist() == expected.ids
    lengths = [len(tokenizer().encode(part, add_special_tokens=False)) for part in cut]
    document = [unit for unit, length in enumerate(lengths) for _ in range(length)]
    assert flat.unit.tolist() == [-1] * (len(expected.ids) - len(document) - 1) + document + [-1]


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 2**31),
    st.integers(64, 512),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 0.9),
)
def test_windows_fit_are_labelled_as_the_set_says_and_hold_no_held_out_question(
    seed: int, most: int, joined: float, titles: float, random: float, duplicates: float
) -> None:
    made = bank()
    config = WindowConfig(
        max_tokens=most, joined_share=joined, title_share=titles, random_share=random, duplicates=duplicates, far=0.7
    )
    windows = training_windows(made, config, seed=seed)
    assert not made.held[windows.question].any()
    lengths = np.diff(assemble(made, windows, template(), device=CPU).at.numpy())
    single = np.diff(windows.at) == 1
    assert (lengths[~single] <= most).all()
    for place in range(0, len(windows), 7):
        question = windows.question[place]
        first = made.sentence_at[made.document[question]]
        gold = {int(first + g) for g in made.gold[made.gold_at[question] : made.gold_at[question + 1]]}
        shown = sentences_of(windows, place)
        assert len(set(shown)) == len(shown) > 0
        labels = windows.label[windows.at[place] : windows.at[place + 1]].tolist()
        assert labels == [int(sentence in gold) for sentence in shown]
    keys = {(int(windows.question[i]), tuple(sentences_of(windows, i))) for i in range(len(windows))}
    assert len(windows) - len(keys) <= duplicates * len(windows) + 1


def test_gold_stands_at_every_place_of_a_passage() -> None:
    windows = training_windows(bank(), WindowConfig(joined_share=0.0, random_share=1.0), seed=0)
    places = [
        windows.label[windows.at[i] : windows.at[i + 1]].argmax() / (windows.at[i + 1] - windows.at[i] - 1)
        for i in np.flatnonzero(windows.holds_gold())
        if windows.at[i + 1] - windows.at[i] > 2
    ]
    counts = np.histogram(places, bins=3, range=(0, 1))[0]
    assert counts.min() > 0.15 * counts.sum()


def test_the_same_seed_draws_the_same_epoch_and_another_seed_another(tmp_path: Path) -> None:
    one, same = (training_windows(bank(), WindowConfig(), seed=5) for _ in range(2))
    other = training_windows(bank(), WindowConfig(), seed=6)
    assert np.array_equal(one.sentence, same.sentence)
    assert not np.array_equal(one.sentence, other.sentence)
    with EpochDrawer(bank(), WindowConfig(), seed=5, folder=tmp_path) as drawer:
        drawn, again = drawer.windows(1), drawer.windows(1)
    assert np.array_equal(drawn.sentence, other.sentence)
    assert np.array_equal(drawn.label, again.label)
    assert len(list(tmp_path.iterdir())) == 1
    held = dataclasses.replace(bank(), held=~bank().held)
    with EpochDrawer(held, WindowConfig(), seed=5, folder=tmp_path) as drawer:
        assert not np.isin(drawer.windows(1).question, drawn.question).any()


def test_held_out_questions_are_shown_as_the_measuring_protocol_shows_them() -> None:
    made = bank()
    windows = protocol_windows(made)
    assert made.held[windows.question].all()
    assert set(windows.question.tolist()) == set(np.flatnonzero(made.held).tolist())
    shown = {question: int((windows.question == question).sum()) for question in set(windows.question.tolist())}
    admitted = dict(enumerate(examples()))
    for question, count in shown.items():
        assert count == len(passages_of(admitted[question]))


def test_a_bank_comes_back_as_it_was_saved_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    bank().save(tmp_path / "bank.npz")
    back = Bank.load(tmp_path / "bank.npz")
    for item in dataclasses.fields(Bank):
        assert np.array_equal(getattr(back, item.name), getattr(bank(), item.name))
    (tmp_path / "bank.npz").write_bytes(b"PK damaged")
    with pytest.raises(SourceError, match=r"bank\.npz is no bank of token ids"):
        Bank.load(tmp_path / "bank.npz")


def test_no_document_is_partly_held_out() -> None:
    made = bank()
    held, trained = set(made.document[made.held].tolist()), set(made.document[~made.held].tolist())
    assert held
    assert trained
    assert not held & trained


@pytest.mark.parametrize("change", ["title", "title as shown", "context", "part", "question"])
def test_nothing_of_a_protected_set_is_admitted(change: str) -> None:
    example = examples()[0]
    other = next(e for e in examples() if e.title != example.title)
    cut = int(example.ends[2])
    whole = {"starts": example.starts, "ends": example.ends, "relevant": example.relevant}
    shapes: dict[str, dict[str, Any]] = {
        "title": {"title": example.title},
        "title as shown": {"title": example.title.replace("_", " ").upper()},
        "context": {"context": example.context.replace(" ", "  ", 1).upper(), **whole},
        "part": {"context": example.context[:cut], **{name: array[:3] for name, array in whole.items()}},
        "question": {"question": example.question.upper() + " ?"},
    }
    guard = Guard.over([example])
    assert guard.admits(other)
    assert not guard.admits(dataclasses.replace(other, **shapes[change]))


def test_the_test_split_cannot_be_trained_on() -> None:
    with pytest.raises(ConfigError, match="source squad20_dev: its test split is for figures"):
        read_source(SourceConfig(name=SQUAD, splits=("train", "test")), DATA)


def test_batches_hold_every_window_once_and_their_units_belong_to_them() -> None:
    windows = training_windows(bank(), WindowConfig(), seed=0)
    store = Store.of(bank(), windows, template(), device=CPU)
    batches = plan(store.lengths, batch_tokens=4096, rng=np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(windows)))
    for chosen in batches[:6]:
        batch = store.batch(chosen)
        assert batch.ids.numel() <= 4096
        assert torch.equal(batch.target, store.target[batch.order])
        for row, place in enumerate(chosen.tolist()):
            tokens = slice(int(store.at[place]), int(store.at[place + 1]))
            length = tokens.stop - tokens.start
            assert torch.equal(batch.ids[row, :length], store.ids[tokens].long())
            none = len(batch.target)
            units = [-1 if u == none else int(batch.order[u]) for u in batch.unit[row].tolist()]
            assert units == store.unit[tokens].tolist() + [-1] * (batch.ids.shape[1] - length)


def test_windows_of_several_epochs_are_taken_once() -> None:
    parts = [training_windows(bank(), WindowConfig(title_share=0.0), seed=seed) for seed in (0, 0, 1)]
    joined = joined_windows(parts, most=10_000, seed=0)
    keys = [(int(joined.question[i]), tuple(sentences_of(joined, i))) for i in range(len(joined))]
    assert len(set(keys)) == len(keys)
    assert len(joined_windows(parts, most=50, seed=0)) == 50


def test_a_tokenizer_of_shifted_ids_shares_the_bank_and_another_is_refused() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    def words(shift: int, *more: str) -> Tokenizer:
        names = ["water", "stone", "fire", *more]
        made = Tokenizer(WordLevel({"<s>": 0, "</s>": 1} | {w: 2 + shift + i for i, w in enumerate(names)}, "<s>"))
        made.pre_tokenizer = Whitespace()
        pair = "<s> $A </s> </s> $B </s>"
        made.post_processor = TemplateProcessing("<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 1)])
        made.add_special_tokens(["<s>", "</s>"])
        return made

    assert template_of(words(7), words(0)) == Template((0,), (1, 1), (1,), 7)
    with pytest.raises(ModelError, match="differ by 1 shifts, and 1 words are in one only"):
        template_of(words(0), words(0, "air"))
