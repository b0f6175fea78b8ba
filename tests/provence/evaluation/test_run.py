"""A pruner is measured beside its baselines, its recall calibrated and read; in Python and on the command line."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from typer.testing import CliRunner

from datapipe.errors import ConfigError, MetricError
from provence.calibration import Calibration, calibrate
from provence.cli import app
from provence.evaluation.metrics import removed_at_recall
from provence.evaluation.protocol import PassageScores, passages_of_set
from provence.evaluation.pruned import PrunerScorer
from provence.evaluation.recall import achieved, calibrate_pruner, gold_probabilities
from provence.evaluation.run import evaluate, measure, scored
from provence.evaluation.sets import read_examples
from tests.provence.evaluation.rows import row, written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from provence.evaluation.protocol import Passage
    from provence.pruner import Pruner

LIMIT = 12


class Knowing:
    """Knows the gold, but for a share of mistakes that grows from question to question."""

    name, threshold = "knowing", 0.5

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        rng = np.random.default_rng(0)
        for passage in passages:
            values = np.clip(0.8 * passage.gold + rng.normal(0.1, 0.2, passage.gold.size), 0, 1)
            yield PassageScores(values, float(values.max()))


def test_a_pruner_is_measured_beside_its_baselines(pruner: Pruner, data: Path) -> None:
    path = data / "squad20_dev.parquet"
    report = evaluate(pruner, [path], baselines=["keep_all", "idf"], joint=True, limit=LIMIT, samples=50)
    methods = ["provence", "provence_joint", "keep_all", "idf"]
    assert [(line["set"], line["method"]) for line in report.rows] == [
        *(("squad20_dev", method) for method in methods),
        *(("macro", method) for method in methods),
    ]
    for line in report.rows[:4]:
        assert line["questions"] == LIMIT
        for name in ("removed_at_90", "recall", "f2", "answers_kept"):
            assert 0 <= line[f"{name}_low"] <= line[f"{name}_high"] <= 1
    assert report.rows[0]["own_threshold"]
    assert report.about["protocol"] == 1
    assert json.loads(json.dumps(report.as_dict()))["rows"] == list(report.rows)
    table = report.table()
    assert "| squad20_dev | keep_all | 0.000" in table
    assert "macro" not in table, "one set has no means over sets"
    head = table.splitlines()[0]
    assert head.startswith("| set | method | removed @90 (best threshold) |")
    for name in ("recall", "removed", "f1", "f2", "answers kept"):
        assert f"| {name} (at the model's threshold) |" in head


def test_the_pruners_scores_are_those_that_it_gives_for_the_passages_own_sentences(pruner: Pruner, data: Path) -> None:
    examples = read_examples(data / "squad20_dev.parquet", split="test", limit=4)
    passages = passages_of_set(examples)
    scorer = PrunerScorer(pruner)
    for passage, scores in zip(passages, scorer.score(passages), strict=True):
        spans = list(zip(passage.starts.tolist(), passage.ends.tolist(), strict=True))
        (alone,) = pruner.scores(passage.example.question, [passage.text], spans=[spans])
        np.testing.assert_allclose(scores.probabilities, alone.probabilities, atol=1e-5)
        assert scores.score == pytest.approx(alone.score, abs=1e-4)
    assert scorer.threshold == pytest.approx(0.5)


def test_text_between_two_sentences_is_shown_and_not_counted(pruner: Pruner, tmp_path: Path) -> None:
    context = "It rained.\n # Visits \nAnna came."
    line = row(context=context, sent_end=[10, len(context)], sent_start=[0, context.index("Anna")])
    outcome = scored(PrunerScorer(pruner), written(tmp_path / "set.parquet", [line]))
    spans = [(0, 10), (12, 20), (context.index("Anna"), len(context))]
    (whole,) = pruner.scores("Who came?", [context], spans=[spans])
    assert outcome.texts == ("It rained.", "Anna came.")
    np.testing.assert_allclose(outcome.probabilities, np.asarray(whole.probabilities)[[0, 2]], atol=1e-5)


def test_a_sets_row_is_that_of_its_flat_scores_and_macro_is_the_mean(data: Path, tmp_path: Path) -> None:
    first = data / "squad20_dev.parquet"
    second = written(tmp_path / "tiny.parquet", [row(id=str(place)) for place in range(5)])
    told: list[tuple[str, int, int]] = []
    report = measure([Knowing()], [first, second], limit=60, samples=40, progress=lambda *call: told.append(call))
    one, two, macro = report.rows
    outcome = scored(Knowing(), first, limit=60)
    expected = removed_at_recall(outcome.probabilities, outcome.gold, outcome.characters, 0.9)
    assert one["removed_at_90"] == pytest.approx(expected, abs=1e-6)
    assert macro["removed_at_90"] == pytest.approx((one["removed_at_90"] + two["removed_at_90"]) / 2, abs=1e-6)
    assert (macro["sets"], macro["questions"]) == (2, 65)
    assert two["ndcg"] is None, "a set of single passages ranks nothing"
    assert macro["ndcg"] == one["ndcg"]
    assert told[0] == ("squad20_dev knowing", 0, one["passages"])
    assert ("tiny knowing", 5, 5) in told
    assert "| macro | knowing |" in report.table()


def test_the_same_call_gives_the_same_report(data: Path) -> None:
    one, two = (measure([Knowing()], [data / "squad20_dev.parquet"], limit=30, samples=30) for _ in range(2))
    assert one == two


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "set.parquet", [row(relevant=[0, 0])])
    with pytest.raises(MetricError, match=r"set\.parquet, split test: no sentence of 1 questions is gold"):
        measure([Knowing()], [path])
    with pytest.raises(ConfigError, match="give each method once, and at least one"):
        measure([], [path])
    with pytest.raises(ConfigError, match="give each set once"):
        measure([Knowing()], [path, path])


def test_achieved_recall_is_the_mean_share_a_question_above_the_threshold(tmp_path: Path) -> None:
    rows = [row(id="a", relevant=[1, 1]), row(id="b"), row(id="c", relevant=[0, 0])]
    outcome = scored(Halves(), written(tmp_path / "set.parquet", rows))
    assert [part.tolist() for part in gold_probabilities(outcome)] == [[0.25, 0.75], [0.75]]
    found = achieved(outcome, 0.25, samples=100)
    assert found.recall == pytest.approx((1 / 2 + 1) / 2)
    assert found.recall_low <= found.recall <= found.recall_high
    assert found.removed == pytest.approx(10 / 20)
    assert achieved(outcome, 0.0).removed == 0.0


class Halves:
    """A quarter for the first sentence, three quarters for the second."""

    name, threshold = "halves", None

    def score(self, passages: Sequence[Passage]) -> Iterator[PassageScores]:
        for _ in passages:
            yield PassageScores([0.25, 0.75], 0.0)


def test_a_calibration_keeps_its_promise_on_questions_that_it_was_not_made_on(data: Path) -> None:
    path = data / "squad20_dev.parquet"
    made_on, held_out = (scored(Knowing(), path, split=split, limit=1500) for split in ("train", "test"))
    calibration = calibrate(gold_probabilities(made_on), model="knowing", digest="0", domain="articles")
    for recall in (0.8, 0.95):
        found = achieved(held_out, calibration.threshold_for(recall))
        error = math.sqrt(recall * (1 - recall) * (1 / calibration.questions + 1 / len(gold_probabilities(held_out))))
        assert abs(found.recall - recall) < 4 * error
        assert found.recall_low < found.recall < found.recall_high


def test_a_calibration_is_bound_to_the_pruner_and_named_after_the_sets(pruner: Pruner, data: Path) -> None:
    path = data / "squad20_dev.parquet"
    calibration = calibrate_pruner(pruner, [path], limit=LIMIT)
    assert (calibration.domain, calibration.model, calibration.digest) == ("squad20_dev", pruner.model, pruner.digest)
    golds = gold_probabilities(scored(PrunerScorer(pruner), path, split="train", limit=LIMIT))
    assert calibration.questions == len(golds)
    shown = calibrate_pruner(pruner, [path], limit=LIMIT, joint=True, titles=True)
    assert (calibration.joint, calibration.titles, shown.joint, shown.titles) == (False, False, True, True)
    kept = np.mean([(part > calibration.threshold_for(0.7)).mean() for part in golds])
    assert kept >= 0.7


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_evaluate_prints_a_table_and_writes_json(data: Path, tmp_path: Path) -> None:
    path = data / "squad20_dev.parquet"
    shared = ("evaluate", path, "--model", "none", "--baselines", "keep_all,idf", "--limit", LIMIT)
    shown = run(*shared, "--out", tmp_path / "deep" / "report.json")
    assert shown.exit_code == 0, shown.output
    assert "| squad20_dev | idf |" in shown.stdout
    found = json.loads(run(*shared, "--json").stdout)
    assert found == json.loads((tmp_path / "deep" / "report.json").read_text(encoding="utf-8"))
    assert found["split"] == "test"


def test_evaluate_shows_a_table_a_set_in_a_terminal(data: Path) -> None:
    asked = ("evaluate", data / "squad20_dev.parquet", "--model", "none", "--baselines", "keep_all,idf", "--limit", 4)
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}
    shown = CliRunner().invoke(app, list(map(str, asked)), env=terminal).stdout
    assert "squad20_dev, 4 questions" in shown
    assert "at the model's threshold" in " ".join(shown.split())
    assert "macro" not in shown
    assert "| --- |" not in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_evaluate_and_calibrate_load_a_model_from_its_folder(data: Path, pruner_folder: Path, tmp_path: Path) -> None:
    path = data / "squad20_dev.parquet"
    shared = (path, "--model", pruner_folder, "--backend", "torch", "--device", "cpu", "--limit", LIMIT)
    found = json.loads(run("evaluate", *shared, "--baselines", "none", "--json").stdout)
    assert [line["method"] for line in found["rows"]] == ["provence", "provence"]
    out = tmp_path / "deep" / "calibration.json"
    made = run("calibrate", *shared, "--out", out, "--domain", "articles", "--json")
    assert made.exit_code == 0, made.output
    calibration = Calibration.load(out)
    assert (calibration.domain, calibration.questions) == ("articles", json.loads(made.stdout)["questions"])
    other = run("calibrate", path, "--model", pruner_folder, "--backend", "onnx", "--limit", LIMIT, "--out", out)
    assert other.exit_code == 0, other.output
    assert Calibration.load(out).digest != calibration.digest


def test_errors_of_the_commands_say_what_is_wrong(data: Path, tmp_path: Path) -> None:
    found = run("evaluate", tmp_path / "none.parquet", "--model", "none")
    assert "none.parquet: no such file" in str(found.exception)
    found = run("calibrate", tmp_path / "none.parquet", "--model", tmp_path / "none", "--out", tmp_path / "out.json")
    assert "none.parquet: no such file" in str(found.exception)
    found = run("evaluate", data / "squad20_dev.parquet", "--model", "none", "--split", "dev")
    assert "no row of --split 'dev'" in str(found.exception)
    found = run("evaluate", data / "squad20_dev.parquet", "--model", "none", "--baselines", "none")
    assert "leave nothing to measure" in str(found.exception)
