"""The Python face on a real model: verbatim results, one policy on every worker, and the ways to call it."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import provence
from datapipe.errors import ConfigError, DatapipeError, DeadlineError, ItemError, ModelNotFoundError, WorkerStoppedError
from datapipe.workers import HttpWorker, LocalWorker, ModelSpec, Priority
from datapipe.workers.http.app import create_app
from provence import Pruner, sliced
from provence.assemble import Request, contexts, kept_spans
from provence.calibration import calibrate
from provence.policy import PINS, Policy
from provence.sliced import MOST_CHARACTERS
from provence.task import PruneItem, PruneScores
from provence.units.unit import TEXT_KINDS
from tests.provence.conftest import write_pruner
from tests.provence.families import checkpoints
from tests.workers.http.servers import listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence
    from pathlib import Path

    from datapipe.workers import Worker
    from provence.results import PrunedContext
    from tests.provence.conftest import Sample

QUESTION = "When did the oil crisis begin?"


@pytest.fixture
def texts(samples: list[Sample]) -> list[str]:
    """Five paragraphs."""
    return [sample.text for sample in samples[:5]]


def assert_verbatim(text: str, found: PrunedContext) -> None:
    """What holds of every pruned context."""
    assert found.text == "".join(text[start:end] for start, end in found.kept_spans)
    assert found.compression == ((len(text) - len(found.text)) / len(text) if text else 0)
    ends = [0, *(end for _, end in found.kept_spans)]
    assert all(end <= start < after for end, (start, after) in zip(ends, found.kept_spans, strict=False))
    covered = np.zeros(len(text), bool)
    for sentence in found.sentences:
        inside = any(start <= sentence.start and sentence.end <= end for start, end in found.kept_spans)
        outside = all(sentence.end <= start or end <= sentence.start for start, end in found.kept_spans)
        assert (inside, outside) == (sentence.kept, not sentence.kept)
        assert sentence.kept == bool(sentence.reason)
        assert not covered[sentence.start : sentence.end].any()
        covered[sentence.start : sentence.end] = True
    assert all(character.isspace() for character, seen in zip(text, covered, strict=True) if not seen)


def test_a_text_is_cut_to_the_sentences_above_the_threshold(pruner: Pruner, texts: list[str]) -> None:
    found = pruner.prune(QUESTION, texts, threshold=0.5)
    assert [context.index for context in found] == list(range(5))
    for text, context in zip(texts, found, strict=True):
        assert_verbatim(text, context)
        assert [sentence.kept for sentence in context.sentences] == [
            sentence.keep_probability > 0.5 for sentence in context.sentences
        ]
    assert 0 < np.mean([context.compression for context in found]) < 1
    assert found == pruner.prune(QUESTION, texts)


def test_the_white_space_between_units_goes_where_it_belongs() -> None:
    text = "  a = 1\n    b = 2\n\n    c = 3;  d = 4\n"
    starts, ends = [2, 12, 23, 31], [7, 17, 29, 36]
    assert [text[a:b] for a, b in zip(starts, ends, strict=True)] == ["a = 1", "b = 2", "c = 3;", "d = 4"]

    def left(*kept: int) -> str:
        spans = kept_spans(text, starts, ends, [bool(each) for each in kept])
        return "".join(text[start:end] for start, end in spans)

    assert left(1, 1, 1, 1) == text
    assert left(0, 0, 0, 0) == ""
    assert left(1, 0, 1, 0) == "  a = 1\n    c = 3;"
    assert left(0, 1, 0, 1) == "    b = 2\n\nd = 4"
    assert left(0, 1, 1, 0) == "    b = 2\n\n    c = 3;"
    assert kept_spans(text, starts, ends, [True, False, True, True]) == ((0, 8), (19, 36))


POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "min_keep": st.integers(0, 3),
        "always_keep_first": st.booleans(),
        "pin": st.lists(st.sampled_from(PINS), max_size=3),
        "repair": st.booleans(),
        "rule": st.sampled_from(["own", "mean"]),
        "top_n": st.integers(1, 3),
    },
)
AIMS = st.one_of(
    st.fixed_dictionaries({"threshold": st.floats(0, 1), "empty": st.sampled_from(["empty", "drop", "keep"])}),
    st.fixed_dictionaries({"budget_tokens": st.integers(1, 40), "empty": st.sampled_from(["empty", "drop"])}),
)
HOW = st.fixed_dictionaries({"kinds": st.sampled_from(TEXT_KINDS), "joint": st.booleans()})
PIECES = st.sampled_from(
    ["It rained. ", "So we stayed!", "\n\n", "\r\n", " ", "# A heading\n", "- an item\n", "| a | b |\n", "|---|---|\n",
     "```\n", "def f(x):\n", "    return x\n", '{"a": [1, "b"]}', "雨が降った。", "\u2028", "🙂", "\u0301", "2 < 3"]
)  # fmt: skip
TEXTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.lists(PIECES).map("".join))


@settings(max_examples=60)
@given(given_texts=st.lists(TEXTS, max_size=4), policy=POLICIES, aim=AIMS, how=HOW)
def test_whatever_is_asked_for_results_are_verbatim(
    pruner: Pruner, given_texts: list[str], policy: dict[str, Any], aim: dict[str, Any], how: dict[str, Any]
) -> None:
    found = pruner.prune("What was the weather?", given_texts, **how, **policy, **aim)
    for context in found:
        assert_verbatim(given_texts[context.index], context)
    kept = [context.index for context in found]
    assert len(set(kept)) == len(kept) <= policy.get("top_n", len(given_texts))
    if "top_n" not in policy:
        assert kept == sorted(kept)
        assert aim["empty"] == "drop" or len(kept) == len(given_texts)
    if "budget_tokens" in aim:
        scores = pruner.scores("What was the weather?", given_texts, **how)
        spent = sum(
            int(length)
            for context in found
            for length, sentence in zip(scores[context.index].lengths, context.sentences, strict=True)
            if sentence.kept
        )
        assert spent <= aim["budget_tokens"]


def test_texts_of_which_nothing_is_left_are_empty_dropped_or_whole(pruner: Pruner, texts: list[str]) -> None:
    empty = pruner.prune(QUESTION, [*texts, ""], threshold=1)
    assert [context.text for context in empty] == [""] * 6
    assert [context.compression for context in empty] == [1] * 5 + [0]
    assert pruner.prune(QUESTION, texts, threshold=1, empty="drop") == []
    whole = pruner.prune(QUESTION, texts, threshold=1, empty="keep")
    assert [context.text for context in whole] == texts
    assert {sentence.reason for context in whole for sentence in context.sentences} == {"whole"}
    blank = pruner.prune(QUESTION, [" \n\t", ""], empty="keep")
    assert [(each.text, each.kept_spans, each.compression) for each in blank] == [(" \n\t", ((0, 3),), 0), ("", (), 0)]
    assert [each.text for each in pruner.prune(QUESTION, [" \n\t"], empty="empty")] == [""]


def test_the_best_texts_come_first_as_rerank_has_them(pruner: Pruner, texts: list[str]) -> None:
    order = pruner.rerank(QUESTION, texts)
    assert sorted(each.index for each in order) == list(range(5))
    assert [each.relevance_score for each in order] == sorted((each.relevance_score for each in order), reverse=True)
    assert pruner.rerank(QUESTION, texts, top_n=2) == order[:2]
    for none in (0, -1):
        with pytest.raises(ConfigError, match=f"'top_n' .* must be a whole number of at least 1. Got {none}"):
            pruner.rerank(QUESTION, texts, top_n=none)
    found = pruner.prune(QUESTION, texts, top_n=3)
    assert [context.index for context in found] == [each.index for each in order[:3]]


def test_a_batch_gives_what_its_questions_give_alone(pruner: Pruner, texts: list[str]) -> None:
    pairs = [(QUESTION, texts[:2]), ("Who?", []), ("When did it end?", texts[2:])]
    titles = [["Normans", None], None, ["a", "b", "c"]]
    together = pruner.prune_batch(pairs, titles=titles, min_keep=1)
    for found, (question, some), names in zip(together, pairs, titles, strict=True):
        for one, two in zip(found, pruner.prune(question, some, titles=names, min_keep=1), strict=True):
            assert (one.text, one.index) == (two.text, two.index)
            assert one.relevance_score == pytest.approx(two.relevance_score, abs=1e-5)
    scores = pruner.scores_batch(pairs, titles=titles)
    assert [len(each) for each in scores] == [2, 0, 3]
    spans = [[[(0, len(text))] for text in some] for _, some in pairs]
    whole = pruner.prune_batch(pairs, spans=spans, threshold=0)
    assert [[context.text for context in found] for found in whole] == [list(some) for _, some in pairs]
    with pytest.raises(ConfigError, match=r"titles must be one list a question, so 3\. Got 1"):
        pruner.prune_batch(pairs, titles=[None])


async def test_the_event_loop_is_served_with_the_same(pruner: Pruner, texts: list[str]) -> None:
    many = await asyncio.gather(*(pruner.aprune(QUESTION, texts, budget_tokens=60) for _ in range(3)))
    alone = pruner.prune(QUESTION, texts, budget_tokens=60)
    for found in many:
        assert [context.text for context in found] == [context.text for context in alone]


async def arriving(texts: Sequence[str], fault: Exception | None = None) -> AsyncIterator[str]:
    for text in texts:
        await asyncio.sleep(0)
        yield text
    if fault is not None:
        raise fault


async def test_texts_are_pruned_as_they_arrive_in_their_order(pruner: Pruner, texts: list[str]) -> None:
    found = [context async for context in pruner.stream(QUESTION, arriving(texts * 3), ahead=2)]
    assert [context.index for context in found] == list(range(15))
    assert [context.text for context in found] == [context.text for context in pruner.prune(QUESTION, texts)] * 3
    dropped = [context async for context in pruner.stream(QUESTION, arriving(["", texts[0]]), empty="drop", min_keep=1)]
    assert [context.index for context in dropped] == [1]
    for options in ({"budget_tokens": 9}, {"top_n": 1}, {"joint": True}, {"ahead": 0}):
        with pytest.raises(
            ConfigError, match=r"stream prunes texts one by one: (\w+ needs all|ahead must be at least 1)"
        ):
            await anext(pruner.stream(QUESTION, arriving(texts), **options))


async def test_an_error_in_a_stream_comes_in_its_turn_and_leaves_nothing_running(
    pruner: Pruner, texts: list[str]
) -> None:
    async with aclosing(pruner.stream(QUESTION, arriving(texts * 9))) as early:
        assert (await anext(early)).index == 0
    assert len(asyncio.all_tasks()) == 1
    seen = []
    with pytest.raises(OSError, match="the source broke"):
        async for context in pruner.stream(QUESTION, arriving(texts[:3], OSError("the source broke"))):
            seen.append(context.index)  # noqa: PERF401 - what came before the error is the point
    assert seen == [0, 1, 2]
    with pytest.raises(ItemError, match="must be text"):
        async for _ in pruner.stream(QUESTION, arriving([texts[0], 7])):  # type: ignore[list-item]
            pass
    assert len(asyncio.all_tasks()) == 1


def test_texts_in_joint_windows_see_each_other_and_keep_their_own_offsets(pruner: Pruner) -> None:
    some = ["# Ada\n\nAda wrote. She slept.", "", "It rained. Dogs bark."]
    joint = pruner.prune("Who wrote?", some, joint=True, titles=["T", None, " "], kinds="markdown", min_keep=1)
    alone = pruner.scores("Who wrote?", some, kinds="markdown")
    for text, context, scores in zip(some, joint, alone, strict=True):
        assert_verbatim(text, context)
        assert [sentence.start for sentence in context.sentences] == scores.starts.tolist()
        assert [sentence.kind for sentence in context.sentences] == list(scores.kinds)
        best = max((sentence.keep_probability for sentence in context.sentences), default=0)
        assert context.relevance_score == pytest.approx(best)
    assert joint[2].sentences[0].keep_probability != pytest.approx(alone[2].probabilities[0], abs=1e-4)
    assert pruner.prune("Who wrote?", [], joint=True) == []
    with pytest.raises(ItemError, match="spans of item 1 leave out"):
        pruner.prune("Who?", some[::2], joint=True, spans=[None, [(0, 4)]])


def test_many_texts_in_joint_windows_are_several_items_of_a_bounded_size(pruner: Pruner) -> None:
    several = [f"Anna wrote letter {place}. It rained." for place in range(6)]
    several[2] = "It rained. " * 3000
    request = Request(question="Who wrote?", texts=several, joint=True)
    assert request.owners == [0, 2, 2, 3]
    assert all(len(item.text) < 1.1 * MOST_CHARACTERS for item in request.items)
    small = several[:2] + several[3:]
    found = pruner.prune("Who wrote?", [*small, *small], joint=True)
    assert [context.index for context in found] == list(range(10))
    for context in found:
        assert_verbatim(small[context.index % 5], context)
    with pytest.raises(ItemError, match="item 3 holds half a surrogate pair") as caught:
        pruner.prune("Who?", [*several[:3], "\ud800"], joint=True)
    assert caught.value.index == 3


def test_a_long_text_is_several_items_and_gives_what_one_gives(
    pruner: Pruner, pruner_worker: LocalWorker, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sliced, "MOST_CHARACTERS", 3000)
    text = "\n\n".join(sample.text for sample in samples)[:8000]
    request = Request(question=QUESTION, texts=["a", text, "b"])
    assert request.owners == [0, 1, 1, 1, 2]
    assert all(len(item.text) < 3000 + 2 * 1200 for item in request.items)
    (scores,) = pruner.scores(QUESTION, [text], titles=["Oil"])
    (one,) = pruner_worker.run("prune", [PruneItem(QUESTION, text, title="Oil")], model=pruner.model)
    assert isinstance(one, PruneScores)
    for name in ("starts", "ends", "lengths", "parents"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(one, name))
    assert (list(scores.kinds), scores.tokens) == (list(one.kinds), one.tokens)
    apart = np.abs(scores.probabilities - one.probabilities)
    assert apart[: len(apart) // 4].max() < 1e-4
    assert np.median(apart) < 0.05  # windows begin anew in each item
    (found,) = pruner.prune(QUESTION, [text])
    assert_verbatim(text, found)
    several = ["Ada wrote.", text, "It rained."]
    for context, part in zip(pruner.prune(QUESTION, several, joint=True), several, strict=True):
        assert_verbatim(part, context)
    assert pruner.rerank(QUESTION, ["", text, " "])[0].index == 1


def test_a_long_text_keeps_a_deadline_and_lets_others_go_first(pruner: Pruner, texts: list[str]) -> None:
    text = "\n\n".join(texts) * 100
    begun = time.monotonic()
    with pytest.raises(DeadlineError):
        pruner.prune(QUESTION, [text], deadline=0.3)
    pruner.prune(QUESTION, ["It rained."])  # waits at most for the batch that runs
    assert time.monotonic() - begun < 5


def test_what_is_wrong_with_an_item_is_told_of_its_text(pruner: Pruner, texts: list[str]) -> None:
    long = " ".join(texts) * 12
    with pytest.raises(ItemError, match="text of item 2 must be text") as caught:
        pruner.prune(QUESTION, [long, "a", 7])  # type: ignore[list-item]
    assert caught.value.index == 2
    for pairs, spans in [
        ([("Who?", ["a"]), ("Why?", [long, "b", 7])], None),
        ([("Who?", ["a"]), ("Why?", ["b", "c", "d"])], [None, [None, None, [7]]]),
        ([("Who?", ["a"]), ("Why?", ["b", "c", "d"])], [None, [None, None, [(0, 9)]]]),
    ]:
        with pytest.raises(ItemError, match=r"text 2 of question 1\b") as caught:
            pruner.prune_batch(pairs, spans=spans)  # type: ignore[arg-type]
        assert caught.value.index == 3
    with pytest.raises(ConfigError, match="question 1: the question is empty"):
        pruner.prune_batch([("Who?", ["a"]), (" ", ["b"])])


def test_texts_of_white_space_rank_last(pruner: Pruner, texts: list[str]) -> None:
    some = ["", *texts, " \n\t"]
    for joint in (False, True):
        found = pruner.prune(QUESTION, some, top_n=7, joint=joint)
        assert {context.index for context in found[-2:]} == {0, 6}
    order = pruner.rerank(QUESTION, some)
    assert [each.index for each in order[-2:]] == [0, 6]
    assert {each.relevance_score for each in order[-2:]} == {-10_000}


def test_a_closed_pruner_says_so(pruner_worker: LocalWorker, pruner_folder: Path) -> None:
    with Pruner.load(pruner_folder, device="cpu") as own:
        own.prune("who?", ["It rained."])
    given = Pruner.load("random-pruner", worker=pruner_worker)
    given.close()
    for closed in (own, given):
        with pytest.raises(
            WorkerStoppedError, match=r"is closed, so it prunes no more; make another with Pruner\.load"
        ):
            closed.prune("who?", ["It rained."])
        with pytest.raises(WorkerStoppedError, match="is closed"):
            asyncio.run(closed.aprune("who?", ["It rained."]))
    assert pruner_worker.health().state == "ok"


def test_a_window_longer_than_the_model_is_refused(pruner_folder: Path) -> None:
    for backend in ("torch", "onnx"):
        with pytest.raises(ConfigError, match=r"max_length must be at most 512 for this model, .* Got 4,096"):
            Pruner.load(pruner_folder, device="cpu", max_length=4096, backend=backend)


def test_a_workers_own_calibration_is_found(tmp_path: Path) -> None:
    folder = write_pruner(tmp_path / "calibrated", seed=3)
    spec = ModelSpec(name="calibrated", source=str(folder), task="prune")
    with LocalWorker([spec], device="cpu") as worker, listening(create_app(worker, models=[spec])) as address:
        digest = worker.load("calibrated", task="prune").digest
        with HttpWorker(address) as remote:
            for one, message in [(worker, "its folder has none"), (remote, "calibrated is not calibrated")]:
                pruner = Pruner.load("calibrated", worker=one)  # type: ignore[arg-type]
                with pytest.raises(DatapipeError, match=message):
                    pruner.prune(QUESTION, ["It rained."], target_recall=0.9)
            calibrate([[0.01]] * 30, model="c", digest=digest, domain="d").save(folder / "calibration.json")
            for one in (worker, remote):
                pruner = Pruner.load("calibrated", worker=one)
                (found,) = pruner.prune(QUESTION, ["It rained."], target_recall=0.9)
                assert found.sentences[0].reason == "recall"
    unknown = Pruner.load("m", worker=object())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"object knows of none: make one .* pass it as calibration="):
        unknown.prune(QUESTION, ["It rained."], target_recall=0.9)


def test_a_token_threshold_goes_with_the_threshold_of_the_share_rule() -> None:
    class Recording:
        items: Sequence[PruneItem] = ()

        def run(self, task: str, items: Sequence[PruneItem], **_: Any) -> list[PruneScores]:
            self.items = items
            raise InterruptedError

    worker = Recording()
    pruner = Pruner.load("m", worker=worker)  # type: ignore[arg-type]
    for options, want in [({}, None), ({"threshold": 0.3}, 0.3), ({"threshold": 0.3, "rule": "mean"}, None)]:
        with pytest.raises(InterruptedError):
            pruner.prune("q", ["t"], **options)  # type: ignore[arg-type]
        assert worker.items[0].share_at == want


@pytest.fixture(scope="module")
def url(pruner_worker: LocalWorker, pruner_spec: ModelSpec) -> Iterator[str]:
    with listening(create_app(pruner_worker, models=[pruner_spec])) as address:
        yield address


def test_a_remote_worker_gives_the_same_and_its_pruner_can_be_pickled(
    pruner: Pruner, texts: list[str], url: str
) -> None:
    some = [*texts, "# H\n\n- a\n- b\n", ""]
    options: dict[str, Any] = {"priority": Priority.BULK, "budget_tokens": 80, "pin": PINS, "titles": ["T"] * 7}
    with HttpWorker(url) as worker:
        remote = Pruner.load("random-pruner", worker=worker)
        assert remote.digest == pruner.digest
        assert remote.prune(QUESTION, some, **options) == pruner.prune(QUESTION, some, **options)
        whole = [[(0, len(text))] if text else [] for text in some]
        assert remote.prune(QUESTION, some, spans=whole, threshold=0)[0].text == texts[0]
        copy = pickle.loads(pickle.dumps(remote))  # noqa: S301
        assert copy.prune(QUESTION, some, **options) == pruner.prune(QUESTION, some, **options)
        assert copy.rerank(QUESTION, texts)[0].index == pruner.rerank(QUESTION, texts)[0].index
        with pytest.raises(ItemError, match=r"span 0 of item 1 .* Got 0 to 9") as caught:
            remote.prune(QUESTION, ["a", "b"], spans=[None, [(0, 9)]])
        assert caught.value.index == 1


def test_a_pruner_with_a_model_of_its_own_loads_it_again_where_it_is_unpickled(pruner_folder: Path) -> None:
    with Pruner.load(pruner_folder, device="cpu", dtype="float32") as own:
        first = own.prune("who?", ["It rained. Dogs bark."])
        copy = pickle.loads(pickle.dumps(own))  # noqa: S301
    assert copy.prune("who?", ["It rained. Dogs bark."]) == first
    copy.close()
    copy.close()
    assert copy.model == str(pruner_folder)
    assert "random-pruner" in repr(copy)


def test_windows_can_be_made_shorter(pruner_folder: Path, texts: list[str]) -> None:
    with Pruner.load(pruner_folder, device="cpu", dtype="float32", max_length=32) as short:
        found = short.prune(QUESTION, texts[:1])
        assert_verbatim(texts[0], found[0])
        with pytest.raises(ItemError, match=r"at most 22 fit .* windows of 32"):
            short.prune("why " * 40, texts[:1])
        assert short.prune("why " * 40, texts[:1], cut_question=True)[0].truncated


def test_a_calibration_is_found_in_the_models_folder_and_bound_to_the_model(tmp_path: Path, texts: list[str]) -> None:
    folder = write_pruner(tmp_path / "calibrated", seed=3)
    with Pruner.load(folder, device="cpu") as bare:
        with pytest.raises(ConfigError, match="target_recall needs a calibration"):
            bare.prune(QUESTION, texts, target_recall=0.9)
        gold = [scores.probabilities[:1] for scores in bare.scores(QUESTION, [text[:100] for text in texts * 4])]
        made = calibrate(gold, model="calibrated", digest=bare.digest, domain="normans")
    made.save(folder / "calibration.json")
    with Pruner.load(folder, device="cpu") as found:
        kept = found.prune(QUESTION, texts, target_recall=0.8)
        limit = made.threshold_for(0.8)
        assert [sentence.reason for context in kept for sentence in context.sentences] == [
            "recall" if sentence.keep_probability > limit else "" for context in kept for sentence in context.sentences
        ]
        assert asyncio.run(found.aprune(QUESTION, texts, target_recall=0.8)) == kept
    other = write_pruner(tmp_path / "other", seed=4)
    with (
        Pruner.load(other, device="cpu", calibration=folder / "calibration.json") as wrong,
        pytest.raises(ConfigError, match=r"'normans' was made with calibrated .* calibrate again with this model"),
    ):
        wrong.prune(QUESTION, texts, target_recall=0.8)


def test_a_calibration_is_for_texts_shown_as_those_it_was_made_on(pruner_worker: LocalWorker, texts: list[str]) -> None:
    digest = pruner_worker.load("random-pruner", task="prune").digest

    def with_calibration(**shown: bool) -> Pruner:
        made = calibrate([[0.5]] * 30, model="random-pruner", digest=digest, domain="news", **shown)
        return Pruner.load("random-pruner", worker=pruner_worker, calibration=made)

    titles = ["Normans", *[None] * 4]
    plain, other = with_calibration(), with_calibration(joint=True, titles=True)
    assert len(plain.prune(QUESTION, texts, target_recall=0.9, titles=[" ", *titles[1:]])) == 5
    assert len(other.prune(QUESTION, texts, target_recall=0.9, titles=titles, joint=True)) == 5
    assert len(plain.prune(QUESTION, texts, threshold=0.9, titles=titles, joint=True)) == 5
    for one, options, message in [
        (plain, {"joint": True}, "without joint, .*leave joint out"),
        (plain, {"titles": titles}, "without titles, .*leave titles out"),
        (other, {"titles": titles}, "with joint, .*give joint"),
        (other, {"joint": True}, "with titles, .*give titles"),
    ]:
        with pytest.raises(ConfigError, match=message):
            one.prune(QUESTION, texts, target_recall=0.9, **options)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=message):
            asyncio.run(one.aprune(QUESTION, texts, target_recall=0.9, **options))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="without titles"):
        plain.prune_batch([(QUESTION, texts), (QUESTION, texts)], titles=[None, titles], target_recall=0.9)


async def test_the_event_loop_is_free_while_many_texts_are_decided_on(
    pruner: Pruner, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    real = Pruner._contexts

    def watched(*given: Any) -> list[PrunedContext]:
        threads.append(threading.current_thread())
        return real(*given)

    monkeypatch.setattr(Pruner, "_contexts", watched)
    await pruner.aprune(QUESTION, texts * 8)
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.prune(" ", ["a"]), ConfigError, "the question is empty, so no text can be pruned for it"),
        (lambda p: p.rerank("", ["a"]), ConfigError, "the question is empty"),
        (lambda p: p.prune("q", "a text"), ConfigError, "texts must be a list of texts"),
        (lambda p: p.prune("q", ["a"], titles=["t", "u"]), ConfigError, r"titles must be one a text, so 1\. Got 2"),
        (lambda p: p.prune("q", ["a"], titles="t"), ConfigError, "titles must be one a text, so 1. Got one string"),
        (lambda p: p.prune("q", ["a"], kinds=[]), ConfigError, r"kinds must be one a text, so 1\. Got 0"),
        (lambda p: p.prune("q", ["a"], kinds="poem"), ItemError, "kind of item 0 must be one of auto"),
        (lambda p: p.prune("q", ["a"], treshold=0.1), ConfigError, "no option 'treshold'; there are .*cut_question"),
        (lambda p: p.prune("q", ["a"], threshold=0.1, budget_tokens=9), ConfigError, "exclude each other"),
        (lambda p: p.prune("q", ["a", 7]), ItemError, "text of item 1 must be text. Got int"),
        (lambda p: p.prune(None, ["a"]), ItemError, "question of item 0 must be text. Got NoneType"),
        (lambda p: p.prune("q", ["a", 7], joint=True), ItemError, "text of item 1 must be text. Got int"),
        (lambda p: p.prune("q", ["a"], titles=[7], joint=True), ItemError, "title of item 0 must be text. Got int"),
        (lambda p: p.prune("q", ["a"], spans=[[(0.0, 1.0)]], joint=True), ItemError, "must be lists of whole numbers"),
        (
            lambda p: p.prune("q", ["a", "b"], spans=[None, [(0, 1, 2)]]),
            ItemError,
            "spans of item 1 must be pairs .* 2\\)",
        ),
        (lambda p: p.prune("q", ["a"], spans=[[7]]), ItemError, r"spans of item 0 must be pairs .* Got \[7\]"),
        (lambda p: p.prune("q", ["a"], spans=[[(0,)]], joint=True), ItemError, "spans of item 0 must be pairs"),
        (lambda p: p.rerank("q", "abc"), ConfigError, "texts must be a list of texts, .* Got one string"),
        (lambda p: Pruner.load("m", worker=p, device="cpu"), ConfigError, "are the worker's own matter"),
        (lambda _: Pruner.load("/nowhere/at/all"), ModelNotFoundError, "there is no folder /nowhere/at/all"),
        (
            lambda _: Pruner.load("m", worker=cast("Worker", object())).digest,
            ConfigError,
            "object cannot state the digest of 'm'",
        ),
    ],
)
def test_what_is_wrong_is_said(
    pruner: Pruner, call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(pruner)


def test_without_a_default_model_the_installation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "provence.weights", None)
    with pytest.raises(ModelNotFoundError, match="without a default pruner; name a folder or a hub id"):
        Pruner.load()


@pytest.mark.parametrize("family", ["provence", "xprovence", "open_provence", "zilliz"])
@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_family_decides_by_its_published_rule_on_what_plain_modules_compute(
    tmp_path: Path, family: str, threshold: float | None
) -> None:
    made: checkpoints.Checkpoint = getattr(checkpoints, family)(tmp_path / family)
    checkpoints.tiny_tokenizer(made.folder)
    tokenizer = Tokenizer.from_file(str(made.folder / "tokenizer.json"))
    text, units = "Ada wrote. It rained. Dogs bark.", ["Ada wrote.", " It rained.", " Dogs bark."]
    question = "WHO wrote, then?"
    worded = "who wrote then" if family == "provence" else question
    lengths = [len(tokenizer.encode(unit, add_special_tokens=False)) for unit in units]
    pair = tokenizer.encode(worded, text)
    places = np.split([place for place, of in enumerate(pair.sequence_ids) if of == 1], np.cumsum(lengths)[:-1])
    keep, scores = made.expected([np.array(pair.ids, np.int32)])
    limit = threshold or {"provence": 0.1, "xprovence": 0.3}.get(family, 0.1)
    share = family in {"provence", "xprovence"}
    kept = [float(((keep[own] > limit).float() if share else keep[own]).mean()) > limit for own in places]
    with Pruner.load(made.folder, device="cpu") as pruner:
        (found,) = pruner.prune(question, [text], threshold=threshold)
        (common,) = pruner.prune(question, [text], threshold=limit, rule="mean")
    assert [sentence.kept for sentence in found.sentences] == kept
    assert [sentence.kept for sentence in common.sentences] == [float(keep[own].mean()) > limit for own in places]
    np.testing.assert_allclose(
        [sentence.keep_probability for sentence in found.sentences], [keep[own].mean() for own in places], atol=1e-4
    )
    assert found.relevance_score == pytest.approx(float(scores[0]), abs=1e-4)


def test_scores_can_be_decided_on_again_without_the_model(pruner: Pruner, texts: list[str]) -> None:
    scores = pruner.scores(QUESTION, texts)
    for options in ({"threshold": 0.3}, {"budget_tokens": 50}, {"top_n": 2}):
        again = contexts(texts, scores, Policy.of(options))
        assert [context.text for context in again] == [
            context.text for context in pruner.prune(QUESTION, texts, **options)
        ]
    assert len(Request(question="q", texts=texts).items) == 5


def test_the_package_gives_its_names_and_pulls_in_torch_only_to_load_a_model() -> None:
    assert {name: getattr(provence, name) for name in provence.__all__}["load"] == Pruner.load
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = provence.nothing
    assert dir(provence) == sorted(provence.__all__)
    code = (
        "import sys, provence\nassert not {'torch', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "provence.Pruner, provence.Policy, provence.Calibration, provence.PrunedContext\n"
        "import provence.prepare\n"
        "assert not {'torch', 'transformers', 'langchain_core'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
