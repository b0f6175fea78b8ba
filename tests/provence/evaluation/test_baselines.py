"""The baselines say what their formulas say, on sentences of a real set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from datapipe.errors import ConfigError
from datapipe.weights import embedded_folder
from datapipe.workers import LocalWorker, ModelSpec, TextItem
from provence.evaluation.baselines import BASELINES, EMBEDDER, Bm25, IdfOverlap, KeepAll, Lead, baselines
from provence.evaluation.protocol import outcome_of, passages_of_set
from provence.evaluation.report import figures_of
from provence.evaluation.sets import Example, read_examples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from provence.evaluation.protocol import Passage


@pytest.fixture(scope="module")
def examples(data: Path) -> list[Example]:
    return read_examples(data / "squad20_dev.parquet", split="test", limit=40)


@pytest.fixture(scope="module")
def passages(examples: list[Example]) -> list[Passage]:
    return passages_of_set(examples)


@pytest.fixture(scope="module")
def embedder() -> Iterator[LocalWorker]:
    with LocalWorker([ModelSpec(EMBEDDER, str(embedded_folder(EMBEDDER)))], device="cpu") as worker:
        yield worker


def made(sentences: list[str], question: str) -> list[Passage]:
    """One passage of these sentences."""
    ends = np.cumsum([len(sentence) + 1 for sentence in sentences]).astype(np.int32) - 1
    starts = ends - np.array([len(sentence) for sentence in sentences], dtype=np.int32)
    gold = np.zeros(len(sentences), dtype=bool)
    return passages_of_set([Example("q", question, "", " ".join(sentences), starts, ends, gold, (), answerable=False)])


def test_idf_overlap_is_the_share_of_the_questions_weight_that_a_sentence_holds() -> None:
    (found,) = IdfOverlap().score(made(["Rain fell.", "Anna saw rain.", "None."], "Did Anna see rain?"))
    idf = {word: math.log(4 / (df + 0.5)) for word, df in {"did": 0, "anna": 1, "see": 0, "rain": 2}.items()}
    total = sum(idf.values())
    expected = [idf["rain"] / total, (idf["anna"] + idf["rain"]) / total, 0.0]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.probabilities[2] < 0, "equal shares are divided by length"


def test_bm25_is_that_of_its_formula() -> None:
    (found,) = Bm25().score(made(["Rain fell.", "Anna saw rain, rain.", "None."], "rain"))
    idf, mean = math.log(1 + (3 - 2 + 0.5) / 2.5), 7 / 3
    expected = [idf * n * 2.2 / (n + 1.2 * (0.25 + 0.75 * size / mean)) for n, size in ((1, 2), (2, 4), (0, 1))]
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)


def test_keep_all_removes_nothing_and_lead_keeps_the_first_three(
    passages: list[Passage], examples: list[Example]
) -> None:
    whole = outcome_of(passages, KeepAll().score(passages), examples)
    figures = figures_of(whole, threshold=KeepAll.threshold, samples=20).values
    assert (figures["recall"], figures["removed"], figures["removed_at_90"]) == (1.0, 0.0, 0.0)
    lead = Lead()
    for passage, scores in zip(passages, lead.score(passages), strict=True):
        kept = np.asarray(scores.probabilities) >= lead.threshold
        assert kept.tolist() == [place < 3 for place in range(passage.starts.size)]


def test_cosines_are_those_of_the_embedder(passages: list[Passage], embedder: LocalWorker) -> None:
    sentence, whole = baselines(["sentence_cosine", "passage_cosine"], worker=embedder)
    some = passages[:6]
    for passage, by_sentence, by_passage in zip(some, sentence.score(some), whole.score(some), strict=True):
        texts = [passage.text[start:end] for start, end in zip(passage.starts, passage.ends, strict=True)]
        items = [TextItem(text) for text in (passage.example.question, passage.text, *texts)]
        question, together, *each = (found.vector for found in embedder.run("embed", items, model=EMBEDDER))
        np.testing.assert_allclose(by_sentence.probabilities, [vector @ question for vector in each], atol=0.02)
        assert by_sentence.score == max(by_sentence.probabilities)
        assert by_passage.score == pytest.approx(float(together @ question), abs=0.02)
        assert set(by_passage.probabilities) == {by_passage.score}


def test_every_baseline_scores_every_sentence_of_a_set(
    passages: list[Passage], examples: list[Example], embedder: LocalWorker
) -> None:
    for scorer in baselines(BASELINES, worker=embedder):
        outcome = outcome_of(passages, scorer.score(passages), examples)
        assert outcome.probabilities.size == sum(passage.starts.size for passage in passages)


def test_an_unknown_baseline_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no baseline tfidf\. There are keep_all, lead"):
        baselines(["idf", "tfidf"])
