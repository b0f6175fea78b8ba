"""The worker task on a real model, and what published code gets wrong about titles and long questions."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from datapipe.errors import ConfigError, ItemError, WorkerError
from datapipe.workers.folder import ModelFolder
from datapipe.workers.tasks.lookup import find_task
from datapipe.workers.tasks.rerank import RerankItem
from datapipe.workers.wire import from_arrow, to_arrow
from provence.families import open_model
from provence.families.base import Conduct, Heads
from provence.prepare import Preparer, plain_question
from provence.sums import score_texts
from provence.task import MOST_READ, PruneItem, PruneRerankTask, PruneScores, PruneTask
from provence.tokens import UnitReader, UnitTokenizer, check_spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from datapipe.storage.arrays import Int32
    from datapipe.workers import LocalWorker
    from datapipe.workers.spec import ModelSpec
    from provence.families.base import PrunerModel
    from tests.provence.conftest import Sample

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a lane of the worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(pruner_folder: Path) -> PrunerModel:
    return open_model(ModelFolder("random", pruner_folder), device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(pruner_folder: Path) -> UnitTokenizer:
    return UnitTokenizer(ModelFolder("random", pruner_folder))


@pytest.fixture(scope="module")
def task(pruner_folder: Path, pruner_spec: ModelSpec) -> PruneTask:
    return PruneTask.open(ModelFolder("random", pruner_folder), spec=pruner_spec, device=CPU, dtype=torch.float32)


def run(task: PruneTask, items: Sequence[PruneItem]) -> list[PruneScores]:
    prepared = task.prepare_many(items)
    return [task.finish(raw, each) for raw, each in zip(task.forward(prepared), prepared, strict=True)]


def assert_same(one: PruneScores, two: PruneScores, *, tolerance: float = 0) -> None:
    for field in fields(PruneScores):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_allclose(a, b, atol=tolerance, rtol=0)
        elif isinstance(a, float):
            assert a == pytest.approx(b, abs=tolerance)
        else:
            assert a == b


def test_a_text_in_one_window_has_the_means_of_its_sentences_tokens(
    task: PruneTask, model: PrunerModel, tokenizer: UnitTokenizer
) -> None:
    text = "It was painted in Delft. Nobody knows why!"
    (found,) = run(task, [PruneItem("Where was it painted?", text)])
    whole = tokenizer._whole.encode("Where was it painted?", text)
    keep, score = model.heads([np.array(whole.ids, np.int32)])
    places = [place for place, of in enumerate(whole.sequence_ids) if of == 1]
    assert [text[start:end] for start, end in zip(found.starts, found.ends, strict=True)] == [
        "It was painted in Delft.",
        "Nobody knows why!",
    ]
    np.testing.assert_allclose(found.probabilities, [keep[places[:7]].mean(), keep[places[7:]].mean()], atol=1e-6)
    assert found.score == pytest.approx(float(score[0]), abs=1e-6)
    assert found.lengths.tolist() == [7, 4]
    assert found.tokens == 5 + 11
    assert (found.rule, found.threshold, found.shares, found.truncated) == ("mean", 0.5, None, False)


def test_scores_do_not_depend_on_what_else_is_in_the_batch_or_how_it_is_cut(
    model: PrunerModel, tokenizer: UnitTokenizer, samples: list[Sample]
) -> None:
    preparer = Preparer(tokenizer, model.conduct, max_length=128)
    items = [PruneItem(sample.question, sample.text * (1 + place % 3)) for place, sample in enumerate(samples[:3])]
    prepared = preparer.prepare_many(items)
    together = score_texts(model, prepared, chunk_tokens=10_000)
    cut = score_texts(model, prepared, chunk_tokens=130)
    alone = [score_texts(model, [each], chunk_tokens=10_000)[0] for each in prepared]
    for others in (cut, alone):
        for one, two in zip(together, others, strict=True):
            np.testing.assert_allclose(one.probabilities, two.probabilities, atol=2e-5)
            assert one.score == pytest.approx(two.score, abs=2e-5)
    assert any(len(each.windows) > 2 for each in prepared)


class Counting:
    """Keep probability and score that can be told from the token ids; the real sums run over them."""

    padded, vocabulary, positions, nbytes = False, 30_522, 512, 0

    def __init__(self, *, rule: str = "share", threshold: float = 0.25, broken: bool = False) -> None:
        self.conduct = Conduct(family="counting", rule=rule, threshold=threshold, max_length=128)  # type: ignore[arg-type]
        self._broken = broken

    def heads(self, windows: Sequence[Int32]) -> Heads:
        ids = torch.from_numpy(np.concatenate(windows))
        scores = torch.tensor([float(len(window)) for window in windows])
        return Heads((ids % 97) / 97, scores / 0 if self._broken else scores)


LIMIT = float(np.float32(38) / np.float32(97))
"""A probability that some tokens have exactly, so they are not above it."""


@pytest.mark.parametrize("max_length", [16, 24, 128])
def test_sums_over_overlapping_windows_and_cut_units_are_those_of_the_units_tokens(
    tokenizer: UnitTokenizer, samples: list[Sample], max_length: int
) -> None:
    model = Counting()
    preparer = Preparer(tokenizer, model.conduct, max_length=max_length)
    items = [PruneItem("who?", sample.text, title="A title", share_at=LIMIT) for sample in samples[:5]]
    prepared = preparer.prepare_many(items)
    for item, each, raw in zip(items, prepared, score_texts(model, prepared, chunk_tokens=64), strict=True):
        units = [item.text[start:end] for start, end in zip(each.text.starts, each.text.ends, strict=True)]
        values = [(ids % 97).astype(np.float32) / np.float32(97) for ids in tokenizer.pieces(units)]
        np.testing.assert_allclose(raw.probabilities, [value.mean() for value in values], atol=1e-6)
        assert raw.shares is not None
        np.testing.assert_allclose(raw.shares, [(value > np.float32(LIMIT)).mean() for value in values], atol=1e-6)
        assert raw.score == max(len(window.ids) for window in each.windows)


def test_output_that_is_not_finite_is_a_fault_of_the_device(tokenizer: UnitTokenizer) -> None:
    model = Counting(broken=True)
    prepared = Preparer(tokenizer, model.conduct, max_length=128).prepare_many([PruneItem("who?", "Me.")])
    with pytest.raises(FloatingPointError, match="score of text 0 of the batch is not finite"):
        score_texts(model, prepared, chunk_tokens=64)


def test_an_empty_text_has_no_units_and_a_score(pruner_worker: LocalWorker) -> None:
    for text in ("", " \n\t"):
        (found,) = pruner_worker.run("prune", [PruneItem("who?", text)], model="random-pruner")
        assert (len(found.starts), len(found.probabilities)) == (0, 0)
        assert np.isfinite(found.score)


def test_a_unit_without_tokens_has_probability_0(task: PruneTask) -> None:
    (found,) = run(task, [PruneItem("who?", "a\u200db \x00 c", starts=[0, 4, 6], ends=[3, 5, 7])])
    assert found.lengths[1] == 0
    assert found.probabilities[1] == 0


def test_a_question_that_leaves_no_room_is_refused_or_cut_as_asked(task: PruneTask) -> None:
    """OpenProvence lets it through, then cuts every fragment of the text to one token."""
    item = PruneItem("why " * 300, "It rained. So we stayed.")
    with pytest.raises(ItemError, match=r"item 1 has 300 tokens, but at most 94 fit .* windows of 128") as caught:
        task.prepare_many([replace(item, question="why"), item])
    assert caught.value.index == 1
    (found,) = run(task, [replace(item, cut_question=True)])
    assert found.truncated
    assert found.tokens == 300 + 7
    (same,) = run(task, [replace(item, question="why " * 94)])
    assert not same.truncated
    np.testing.assert_array_equal(found.probabilities, same.probabilities)


def test_a_title_is_shown_but_not_scored(task: PruneTask) -> None:
    item = PruneItem("Who painted it?", "Vermeer painted it. It hangs in The Hague.")
    bare, titled = run(task, [item, replace(item, title="Girl with a Pearl Earring")])
    assert titled.lengths.tolist() == bare.lengths.tolist()
    assert titled.starts.tolist() == bare.starts.tolist()
    assert titled.tokens == bare.tokens + 6
    assert np.abs(titled.probabilities - bare.probabilities).max() > 1e-4
    (long,) = run(task, [replace(item, title="pearl " * 400)])
    assert long.lengths.tolist() == bare.lengths.tolist()


def test_a_title_shifts_no_sentence_onto_the_tokens_of_another(
    task: PruneTask, model: PrunerModel, tokenizer: UnitTokenizer
) -> None:
    """OpenProvence reads the sentences of a titled text too early, by the tokens of the title: the wrong is kept."""
    question, title = "Where was it painted?", "Girl with a Pearl Earring"
    text = "It was painted in Delft. Nobody knows!"
    (found,) = run(task, [PruneItem(question, text, title=title)])
    whole = tokenizer._whole.encode(question, f"{title} {text}")
    keep, _ = model.heads([np.array(whole.ids, np.int32)])
    places = [place for place, of in enumerate(whole.sequence_ids) if of == 1]
    assert [whole.tokens[place] for place in (places[6], places[13])] == ["it", "nobody"]
    np.testing.assert_allclose(found.probabilities, [keep[places[6:13]].mean(), keep[places[13:]].mean()], atol=1e-6)
    shifted = [float(keep[places[:7]].mean()), float(keep[places[7:10]].mean())]
    assert np.abs(found.probabilities - shifted).max() > 1e-3


def test_own_spans_are_kept_to_and_must_cover_the_text(task: PruneTask) -> None:
    item = PruneItem("who?", "One. Two three.", starts=[0, 9], ends=[8, 15])
    (found,) = run(task, [item])
    assert (found.starts.tolist(), found.ends.tolist(), found.kinds) == ([0, 9], [8, 15], ["sentence"] * 2)
    wrong: list[tuple[Any, Any, str]] = [
        ([0, 9], [4, 15], r"leave out characters 4 to 9, 'Two'"),
        ([0, 6], [8, 15], r"span 1 of item 0 must begin at 8 or later"),
        ([0], [16], r"within the 15 characters of the text. Got 0 to 16"),
        ([0], [4, 15], r"1 starts, but 2 ends"),
        ([0], None, r"starts without ends"),
        (None, [15], r"ends without starts"),
        ([0.5], [15], r"starts and ends of item 0 must be lists of whole numbers"),
    ]
    for starts, ends, message in wrong:
        with pytest.raises(ItemError, match=message):
            task.prepare_many([replace(item, starts=starts, ends=ends)])
    check_spans("", [], [], index=0)


def test_what_callers_are_given_of_the_cache_cannot_be_changed(task: PruneTask) -> None:
    item = PruneItem("who?", "One here. Two there.")
    (found,) = run(task, [item])
    for array in (found.starts, found.ends, found.parents):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert run(task, [item])[0].starts.tolist() == [0, 10]


def test_windows_too_short_for_a_question_and_a_text_are_refused(model: PrunerModel, tokenizer: UnitTokenizer) -> None:
    with pytest.raises(ConfigError, match=r"max_length must be at least 5 for this model, 3 special tokens .* Got 4"):
        Preparer(tokenizer, model.conduct, max_length=4)
    preparer = Preparer(tokenizer, model.conduct, max_length=5)
    (prepared,) = preparer.prepare_many([PruneItem("who is it?", "One here. Two there.", cut_question=True)])
    assert {len(window.ids) for window in prepared.windows} == {5}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("text", "item 0 must be a PruneItem. Got str"),
        (PruneItem(7, "text"), "the question of item 0 must be text. Got int"),  # type: ignore[arg-type]
        (PruneItem("q", None), "the text of item 0 must be text. Got NoneType"),  # type: ignore[arg-type]
        (PruneItem("q", "text", title=7), "the title of item 0 must be text"),  # type: ignore[arg-type]
        (PruneItem("q", "text", kind="poem"), "the kind of item 0 must be one of auto, prose"),  # type: ignore[arg-type]
        (PruneItem("q", "text", share_at=2), "share_at of item 0 must lie between 0 and 1. Got 2"),
        (PruneItem("q", "te\ud800xt."), "item 0 holds half a surrogate pair"),
        (PruneItem("q\ud800", "text"), "the question of item 0 holds half a surrogate pair"),
    ],
)
def test_an_unusable_item_is_refused_by_its_place(task: PruneTask, item: Any, message: str) -> None:
    with pytest.raises(ItemError, match=message):
        task.prepare_many([item])
    with pytest.raises(ItemError, match=message.replace("item 0", "item 8")) as caught:
        task.prepare_many([PruneItem("q", "text"), item], first=7)
    assert caught.value.index == 8


def test_a_text_is_read_once_for_many_questions(
    pruner_folder: Path, model: PrunerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    real = UnitTokenizer.pieces

    def pieces(self: UnitTokenizer, texts: Sequence[str]) -> list[Int32]:
        reads.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(UnitTokenizer, "pieces", pieces)
    preparer = Preparer(UnitTokenizer(ModelFolder("m", pruner_folder)), model.conduct, max_length=128)
    text = "One here. Another there."
    preparer.prepare_many([PruneItem(f"question {place}", text) for place in range(5)])
    preparer.prepare_many([PruneItem("another", text)])
    assert sum("Another there." in read for read in reads) == 1
    preparer.prepare_many([PruneItem("another", text, kind="log"), PruneItem("another", text, title="t")])
    assert sum("nother there." in read for read in reads) == 3


def test_the_cache_stays_within_its_bytes_and_changes_nothing(model: PrunerModel, tokenizer: UnitTokenizer) -> None:
    small = Preparer(tokenizer, model.conduct, max_length=128, cache_bytes=5_000)
    none = Preparer(tokenizer, model.conduct, max_length=128, cache_bytes=0)
    items = [PruneItem("who?", f"Text {place} is here. It stays.") for place in range(50)]
    for _ in range(2):
        for one, two in zip(small.prepare_many(items), none.prepare_many(items), strict=True):
            assert [window.ids.tolist() for window in one.windows] == [window.ids.tolist() for window in two.windows]
    cache = small._reader._cache
    assert 0 < cache._bytes <= 5_000
    assert cache._bytes == sum(kept.nbytes for kept in cache._kept.values())
    assert not none._reader._cache._kept


def test_what_was_used_last_stays_in_the_cache(model: PrunerModel, tokenizer: UnitTokenizer) -> None:
    first, second, third = (PruneItem("who?", f"Text {place} is here.") for place in range(3))
    size = UnitReader(tokenizer, spaced=True).read([first])[0].nbytes
    reader = UnitReader(tokenizer, spaced=True, cache_bytes=2 * size)
    kept = reader.read([first])[0]
    dropped = reader.read([second])[0]
    assert reader.read([first])[0] is kept
    reader.read([third])
    assert reader.read([first])[0] is kept
    assert reader.read([second])[0] is not dropped


def test_items_and_results_keep_their_values_over_arrow(task: PruneTask, samples: list[Sample]) -> None:
    items = [
        PruneItem("who?", samples[0].text, title="A title", kind="prose", cut_question=True, share_at=0.3),
        PruneItem("who?", "One. Two.", starts=[0, 5], ends=[4, 9]),
        PruneItem("who?", ""),
    ]
    schema = PruneTask.item_schema()
    back = from_arrow(to_arrow(items, schema), schema, PruneItem)
    for one, two in zip(run(task, items), run(task, back), strict=True):
        assert_same(one, two)
    results = [*run(task, items), replace(run(task, items)[0], shares=np.array([0.5] * 4, np.float32))]
    schema = PruneTask.result_schema()
    for one, two in zip(results, from_arrow(to_arrow(results, schema), schema, PruneScores), strict=True):
        assert_same(one, two)


def test_the_pass_also_reranks(pruner_worker: LocalWorker, samples: list[Sample]) -> None:
    texts = [sample.text for sample in samples[:6]]
    pruned = pruner_worker.run("prune", [PruneItem("who?", text) for text in texts], model="random-pruner")
    ranked = pruner_worker.run("prune_rerank", [RerankItem("who?", text) for text in texts], model="random-pruner")
    assert [found.score for found in ranked] == pytest.approx([1 / (1 + math.exp(-found.score)) for found in pruned])
    (long,) = pruner_worker.run("prune_rerank", [RerankItem("why " * 300, "Rain.")], model="random-pruner")
    assert long.truncated
    (blank,) = pruner_worker.run("prune_rerank", [RerankItem("who?", " ")], model="random-pruner")
    assert blank.score == 0
    long_text = "Rain fell. " * 4000
    read = [long_text, long_text[:MOST_READ], "Rain fell."]
    whole, beginning, short = pruner_worker.run(
        "prune_rerank", [RerankItem("why?", text) for text in read], model="random-pruner"
    )
    assert (whole.truncated, beginning.truncated, short.truncated) == (True, False, False)
    assert (whole.score, whole.tokens) == (pytest.approx(beginning.score, abs=1e-5), beginning.tokens)
    with pytest.raises(ItemError, match=r"item 0 must be a RerankItem\. Got PruneItem"):
        pruner_worker.run("prune_rerank", [PruneItem("a", "b")], model="random-pruner")
    assert (find_task("prune"), find_task("prune_rerank")) == (PruneTask, PruneRerankTask)
    assert (PruneRerankTask.derives_from, PruneRerankTask.reranks, PruneTask.reranker) == (
        "prune",
        True,
        "prune_rerank",
    )


def test_a_fault_of_the_model_reaches_the_caller_as_a_workers_error(
    pruner_worker: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise FloatingPointError("the score of text 0 of the batch is not finite")

    monkeypatch.setattr("provence.sums.score_texts", broken)
    with pytest.raises(WorkerError, match="is not finite"):
        pruner_worker.run("prune", [PruneItem("who?", "Me.")], model="random-pruner")


def test_questions_are_worded_as_provence_was_trained() -> None:
    assert plain_question("  What's the capital\tof  France?! ") == "whats the capital of france"


def test_units_are_tokenised_with_the_white_space_that_their_family_wants(tokenizer: UnitTokenizer) -> None:
    seen: list[str] = []

    class Watching(UnitTokenizer):
        def __init__(self) -> None:
            self._whole = tokenizer._whole

        def pieces(self, texts: Sequence[str]) -> list[Int32]:
            seen.extend(texts)
            return super().pieces(texts)

    ways: list[tuple[dict[str, Any], str | None, list[str]]] = [
        ({}, None, ["Stop it.", " Go."]),
        ({}, "T", [" Stop it.", " Go."]),
        ({"spaced": False}, None, ["Stop it.", "Go."]),
        ({"trailing": True}, "T", ["Stop it.  ", "Go.\n"]),
    ]
    for way, title, want in ways:
        seen.clear()
        conduct = Conduct(family="f", rule="mean", threshold=0.5, **way)
        preparer = Preparer(Watching(), conduct, max_length=128)
        preparer.prepare_many([PruneItem("q", "Stop it.  Go.\n", title=title)])
        assert seen[-2:] == want
