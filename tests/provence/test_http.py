"""`POST /v1/prune`: the same as in process, and every wrong request told which field is at fault."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from datapipe.settings import ServeSettings
from datapipe.workers import LocalWorker, ModelSpec, Priority
from provence.calibration import Calibration, calibrate
from provence.http import PruneResponse
from provence.pruner import Pruner
from tests.provence.faces import QUESTION, app_over, passages, served
from tests.workers.http.servers import client_of, error_of
from tests.workers.http.test_openapi import CHECKS

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI

    from provence.results import PrunedContext

TEXTS = [passage["context"] for passage in passages(5)]
TITLES = [passage["title"] for passage in passages(5)]


@pytest.fixture
def app(pruner_worker: LocalWorker, pruner_spec: ModelSpec) -> FastAPI:
    return app_over(pruner_worker, pruner_spec)


async def post(app: FastAPI, **body: Any) -> httpx.Response:
    async with client_of(app) as client:
        return await client.post("/v1/prune", json={"query": QUESTION, "documents": TEXTS} | body)


def told(context: PrunedContext) -> dict[str, Any]:
    """A result in process, as the route is to tell it."""
    return {
        "index": context.index,
        "relevance_score": pytest.approx(context.relevance_score, abs=1e-5),
        "pruned_text": context.text,
        "kept_spans": [list(span) for span in context.kept_spans],
        "sentences": [
            {
                "start": part.start,
                "end": part.end,
                "keep_probability": pytest.approx(part.keep_probability, abs=1e-5),
                "kept": part.kept,
                "reason": part.reason,
                "kind": part.kind,
            }
            for part in context.sentences
        ],
        "compression": pytest.approx(context.compression),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.5},
        {"threshold": 1, "min_keep": 1},
        {"threshold": 1, "always_keep_first": True, "top_n": 3},
        {"threshold": 1, "empty": "drop"},
        {"threshold": 1, "empty": "keep"},
        {"budget_tokens": 100},
        {"budget_tokens": 100, "repair": True, "pin": ["headings", "title"]},
        {"titles": TITLES},
        {"joint": True, "titles": TITLES, "top_n": 2},
        {"titles": [None, *TITLES[1:]], "kind": "prose"},
    ],
    ids=str,
)
async def test_results_are_those_in_process(app: FastAPI, pruner: Pruner, options: dict[str, Any]) -> None:
    response = await post(app, **options)
    assert response.status_code == 200, response.text
    answer = response.json()
    here = {{"kind": "kinds"}.get(name, name): value for name, value in options.items()}
    contexts = pruner.prune(QUESTION, TEXTS, **here)
    assert answer["results"] == [told(context) for context in contexts]
    assert answer["model"] == "random-pruner"
    assert answer["truncated"] is False
    assert (
        answer["usage"]["total_tokens"]
        == answer["usage"]["prompt_tokens"]
        > sum(context.tokens for context in contexts)
    )
    PruneResponse.model_validate_json(response.content)


def test_over_a_real_connection_offsets_count_code_points(pruner_worker: LocalWorker, pruner_spec: ModelSpec) -> None:
    text = "🌹 Роза — цветок. 北京是中国的首都。 Cafe\u0301 “Zoë” opened in 1921!\r\n\tPrune it in March."
    body = {"query": "when?", "documents": [text, {"text": text, "title": "Roses"}, {"text": ""}], "min_keep": 1}
    with served(pruner_worker, pruner_spec) as url:
        answer = httpx.post(f"{url}/v1/prune", json=body, timeout=30).json()
    first, second, third = answer["results"]
    for result in (first, second):
        assert result["pruned_text"]
        assert result["pruned_text"] == "".join(text[start:end] for start, end in result["kept_spans"])
        assert result["compression"] == pytest.approx(1 - len(result["pruned_text"]) / len(text))
    assert second["relevance_score"] != first["relevance_score"]
    assert (third["pruned_text"], third["sentences"], third["compression"]) == ("", [], 0)


async def test_a_query_too_long_is_refused_with_its_field_or_cut_when_allowed(app: FastAPI) -> None:
    long = "when did it begin " * 60
    refused = await post(app, query=long)
    assert refused.status_code == 422
    assert "question" in error_of(refused)["message"]
    cut = await post(app, query=long, cut_question=True)
    assert cut.status_code == 200
    assert cut.json()["truncated"] is True


async def test_a_calibration_in_the_folder_of_the_model_makes_a_recall_possible(
    pruner: Pruner, pruner_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(pruner_folder, folder)
    gold = [scores.probabilities for scores in pruner.scores(QUESTION, TEXTS)] * 4
    made = calibrate(gold, model="calibrated", digest=pruner.digest, domain="SQuAD")
    spec = ModelSpec("calibrated", str(folder), task="prune", dtype="float32")
    with LocalWorker([spec], device="cpu") as worker:
        app = app_over(worker, spec)
        assert error_of(await post(app, target_recall=0.9))["param"] == "target_recall"
        made.save(folder / "calibration.json")
        response = await post(app, target_recall=0.9)
        assert response.status_code == 200, response.text
        contexts = Pruner.load("calibrated", worker=worker, calibration=made).prune(QUESTION, TEXTS, target_recall=0.9)
        assert response.json()["results"] == [told(context) for context in contexts]
        refused = await post(app, target_recall=0.99)
        assert refused.status_code == 422
        assert "needs a calibration on at least 99 questions" in error_of(refused)["message"]
        for other in ({"joint": True}, {"titles": TITLES}):
            answer = await post(app, target_recall=0.9, **other)
            assert (answer.status_code, error_of(answer)["param"]) == (422, "target_recall")
            assert f"made without {next(iter(other))}" in error_of(answer)["message"]
        replace(made, digest="0" * 64).save(folder / "calibration.json")
        assert "but the model in use has digest" in error_of(await post(app, target_recall=0.9))["message"]


async def test_a_calibration_is_read_once_while_its_file_stays_the_same(
    pruner: Pruner, pruner_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(pruner_folder, folder)
    made = calibrate([[0.5]] * 30, model="calibrated", digest=pruner.digest, domain="SQuAD")
    made.save(folder / "calibration.json")
    read = []
    real = Calibration.load

    def load(path: str) -> Calibration:
        read.append(path)
        return real(path)

    monkeypatch.setattr(Calibration, "load", load)
    spec = ModelSpec("calibrated", str(folder), task="prune", dtype="float32")
    with LocalWorker([spec], device="cpu") as worker:
        app = app_over(worker, spec)
        for _ in range(3):
            assert (await post(app, target_recall=0.9)).status_code == 200
        assert len(read) == 1
        replace(made, domain="other news").save(folder / "calibration.json")
        assert (await post(app, target_recall=0.9)).status_code == 200
        assert len(read) == 2


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"documents": []}, "documents", "documents: must be a list of at least one document"),
        (
            {"documents": ["a", {"text": "b", "title": 3}]},
            "documents",
            'documents: document 1 must be a text, or an object {"text": "…", "title": "…"}',
        ),
        (
            {"documents": [{"text": "b", "id": 3}]},
            "documents",
            'documents: document 0 must be a text, or an object {"text": "…", "title": "…"}',
        ),
        ({"query": None}, "query", "query: Input should be a valid string"),
        ({"threshold": 1.5}, "threshold", "threshold: Input should be less than or equal to 1"),
        ({"threshold": "0.5"}, "threshold", "threshold: Input should be a valid number"),
        ({"target_recall": 1}, "target_recall", "target_recall: Input should be less than 1"),
        ({"budget_tokens": 0}, "budget_tokens", "budget_tokens: Input should be greater than or equal to 1"),
        ({"top_n": 0}, "top_n", "top_n: Input should be greater than or equal to 1"),
        ({"kind": "poem"}, "kind", "kind: Input should be 'auto', 'prose', 'markdown', 'code', 'json' or 'log'"),
        ({"empty": "never"}, "empty", "empty: Input should be 'empty', 'drop' or 'keep'"),
        ({"pin": ["footnotes"]}, "pin", "pin[0]: Input should be "),
        ({"min_keep": True}, "min_keep", "min_keep: Input should be a valid integer"),
        (
            {"threshold": 0.5, "budget_tokens": 9},
            "budget_tokens",
            "threshold and budget_tokens exclude each other",
        ),
        ({"titles": ["a"]}, "titles", "titles must hold one title, or null, a document. Got 1 for 5"),
        (
            {"titles": TITLES, "documents": [{"text": text, "title": "t"} for text in TEXTS]},
            "titles",
            "titles stand in titles or in the documents, not in both",
        ),
        ({"target_recall": 0.9}, "target_recall", "model random-pruner is not calibrated"),
        ({"treshold": 0.5}, None, "the body has a field that is not known here; known are query, documents, model"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_said_with_its_field(
    app: FastAPI, change: dict[str, Any], param: str | None, message: str
) -> None:
    response = await post(app, **change)
    assert response.status_code == 422, response.text
    assert error_of(response)["message"].startswith(message)
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("query", ["", " \n"])
async def test_a_query_of_nothing_is_refused_by_name(app: FastAPI, query: str) -> None:
    response = await post(app, query=query)
    assert response.status_code == 422
    assert error_of(response)["param"] == "query"
    assert "query must hold more than white space" in error_of(response)["message"]


async def test_empty_documents_rank_last(app: FastAPI) -> None:
    found = (await post(app, documents=["", *TEXTS, " "], top_n=7)).json()["results"]
    assert [(each["index"], each["relevance_score"]) for each in found[-2:]] == [(0, -10_000), (6, -10_000)]
    async with client_of(app) as client:
        answer = await client.post("/v1/rerank", json={"query": QUESTION, "documents": ["", *TEXTS]})
    assert answer.json()["results"][-1] == {"index": 0, "relevance_score": 0}


async def test_a_request_of_much_text_does_not_go_before_others(
    app: FastAPI, pruner_worker: LocalWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, real = [], pruner_worker.arun

    async def arun(task: str, items: Any, *, priority: Priority, **how: Any) -> Any:
        seen.append(priority)
        return await real(task, items, priority=priority, **how)

    monkeypatch.setattr(pruner_worker, "arun", arun)
    long = " ".join(["Rain fell."] * 6000)
    for documents in ([TEXTS[0]], [long]):
        assert (await post(app, documents=documents)).status_code == 200
    assert seen == [Priority.ONLINE, Priority.BULK]


@pytest.mark.parametrize("joint", [False, True])
async def test_texts_of_nothing_are_no_error(app: FastAPI, *, joint: bool) -> None:
    texts = ["", " \n\t", "\x00", "\u200b\ufeff", "。", "e\u0301" * 3]
    response = await post(app, query="?", documents=texts, titles=[*["", " "] * 3], joint=joint, threshold=0)
    assert response.status_code == 200, response.text
    for text, result in zip(texts, response.json()["results"], strict=True):
        assert result["pruned_text"] == "".join(text[start:end] for start, end in result["kept_spans"])
        assert 0 <= result["compression"] <= 1
    assert (await post(app, documents=[""], joint=joint)).json()["results"][0]["pruned_text"] == ""


async def test_models_keys_and_limits_are_those_of_the_server(
    pruner_worker: LocalWorker, pruner_spec: ModelSpec
) -> None:
    app = app_over(pruner_worker, pruner_spec, settings=ServeSettings(max_texts=4, max_tokens=100))
    assert error_of(await post(app))["message"].startswith("documents holds 5 texts; at most 4")
    assert error_of(await post(app, documents=TEXTS[:4]))["code"] == "too_large"
    assert (await post(app, documents=["Roses need sun."], model="default")).status_code == 200
    assert (await post(app, documents=["Roses need sun."], model="other")).status_code == 404


async def test_it_is_documented(app: FastAPI) -> None:
    async with client_of(app) as client:
        document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/prune"]["post"]
    assert operation["summary"] == "Documents without the sentences that a query does not need."
    fields = document["components"]["schemas"]["PruneRequest"]["properties"]
    assert all(json.dumps(field).find("description") > 0 for name, field in fields.items() if name != "query")
    assert fields["top_n"]["anyOf"][0]["minimum"] == 1


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_request_gets_an_answer_that_is_not_documented(
    pruner_worker: LocalWorker, pruner_spec: ModelSpec, mode: GenerationMode
) -> None:
    limits = ServeSettings(max_texts=6, max_characters=60, max_body_bytes=4000, max_tokens=400)
    app = app_over(pruner_worker, pruner_spec, settings=limits)
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)["/v1/prune"]["POST"]

    @settings(max_examples=25, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def every(case: schemathesis.Case[Any]) -> None:
        case.validate_response(case.call(), checks=CHECKS)

    every()
