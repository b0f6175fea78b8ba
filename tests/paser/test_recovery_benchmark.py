"""The recovery benchmark: parts that share no question, equal tokens for every method, and nothing frozen too early."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import common, paser_data, paser_plans, paser_tables
from benchmarks.paser_plans import METHODS, SETTINGS, Run, rate_runs, reference_runs, setting_runs, table_runs
from datapipe.storage.digest import digest_of

if TYPE_CHECKING:
    from pathlib import Path

BASE = Run(
    variant="",
    method="",
    budget=0.0,
    seed=0,
    part="validation",
    rate=0.0,
    batch_tokens=8192,
    max_length=512,
    setting=None,
    data=("rows", "model"),
)
VARIANTS = ("depth24", "bits3")
RATES = {"depth24": 1e-3, "bits3": 5e-4}
PILOTS: paser_plans.Pilots = {each: {str(b): [[0, 2.0], [1, 1.0]] for b in (0.05, 0.1)} for each in VARIANTS}


def table() -> list[Run]:
    return list(table_runs(BASE, VARIANTS, (0.05, 0.1), 2, RATES, {"power": 1.0, "rule": "power:0"}, PILOTS))


def test_every_method_of_a_budget_reads_the_same_tokens_in_the_same_steps() -> None:
    recipes = {(run.budget, run.variant, run.method): run.recipe(1_000_000) for run in table()}
    for budget in (0.05, 0.1):
        assert {recipe.tokens for (at, *_), recipe in recipes.items() if at == budget} == {round(2e6 * budget)}
    assert {method for *_, method in recipes} == set(METHODS)


def test_settings_are_chosen_on_validation_and_test_is_for_the_table() -> None:
    chosen = [*rate_runs(BASE, VARIANTS), *setting_runs(BASE, VARIANTS, (0.05,), range(2), RATES, PILOTS)]
    assert {run.part for run in chosen} == {"validation"}
    assert {run.part for run in [*table(), *reference_runs(BASE, VARIANTS, RATES, 2)]} == {"test"}


def test_no_two_trainings_have_the_same_config() -> None:
    runs = [*table(), *reference_runs(BASE, VARIANTS, RATES, 2), *rate_runs(BASE, VARIANTS)]
    assert len({digest_of(run.config) for run in runs}) == len(runs)


def test_every_method_and_setting_has_a_choice_of_rows_or_takes_all() -> None:
    for run in [*table(), *setting_runs(BASE, VARIANTS, (0.05,), range(1), RATES, PILOTS)]:
        config = run.picks(1_000_000)
        assert (config is None) == (run.method in {"full", "full_equal_tokens"})
        assert config is None or config.budget.tokens == round(1e6 * run.budget)


def test_pilots_become_what_clusters_are_worth() -> None:
    found = paser_plans.with_pilots({"power": 0.0, "prior": "pilots"}, PILOTS, "bits3", 0.05)
    assert found == {"power": 0.0, "cluster_prior": ((0, 2.0), (1, 1.0))}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    texts = [f"question {number}" for number in range(40)]
    alike = [{"instruction": text, "input": "", "output": f"answer to {text}"} for text in [*texts, *texts]]
    write(tmp_path, "t0_50k", [{"prompt": text, "completion": "yes"} for text in texts])
    cuts = ["train" if number < 30 else "test" for number in range(40)]
    write(
        tmp_path,
        "gsm8k",
        [{"question": text, "answer": "4", "split": cut} for text, cut in zip(texts, cuts, strict=True)],
    )
    write(tmp_path, "alpaca_subset", [row | {"in_random_9k": True} for row in alike])
    write(tmp_path, "codealpaca", [row | {"category": "new_codealpaca"} for row in alike])
    kinds = ("toolformer", "roleplay")
    write(tmp_path, "gpteacher", [row | {"category": kind} for row in alike for kind in kinds])
    write(tmp_path, "dolly_3k", [row | {"category": "qa"} for row in alike])
    wanted = {pair for part in paser_data.CHOICES.values() for pair in part}
    asked = {"passage": "", "choices": ["a", "b"], "label": 0}
    write(
        tmp_path,
        "choice_evals",
        [{"task": task, "split": cut, "question": text, **asked} for task, cut in sorted(wanted) for text in texts],
    )
    return tmp_path


def test_no_question_stands_in_two_parts_and_splits_are_kept(sets: Path) -> None:
    counts = paser_data.pack(sets, sets / "data.parquet", scale=0.02)
    data = paser_data.read(sets / "data.parquet")
    assert counts["test"]["t0"] == len([row for row in data.test if row["source"] == "t0"]) == 5
    seen = Counter(
        (row["source"], row["instruction"]) for rows in (data.pool, data.validation, data.test) for row in rows
    )
    assert set(seen.values()) == {1}
    test_split = {f"question {number}" for number in range(30, 40)}
    assert {row["instruction"] for row in data.test if row["source"] == "gsm8k"} <= test_split
    assert {row["task"] for row in data.questions["validation"]} == {"commonsenseqa", "boolq"}


def row(run: Run, loss: float) -> dict[str, Any]:
    found = {"heldout_nll": loss, "jsd": 0.1, "choice_accuracy": 0.4, "rows": 9, "by_source": {"t0": [loss, 0.1]}}
    return {**run.config, **found, "digest": digest_of(run.config), "commit": "c" * 40, "hardware": {"cpu": "a"}}


def put(work: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (work / "results-0").mkdir(parents=True, exist_ok=True)
    (work / "results-0" / f"{name}.json").write_text(json.dumps({"name": name, "rows": rows}))


def test_the_best_setting_is_frozen_once_all_of_them_were_measured(tmp_path: Path) -> None:
    runs = list(setting_runs(BASE, VARIANTS, (0.05,), range(2), RATES, PILOTS))
    rows = [row(run, 2.0 - 0.1 * (run.method == "setting equal length")) for run in runs]
    put(tmp_path, "paser_recovery_settings", rows[:-1])
    paser_tables.settle(tmp_path)
    assert not (tmp_path / "ours.json").exists()
    put(tmp_path, "paser_recovery_settings", rows)
    paser_tables.settle(tmp_path)
    assert json.loads((tmp_path / "ours.json").read_text()) == SETTINGS["equal length"]


def test_no_training_recovers_nothing_and_the_original_with_all_rows_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"none": 3.0, "full": 2.2, "ours": 2.4, "random": 2.5}
    runs = [*table(), *reference_runs(BASE, VARIANTS, RATES, 2)]
    whole = {"none": 2.4, "full": 2.0}
    rows = [row(run, (whole if run.variant == "original" else losses).get(run.method, 2.6)) for run in runs]
    put(tmp_path, paser_tables.ROWS, rows)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "final")
    paser_tables.merge(tmp_path)
    told = {(each["variant"], each["method"], each["budget"]): each for each in common.rows("paser_recovery_means")}
    assert told["depth24", "none", 0.0]["recovered"] == 0
    assert told["original", "full", 1.0]["recovered"] == 1
    assert told["depth24", "ours", 0.05]["recovered"] == pytest.approx(0.6)
    assert told["depth24", "ours", 0.05]["recovered_of_full"] == pytest.approx(0.75)
    gap = next(each for each in common.rows("paser_recovery_gaps") if each["against"] == "random")
    assert gap["heldout_nll"] == pytest.approx(-0.1)
    compact = common.rows("paser_recovery")
    assert {"variant", "budget", "method", "seed", "heldout_nll", "jsd", "choice_accuracy", "recovered"} <= set(
        compact[0]
    )
    assert len(compact) == len(rows)
