"""The pruner inside the package: small, bound to its base, and what its card says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from langchain_core.documents import Document

from datapipe.weights import embedded_folder
from datapipe.workers import LocalWorker
from datapipe.workers.folder import ModelFolder
from datapipe.workers.spec import DEFAULT_EMBEDDER
from provence import Pruner
from provence.langchain import ProvenceCompressor
from provence.weights import DEFAULT

FOLDER = Path(DEFAULT.source)
MOST = 8 << 20


def test_the_default_adds_at_most_8_mb_and_belongs_to_the_embedded_base() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST
    config = json.loads((FOLDER / "config.json").read_text())
    name = config["base"].removeprefix("embedded:")
    assert config["base_digest"] == ModelFolder(name, embedded_folder(name)).digest


def test_the_card_names_every_set_that_was_trained_on_and_its_licence() -> None:
    card = (FOLDER / "README.md").read_text()
    sources = json.loads((FOLDER / "config.json").read_text())["training"]["sources"]
    for source in sources:
        assert "test" not in source["splits"]
        assert f"| {source['name']} | {', '.join(source['splits'])} | " in card
        assert f"| {source['licence']} |" in card


def test_the_default_keeps_the_sentence_that_answers() -> None:
    text = "Shakespeare was born in Stratford. He wrote Hamlet around 1600. The town has many pubs."
    pruner = Pruner.load("default", device="cpu")
    context = pruner.prune("When was Hamlet written?", [text], threshold=0.5)[0]
    assert context.text == "He wrote Hamlet around 1600."
    other = pruner.prune("When was Hamlet written?", ["The river floods the fields in spring."])[0]
    assert other.relevance_score < context.relevance_score


def test_default_on_a_worker_that_was_given_it_is_the_pruner() -> None:
    text = "Shakespeare was born in Stratford. He wrote Hamlet around 1600. The town has many pubs."
    with LocalWorker([DEFAULT_EMBEDDER, DEFAULT], device="cpu") as worker:
        pruner = Pruner.load(worker=worker)
        assert pruner.model == DEFAULT.name
        assert pruner.prune("When was Hamlet written?", [text], threshold=0.5)[0].text == "He wrote Hamlet around 1600."
        found = ProvenceCompressor(worker=worker, threshold=0.5).compress_documents(
            [Document(page_content=text)], "When was Hamlet written?"
        )
        assert [document.page_content for document in found] == ["He wrote Hamlet around 1600."]
    with LocalWorker([], device="cpu") as other:
        assert Pruner.load(worker=other).model == "default"


@pytest.mark.parametrize("recall", [0.8, 0.95])
def test_the_default_comes_with_a_calibration_of_its_own(recall: float) -> None:
    pruner = Pruner.load("default", device="cpu")
    text = "The bridge is long. It was opened in 1890. It spans the firth."
    context = pruner.prune("When was the bridge opened?", [text], target_recall=recall)[0]
    assert "It was opened in 1890." in context.text
