"""The same model decides the same wherever it runs: in process, behind HTTP, on Ray; with the options of nobody."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from datapipe.workers import HttpWorker, LocalWorker, ModelSpec, Priority
from provence.pruner import Pruner
from provence.weights import DEFAULT
from tests.provence.faces import passages, served
from tests.provence.families import checkpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.workers.protocol import Worker

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

FAMILIES = ["provence", "xprovence", "open_provence", "zilliz"]
NORMANS = "The Normans gave their name to Normandy. They came from Denmark, Iceland and Norway. The weather was mild."


@pytest.fixture(scope="module")
def here() -> Iterator[Pruner]:
    """The default pruner as `Pruner.load` gives it."""
    with Pruner.load() as pruner:
        yield pruner


@pytest.fixture(scope="module", params=["process", "http", pytest.param("ray", marks=pytest.mark.slow)])
def there(request: pytest.FixtureRequest) -> Iterator[Pruner]:
    """The same on a worker that was told of nothing but the model."""
    with ExitStack() as stack:
        worker: Worker
        if request.param == "ray":
            request.getfixturevalue("ray_here")
            from datapipe.workers.ray import deploy, remove

            stack.callback(remove, "pruners")
            worker = stack.enter_context(deploy([DEFAULT], name="pruners"))
        else:
            worker = stack.enter_context(LocalWorker([DEFAULT]))
            if request.param == "http":
                worker = stack.enter_context(HttpWorker(stack.enter_context(served(worker, DEFAULT))))
        beside = Path(DEFAULT.source) / "calibration.json" if request.param == "ray" else None  # Ray tells of none
        yield Pruner.load(DEFAULT.name, worker=worker, calibration=beside)


@pytest.mark.parametrize("options", [{}, {"titles": True}, {"joint": True}, {"budget_tokens": 90}], ids=str)
def test_decisions_and_probabilities_are_those_in_process(here: Pruner, there: Pruner, options: Any) -> None:
    chosen = passages(5)
    texts, question = [passage["context"] for passage in chosen], chosen[0]["question"]
    if options.get("titles"):
        options = {"titles": [passage["title"] for passage in chosen]}
    expected, found = ([each.prune(question, texts, priority=Priority.BULK, **options)] for each in (here, there))
    assert found == expected
    online = there.prune(question, texts, priority=Priority.ONLINE, **options)
    assert [context.kept_spans for context in online] == [context.kept_spans for context in expected[0]]


def test_a_recall_asks_for_the_same_sentences(here: Pruner, there: Pruner) -> None:
    for recall in (0.5, 0.8, 0.9, 0.95):
        expected, found = (
            pruner.prune("Where did the Normans come from?", [NORMANS], target_recall=recall)
            for pruner in (here, there)
        )
        assert [context.text for context in found] == [context.text for context in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_compute_in_float32_on_a_cpu_that_has_bfloat16_wherever_they_run(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapipe.workers.device.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    folder = getattr(checkpoints, family)(tmp_path / family).folder
    checkpoints.tiny_tokenizer(folder)
    spec = ModelSpec(family, str(folder), task="prune")
    texts = ["Ada wrote. It rained. Dogs bark.", "Was it you?"]
    with (
        Pruner.load(folder, device="cpu") as here,
        LocalWorker([spec, ModelSpec("fast", str(folder), task="prune", dtype="bfloat16")], device="cpu") as worker,
        served(worker, spec) as url,
        HttpWorker(url) as remote,
    ):
        expected = here.prune("Who wrote?", texts, priority=Priority.BULK)
        for each in (worker, remote):
            assert each.load(family, task="prune").bits["dtype"] == "float32"
            assert Pruner.load(family, worker=each).prune("Who wrote?", texts, priority=Priority.BULK) == expected
        assert worker.load("fast", task="prune").bits["dtype"] == "bfloat16"
        fast = Pruner.load("fast", worker=worker).prune("Who wrote?", texts)
        assert [context.relevance_score for context in fast] != [context.relevance_score for context in expected]


@pytest.mark.parametrize("family", [*FAMILIES, "native"])
def test_routes_that_rerank_give_scores_between_0_and_1(family: str, tmp_path: Path, pruner_folder: Path) -> None:
    folder = pruner_folder
    if family != "native":
        folder = getattr(checkpoints, family)(tmp_path / family).folder
        checkpoints.tiny_tokenizer(folder)
    spec = ModelSpec(family, str(folder), task="prune", dtype="float32")
    texts = ["Ada wrote. It rained. Dogs bark.", " ", "Was it you?"]
    with LocalWorker([spec], device="cpu") as worker, served(worker, spec) as url, HttpWorker(url) as remote:
        ranked = Pruner.load(family, worker=worker).rerank("Who wrote?", texts)
        want = {each.index: each.relevance_score for each in ranked}
        if family not in {"open_provence", "zilliz"}:  # whose scores lie there already
            want = {place: 1 / (1 + math.exp(-score)) if score > -1000 else 0 for place, score in want.items()}
        want[1] = 0
        for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
            found = remote.post(path, {"query": "Who wrote?", "documents": texts})["results"]
            assert [each["index"] for each in found] == [each.index for each in ranked]
            for each in found:
                assert each["relevance_score"] == pytest.approx(want[each["index"]], abs=1e-6)


def test_our_own_models_compute_in_what_the_hardware_does_best(
    pruner_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapipe.workers.device.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    spec = ModelSpec("m", str(pruner_folder), task="prune")
    with LocalWorker([spec], device="cpu") as worker:
        assert worker.load("m", task="prune").bits["dtype"] == "bfloat16"
