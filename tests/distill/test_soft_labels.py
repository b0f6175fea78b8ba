"""Soft labels of finished runs: what is stored is what the teachers say, and what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import datapipe
from datapipe.cli import app
from datapipe.distill.byproducts import averaged
from datapipe.distill.codec import log_softmax
from datapipe.errors import ColumnError, ConfigError, LockedError, ModelNotFoundError, SoftLabelError, SourceError
from datapipe.stages.teach import TeachConfig, TeachRows
from datapipe.storage.rowid import ids_to_arrow
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.classify import ClassifyItem
from datapipe.workers.worker import LocalWorker
from tests.conftest import DATA
from tests.runs import contents
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from datapipe.distill.run import SoftLabelResult
    from datapipe.distill.store import SoftLabelStore

NAMES = ["age_limit", "atm_support", "card_arrival", "cash_withdrawal_charge"]
ROWS = (
    pl.read_parquet(DATA / "banking77.parquet")
    .filter(pl.col("label_name").is_in(NAMES))
    .select("text", "label_name")
    .unique("text", maintain_order=True)
    .group_by("label_name", maintain_order=True)
    .head(75)
)
MAPPING = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"


def curate(out: Path, *, keep: float = 0.5, source: pl.DataFrame = ROWS, **options: Any) -> Any:
    given: dict[str, Any] = {"metric": "prototypes", "strategy": "random", "text_column": "text"} | options
    return datapipe.curate(source, out=out, keep=keep, label_column="label_name", device="cpu", **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    curate(out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run over 300 questions of four classes that kept half."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random classifier with the run's classes in another order."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    folder.mkdir()
    text_folder(folder, "bert", mapping=MAPPING, id2label=dict(enumerate(reversed(NAMES))))
    return folder


def teach(run: Path, **options: Any) -> SoftLabelResult:
    return datapipe.soft_labels(run, **({"teacher": "head", "device": "cpu"} | options))


def dense(store: SoftLabelStore) -> np.ndarray:
    labels: Any = store.read(np.arange(len(store.row_ids))).labels
    return np.asarray(labels.log_probabilities, np.float64)


def texts_of(run: Path) -> list[str]:
    """Of the kept rows, in the order of the store."""
    return pl.read_parquet(run / "kept.parquet")["text"].to_list()


def said(folder: Path, texts: list[str]) -> np.ndarray:
    """Log probabilities of a classifier in the order of its own logits."""
    with LocalWorker([ModelSpec("m", str(folder), task="classify")], device="cpu") as worker:
        found = worker.run("classify", [ClassifyItem(text) for text in texts], model="m")
    return log_softmax(np.stack([each.logits for each in found]))


def test_a_head_teaches_the_kept_rows_and_the_store_lies_beside_them(run: Path) -> None:
    found = teach(run)
    store = found.store(class_names=NAMES)
    assert found.path == run / "soft_labels.parquet"
    kept = pl.read_parquet(run / "kept.parquet")
    assert ids_to_arrow(store.row_ids).to_pylist() == kept["row_id"].to_list()
    rows = store.read(np.arange(len(store.row_ids)))
    assert [NAMES[label] for label in rows.fact("label")] == kept["label_name"].to_list()
    right = dense(store).argmax(axis=1) == rows.fact("label")
    assert right.mean() > 0.9
    assert np.exp(dense(store)).sum(axis=1) == pytest.approx(np.ones(len(right)), abs=2e-3)
    assert found.alpha == pytest.approx(1 - 0.5 * (0.5 - 0.1) / 0.9)
    assert not found.facts["alpha"]["fitted"]
    assert datapipe.verify(run).ok


def test_the_manifest_names_teacher_alpha_and_size_and_the_timings_the_speed(run: Path) -> None:
    before = json.loads((run / "manifest.json").read_text())
    found = teach(run, top_k=2)
    manifest = json.loads((run / "manifest.json").read_text())
    told = manifest["soft_labels"]
    assert told["header"] == found.store().header.as_plain()
    assert told["identity"] == found.store().header.identity
    assert (told["rows"], told["of"]) == (150, "kept")
    assert told["bytes"] == (run / "soft_labels.parquet").stat().st_size
    assert told["bytes_a_row"] == pytest.approx(told["bytes"] / 150, abs=0.01)
    assert {"soft_labels.parquet", "teacher_scores.parquet"} <= {entry["name"] for entry in manifest["outputs"]}
    assert [entry["name"] for entry in manifest["stages"]][-2:] == ["teach", "soft_labels"]
    assert {name: value for name, value in manifest.items() if name not in {"soft_labels", "outputs", "stages"}} == {
        name: value for name, value in before.items() if name not in {"outputs", "stages"}
    }
    assert found.rows_per_second is not None
    assert datapipe.open_run(run).counts == before["counts"]
    assert json.loads((run / "timings.json").read_text())["soft_labels"][0]["rows"] == 150


def test_a_classifier_in_another_order_of_classes_is_stored_in_the_order_of_the_run(
    run: Path, classifier: Path
) -> None:
    found = teach(run, teacher=str(classifier))
    wanted = said(classifier, texts_of(run))[:, ::-1]
    assert dense(found.store(class_names=NAMES)) == pytest.approx(wanted, abs=5e-3)
    assert found.facts["header"]["teachers"][0]["name"] == "bert"


def test_several_teachers_are_averaged_in_log_probabilities(run: Path, classifier: Path) -> None:
    both = dense(teach(run, teacher=["head", str(classifier)]).store())
    head = dense(teach(run, teacher="head").store())
    other = said(classifier, texts_of(run))[:, ::-1]
    assert both == pytest.approx(averaged([head, other]), abs=2e-2)


def test_the_same_call_again_does_nothing_and_a_killed_one_goes_on_to_the_same_bytes(
    run: Path, tmp_path: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datapipe.distill.wiring.TeachConfig", partial(TeachConfig, part_rows=40))
    original = TeachRows._part
    left = [2]

    def dies(self: TeachRows, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, *arguments)

    copy = Path(shutil.copytree(run, tmp_path / "copy", symlinks=True))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TeachRows, "_part", dies)
        teach(run, teacher=str(classifier))
    assert not (run / "soft_labels.parquet").exists()
    assert datapipe.verify(run).ok
    teach(run, teacher=str(classifier))
    teach(copy, teacher=str(classifier))
    assert contents(run) == contents(copy)
    again = teach(run, teacher=str(classifier))
    assert [timing.reused for timing in again.timings] == [True, True]
    assert again.rows_per_second is None


def test_a_narrower_budget_reads_the_labels_of_a_wider_one_and_no_teacher_runs(
    run: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = teach(run, teacher=str(classifier))
    by_id = dict(zip(ids_to_arrow(wide.store().row_ids).to_pylist(), dense(wide.store()).tolist(), strict=True))
    curate(run, keep=0.2)
    assert not (run / "soft_labels.parquet").exists()
    monkeypatch.setattr(TeachRows, "run", lambda *_: pytest.fail("a teacher ran"))
    narrow = teach(run, teacher=str(classifier))
    assert narrow.facts["rows"] == 60
    store = narrow.store()
    ids = ids_to_arrow(store.row_ids).to_pylist()
    assert ids == pl.read_parquet(run / "kept.parquet")["row_id"].to_list()
    assert dense(store).tolist() == [by_id[each] for each in ids]
    assert narrow.alpha > wide.alpha
    assert datapipe.verify(run).ok


def test_a_run_that_is_run_again_keeps_its_soft_labels_and_its_bytes(run: Path) -> None:
    facts = teach(run).facts
    before = contents(run)
    again = curate(run)
    assert contents(run) == before
    assert again.manifest["soft_labels"] == facts
    assert datapipe.verify(run).ok
    assert teach(run).rows_per_second is None


def test_a_run_that_is_run_again_keeps_labels_of_all_rows_beside_its_proof(run: Path) -> None:
    ROWS.tail(80).with_columns(pl.col("text") + " please").write_parquet(run.parent / "test.parquet")
    datapipe.prove(run, run.parent / "test.parquet", seeds=2, steps=5)
    teach(run, rows="all")
    before = contents(run)
    curate(run)
    assert contents(run) == before
    assert {"proof.json", "soft_labels.parquet"} <= set(before)


@pytest.mark.parametrize("options", [{"keep": 0.4}, {"strategy": "hard"}, {"source": ROWS.tail(280)}])
def test_another_choice_in_the_same_folder_has_no_soft_labels(run: Path, options: dict[str, Any]) -> None:
    teach(run)
    again = curate(run, **options)
    assert "soft_labels" not in again.manifest
    assert not (run / "soft_labels.parquet").exists()
    assert not (run / "teacher_scores.parquet").exists()
    assert "teach" not in {stage["name"] for stage in again.manifest["stages"]}
    assert datapipe.verify(run).ok


@pytest.mark.parametrize("stage", ["teach", "soft_labels"])
def test_soft_labels_whose_stage_was_deleted_are_taken_off_the_result(run: Path, stage: str) -> None:
    teach(run)
    for folder in (run / "stages").glob(f"{stage}-*"):
        shutil.rmtree(folder)
    assert "soft_labels" not in curate(run).manifest
    assert datapipe.verify(run).ok


def test_a_pass_over_all_rows_serves_any_choice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = teach(run, rows="all")
    assert whole.facts["rows"] == 300
    curate(run, keep=0.3, strategy="hard")
    monkeypatch.setattr(TeachRows, "run", lambda *_: pytest.fail("a teacher ran"))
    assert teach(run).facts["rows"] == 90


def test_another_seed_mode_or_teacher_reads_nothing_of_the_wider_pass(run: Path, classifier: Path) -> None:
    teach(run, rows="all")
    for options in ({"seed": 1}, {"top_k": 2}, {"teacher": str(classifier)}, {"folds": 3}):
        found = teach(run, **options)
        assert [timing.stage for timing in found.timings] == ["teach", "soft_labels"]


def test_out_of_fold_a_wrong_label_is_contradicted_and_kept_and_in_fold_it_is_believed_more(
    tmp_path: Path,
) -> None:
    wrong = ROWS.with_row_index().with_columns(
        pl.when(pl.col("index") % 10 == 0)
        .then(pl.col("label_name").replace(dict(zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True))))
        .otherwise(pl.col("label_name"))
        .alias("label_name")
    )
    curate(tmp_path / "run", keep=1.0, source=wrong.drop("index"))
    apart = teach(tmp_path / "run", contradiction=0.6)
    rows = apart.store().read(np.arange(300))
    frame = pl.read_parquet(tmp_path / "run" / "kept.parquet").join(
        wrong.select("text", "index"), on="text", how="left"
    )
    planted = frame["index"].to_numpy() % 10 == 0
    flagged = np.asarray(rows.fact("contradicts"))
    assert apart.facts["rows"] == 300
    assert apart.facts["contradicted"] == flagged.sum()
    assert flagged[planted].mean() > 0.7
    assert flagged[~planted].mean() < 0.05
    assert set(np.asarray(rows.fact("kd_alpha"))[flagged].tolist()) == {1.0}
    assert set(np.asarray(rows.fact("kd_alpha"))[~flagged].tolist()) == {0.5}
    seen = teach(tmp_path / "run", folds=1).store().read(np.arange(300))
    believed = [np.asarray(each.fact("label_confidence"))[planted].mean() for each in (seen, rows)]
    assert believed[0] > 2 * believed[1]


def test_rows_without_a_label_are_taught_by_the_teacher_alone(tmp_path: Path) -> None:
    some = ROWS.with_row_index().with_columns(pl.when(pl.col("index") % 3 > 0).then("label_name").alias("label_name"))
    curate(tmp_path / "run", keep=1.0, source=some.drop("index"))
    found = teach(tmp_path / "run")
    rows = found.store().read(np.arange(300))
    unknown = np.ma.getmaskarray(rows.fact("label"))
    assert unknown.sum() == 100 == 300 - found.facts["labelled"]
    assert set(np.asarray(rows.fact("kd_alpha"))[unknown].tolist()) == {1.0}
    assert np.ma.getmaskarray(rows.fact("contradicts")).tolist() == unknown.tolist()
    scores = pl.read_parquet(found.scores)
    assert scores["el2n"].is_nan().sum() == 100
    assert scores["entropy"].is_nan().sum() == 0


def test_the_scores_that_come_with_it_are_a_metric_of_another_run(run: Path, tmp_path: Path) -> None:
    found = teach(run, rows="all")
    again = curate(
        tmp_path / "again", keep=0.3, metric="imported", strategy="hard", scores=str(found.scores), scores_column="el2n"
    )
    scores = pl.read_parquet(found.scores)
    hardest = scores.sort("el2n", descending=True)["row_id"].head(80).to_list()
    assert len(set(hardest) & set(again.kept.collect()["row_id"].to_list())) > 70


def test_a_run_without_labels_takes_the_classes_of_the_teacher(tmp_path: Path, classifier: Path) -> None:
    datapipe.curate(ROWS.select("text"), out=tmp_path / "run", keep=0.5, metric="random", text_column="text")
    found = teach(tmp_path / "run", teacher=str(classifier))
    store = found.store(class_names=list(reversed(NAMES)))
    assert dense(store) == pytest.approx(said(classifier, texts_of(tmp_path / "run")), abs=5e-3)
    assert found.facts["labelled"] == 0
    with pytest.raises(ColumnError, match=r"learns the run's labels, and .* has none"):
        teach(tmp_path / "run")


def test_a_run_that_embeds_nothing_has_no_head(tmp_path: Path) -> None:
    curate(tmp_path / "run", metric="random")
    with pytest.raises(ColumnError, match=r"learns from vectors, and .* has none: curate with a metric that embeds"):
        teach(tmp_path / "run")


def test_a_run_of_one_class_has_nothing_to_teach(tmp_path: Path) -> None:
    curate(tmp_path / "run", source=ROWS.with_columns(label_name=pl.lit("card")))
    with pytest.raises(SoftLabelError, match=r"tells classes apart, and .* has 1, \['card'\]"):
        teach(tmp_path / "run")


def test_a_run_of_vectors_alone_is_taught_by_its_head_and_by_no_classifier(tmp_path: Path, classifier: Path) -> None:
    draws = np.random.default_rng(0).normal(size=(120, 8)).astype(np.float32)
    draws[:60, 0] += 3
    source = pl.DataFrame({"v": draws, "label_name": ["a"] * 60 + ["b"] * 60})
    datapipe.curate(
        source.with_columns(pl.col("v").arr.to_list()),
        out=tmp_path / "run",
        keep=0.5,
        embedding_column="v",
        label_column="label_name",
    )
    assert teach(tmp_path / "run").facts["rows"] == 60
    with pytest.raises(ColumnError, match="vectors alone, which no classifier takes"):
        teach(tmp_path / "run", teacher=str(classifier))


def test_a_teacher_of_other_classes_is_refused_with_both_lists_unless_a_map_says_which_is_which(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    text_folder(folder, "bert", mapping=MAPPING, id2label={0: "age", 1: "atm", 2: "card", 3: "cash"})
    with pytest.raises(SoftLabelError, match=r"teacher other has 4 classes, \['age', .*the run 4, \['age_limit'"):
        teach(run, teacher=str(folder))
    assert not list((run / "stages").glob("teach-*"))
    mapping = dict(zip(["age", "atm", "card", "cash"], NAMES, strict=True))
    path = tmp_path / "map.json"
    path.write_text(json.dumps(mapping))
    by_file, by_hand = (teach(run, teacher=str(folder), label_map=each) for each in (path, mapping))
    assert by_file.facts["identity"] == by_hand.facts["identity"]
    three = tmp_path / "three"
    three.mkdir()
    text_folder(three, "bert", mapping=MAPPING, id2label=dict(enumerate(NAMES[:3])))
    with pytest.raises(SoftLabelError, match="teacher three has 3 classes"):
        teach(run, teacher=str(three))


def test_a_teacher_whose_logits_are_no_numbers_is_refused_and_the_row_named(
    run: Path, classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datapipe.workers.encoders.classifier import Classifier

    frame = pl.read_parquet(run / "kept.parquet")
    bad = frame.row(100, named=True)
    honest = Classifier.logits
    with LocalWorker([ModelSpec("m", str(classifier), task="classify")], device="cpu") as worker:
        task: Any = worker.load("m", task="classify").task
        wanted = task.prepare(ClassifyItem(bad["text"])).ids.tolist()

    def spoilt(self: Classifier, batch: Any) -> Any:
        logits = honest(self, batch).clone()
        for place, (ids, _) in enumerate(batch):
            if ids.tolist() == wanted:
                logits[place, 0] = float("nan")
        return logits

    monkeypatch.setattr(Classifier, "logits", spoilt)
    with pytest.raises(SoftLabelError, match=f"no numbers for row {bad['row_id'].hex()}"):
        teach(run, teacher=str(classifier))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"top_k": 5}, ConfigError, "k must be 1 ... 4, the number of classes. Got 5"),
        ({"top_k": 2, "dense": True}, ConfigError, "top_k and dense exclude each other"),
        ({"sampled": 0}, ConfigError, "draws must be 1"),
        ({"rows": "some"}, ConfigError, "rows must be kept or all, got 'some'"),
        ({"task": "guess"}, ConfigError, "task must be auto, classify or causal"),
        ({"teacher": []}, ConfigError, "name a teacher"),
        ({"teacher": ["head", "head"]}, ConfigError, "a teacher is named twice: head, head"),
        ({"folds": 0}, ConfigError, "folds must be 1 ... 100, got 0"),
        ({"contradiction": 0.5}, ConfigError, "contradiction must be above 0.5"),
        ({"noise": 1.0}, ConfigError, "noise must be a share"),
        ({"prompt_column": "text"}, ConfigError, "name their column too"),
        ({"response_column": "text"}, ConfigError, "for a causal teacher"),
        ({"teacher": "/no/such/model"}, ModelNotFoundError, "/no/such/model"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_row_is_judged(
    run: Path, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        teach(run, **options)
    assert not list((run / "stages").glob("teach-*"))


def test_a_folder_without_a_finished_run_is_refused_and_a_locked_one_too(run: Path, tmp_path: Path) -> None:
    from datapipe.storage.lock import exclusive

    with pytest.raises(SourceError, match="holds no finished run"):
        teach(tmp_path)
    with exclusive(run), pytest.raises(LockedError):
        teach(run)


def test_more_than_128_classes_are_stored_by_the_most_probable_unless_all_are_meant(tmp_path: Path) -> None:
    draws = np.random.default_rng(0).normal(size=(450, 16)).astype(np.float32)
    source = pl.DataFrame({"v": draws.tolist(), "label_name": [str(each % 150) for each in range(450)]})
    columns: dict[str, Any] = {"embedding_column": "v", "label_column": "label_name"}
    datapipe.curate(source, out=tmp_path / "run", keep=0.5, metric="random", **columns)
    header = teach(tmp_path / "run").store().header
    assert (header.mode, header.k, header.classes) == ("topk", 32, 150)
    with pytest.raises(ConfigError, match="wide=True"):
        teach(tmp_path / "run", dense=True)
    assert teach(tmp_path / "run", dense=True, wide=True).store().header.mode == "dense"


def test_the_command_says_what_was_stored_and_what_alpha_rests_on(run: Path) -> None:
    asked = ["soft-labels", str(run), "--teacher", "head", "--sampled", "20"]
    result = CliRunner().invoke(app, [*asked, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "150 rows (kept) by head: sampled of 4 classes" in result.stdout
    assert "alpha 0.78 (0.00-1.00) at 50.0% of the rows: a prior, not fitted" in result.stdout
    found = CliRunner().invoke(app, [*asked, "--json"])
    told = json.loads(found.stdout)
    assert told["header"]["draws"] == 20
    assert told["rows_per_second"] is None


def test_an_interrupted_command_says_how_to_go_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(TeachRows, "_part", stops)
    result = CliRunner().invoke(app, ["soft-labels", str(run), "--teacher", "head"])
    assert result.exit_code == 130
    assert "run the same command again to go on where it stopped" in result.output


def test_rows_that_an_update_brings_are_labelled_too(tmp_path: Path) -> None:
    for name, rows in (("old", ROWS.head(200)), ("new", ROWS.tail(100))):
        rows.write_parquet(tmp_path / f"{name}.parquet")
    columns: dict[str, Any] = {"text_column": "text", "label_column": "label_name", "device": "cpu", "keep": 0.5}
    datapipe.curate(str(tmp_path / "old.parquet"), out=tmp_path / "run", strategy="random", **columns)
    assert teach(tmp_path / "run").facts["rows"] == 100
    datapipe.curate(str(tmp_path / "new.parquet"), out=tmp_path / "run", strategy="random", update=True, **columns)
    found = teach(tmp_path / "run")
    kept = pl.read_parquet(tmp_path / "run" / "kept.parquet")["row_id"].to_list()
    assert ids_to_arrow(found.store().row_ids).to_pylist() == kept
    assert len(kept) == 150
    assert datapipe.verify(tmp_path / "run").ok
