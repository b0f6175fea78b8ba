"""A proof calls a difference a win only beyond the noise, and its test rows come from outside the run."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from datapipe.curation import curate
from datapipe.errors import ColumnError, ConfigError, MetricError, SourceError
from datapipe.proof.heads import HeadRecipe, HeadTrainer
from datapipe.proof.run import compare, prove, scoring_seconds
from datapipe.runs import open_run
from tests.workers.tiny import text_folder, vision_folder

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = HeadRecipe(steps=40, batch_rows=32)


def _clouds(rows: int, *, seed: int) -> tuple[np.ndarray, list[str]]:
    draws = np.random.default_rng(seed)
    codes = np.arange(rows) % 3
    vectors = np.eye(8)[codes] + draws.normal(0, 0.4, (rows, 8))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), [f"c{at}" for at in codes]


def _frame(rows: int, *, seed: int) -> pl.DataFrame:
    vectors, labels = _clouds(rows, seed=seed)
    return pl.DataFrame({"vector": vectors.tolist(), "label": labels, "text": [f"row {seed} {i}" for i in range(rows)]})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof")
    curate(_frame(240, seed=0), out=folder / "run", keep=0.5, embedding_column="vector", label_column="label")
    _frame(90, seed=1).write_parquet(folder / "test.parquet")
    return folder / "run"


def test_a_run_is_proved_and_its_page_holds_the_verdict(run: Path) -> None:
    found = prove(run, run.parent / "test.parquet", seeds=3, steps=40)
    assert [(arm.name, arm.rows) for arm in found.arms] == [("kept", 120), ("random", 120), ("full", 240)]
    assert all(arm.accuracy.mean > 0.6 for arm in found.arms)
    assert all(min(arm.worst_classes) <= arm.accuracy.mean for arm in found.arms)
    written = json.loads((run / "proof.json").read_text())
    assert written["against_random"]["verdict"] == found.against_random.verdict
    assert found.against_full.verdict in (run / "proof.html").read_text()
    assert found.seconds["scoring"] > 0
    again = prove(run, run.parent / "test.parquet", seeds=3, steps=40)
    assert again.arms == found.arms


def test_a_random_choice_does_not_win_against_random() -> None:
    vectors, labels = _clouds(300, seed=0)
    test, truth = _clouds(300, seed=1)
    kept = np.random.default_rng(2).permutation(300) < 100
    trainer = HeadTrainer(vectors, test, recipe=RECIPE)
    found = compare(labels, trainer, kept=kept, pool=np.ones(300, bool), test_labels=truth, seeds=4)
    assert found.against_random.verdict == "no difference inside the noise"


def test_a_choice_that_leaves_out_a_class_loses_and_its_worst_class_shows_it() -> None:
    vectors, labels = _clouds(300, seed=0)
    test, truth = _clouds(150, seed=1)
    kept = np.array([label != "c2" for label in labels])
    trainer = HeadTrainer(vectors, test, recipe=RECIPE)
    found = compare(labels, trainer, kept=kept, pool=np.ones(300, bool), test_labels=truth, seeds=4)
    assert (found.against_random.verdict, found.against_full.verdict) == ("loss", "loss")
    assert found.arms[0].worst_class.mean < 0.1


def test_rows_without_a_label_or_of_a_strange_class_are_counted_and_left_out() -> None:
    vectors, labels = _clouds(60, seed=0)
    test, truth = _clouds(30, seed=1)
    found = compare(
        [None, *labels[1:]],
        HeadTrainer(vectors, test, recipe=RECIPE),
        kept=np.arange(60) < 30,
        pool=np.ones(60, bool),
        test_labels=["other", *truth[1:]],
        seeds=2,
    )
    assert (found.test_rows, found.arms[0].rows, found.arms[2].rows) == (29, 29, 59)
    assert len(found.warnings) == 2


def test_what_cannot_be_proved_is_refused(run: Path, tmp_path: Path) -> None:
    test = run.parent / "test.parquet"
    with pytest.raises(ConfigError, match="seeds must be at least 2, got 1"):
        prove(run, test, seeds=1)
    with pytest.raises(ColumnError, match="no column 'klass'"):
        prove(run, test, label_column="klass")
    pl.read_parquet(test).with_columns(label=pl.lit("unknown")).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(MetricError, match="none of the 90 test rows has a class of the run"):
        prove(run, tmp_path / "other.parquet")
    curate(_frame(60, seed=0), out=tmp_path / "run", keep=0.5, embedding_column="vector")
    with pytest.raises(ColumnError, match="make it with --label-column"):
        prove(tmp_path / "run", test)


def test_a_run_over_images_is_proved_on_images_of_the_test_file(tmp_path: Path, data: Path) -> None:
    model = tmp_path / "vit"
    model.mkdir()
    vision_folder(model, "vit")
    frame = pl.read_parquet(data / "fashion_mnist_60.parquet").select("image", label="label_name")
    options = {"image_column": "image", "label_column": "label", "model": str(model)}
    curate(frame.head(40), out=tmp_path / "run", keep=0.5, **options)  # type: ignore[arg-type]
    frame[30:].rename({"image": "picture"}).write_parquet(tmp_path / "test.parquet")
    found = prove(tmp_path / "run", tmp_path / "test.parquet", image_column="picture", seeds=2, steps=20)
    assert [arm.rows for arm in found.arms] == [20, 20, 40]
    assert found.test_rows == 20
    assert "10 of 30 test images are also in the run, and are left out." in found.warnings
    with pytest.raises(ConfigError, match="--text-column does not fit: the run's vectors are of its images"):
        prove(tmp_path / "run", tmp_path / "test.parquet", text_column="picture")
    frame.head(30).write_parquet(tmp_path / "inside.parquet")
    with pytest.raises(MetricError, match="all 30 test images are also in the run"):
        prove(tmp_path / "run", tmp_path / "inside.parquet", seeds=2, steps=2)
    frame.head(4).with_columns(image=pl.lit(b"no image")).write_parquet(tmp_path / "broken.parquet")
    with pytest.raises(SourceError, match=r"broken\.parquet row 1: "):
        prove(tmp_path / "run", tmp_path / "broken.parquet", seeds=2, steps=2)


def test_the_cost_of_a_run_is_what_its_stages_took_when_they_were_made(run: Path, tmp_path: Path) -> None:
    made, stages = open_run(run).made_seconds, open_run(run).manifest["stages"]
    spent = sum(
        made[f"{each['key']}/{each['manifest']}"] for each in stages if each["name"] not in {"export", "report"}
    )
    again = curate(_frame(240, seed=0), out=run, keep=0.5, embedding_column="vector", label_column="label")
    assert all(timing.reused for timing in again.timings)
    seconds, warnings = scoring_seconds(open_run(run))
    assert (seconds, warnings) == (spent, ())
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "timings.json").unlink()
    seconds, warnings = scoring_seconds(open_run(tmp_path / "run"))
    assert seconds == 0.0
    assert "of ingest, fit, score, select the time was not recorded" in warnings[0]


def test_options_without_effect_are_refused(run: Path) -> None:
    test = run.parent / "test.parquet"
    with pytest.raises(ConfigError, match="trainer must be one of head, finetune, network, got 'forest'"):
        prove(run, test, trainer="forest")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no effect with the trainer head"):
        prove(run, test, model="folder")
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        prove(run, test, steps=0)
    with pytest.raises(ColumnError, match=r"has no texts to fine-tune on.*or take --trainer head"):
        prove(run, test, trainer="finetune")
    with pytest.raises(ColumnError, match="has no images to train on: make it with --image-column"):
        prove(run, test, trainer="network")


def test_a_run_over_texts_is_proved_by_fine_tuning(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    text_folder(folder, "bert", mapping="MODEL_MAPPING")
    frame = pl.read_parquet(data / "banking77.parquet", columns=["text", "label"]).filter(pl.col("label") < 4)
    frame = frame.sample(fraction=1.0, shuffle=True, seed=0)
    curate(frame[:60], out=tmp_path / "run", keep=0.5, text_column="text", label_column="label", metric="random")
    frame[50:100].rename({"text": "said"}).write_parquet(tmp_path / "test.parquet")
    options = {"trainer": "finetune", "model": str(folder), "text_column": "said", "device": "cpu"}
    found = prove(tmp_path / "run", tmp_path / "test.parquet", seeds=2, steps=3, batch_rows=8, **options)  # type: ignore[arg-type]
    assert [(arm.name, arm.rows) for arm in found.arms] == [("kept", 30), ("random", 30), ("full", 60)]
    assert (found.trainer, found.recipe.steps, found.test_rows) == ("finetune", 3, 40)
    assert "10 of 50 test texts are also in the run, and are left out." in found.warnings
    assert "A transformer, fine-tuned on the texts: 2 seeds, 3 steps of 8 rows" in (
        tmp_path / "run" / "proof.html"
    ).read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_over_images_is_proved_by_a_network_on_its_pixels(tmp_path: Path, data: Path) -> None:
    frame = pl.read_parquet(data / "fashion_mnist_60.parquet").select("image", label="label_name")
    frame.head(40).write_parquet(tmp_path / "all.parquet")
    frame[30:].rename({"image": "picture"}).write_parquet(tmp_path / "test.parquet")
    options = {"keep": 0.5, "image_column": "image", "label_column": "label", "metric": "random"}
    curate(str(tmp_path / "all.parquet"), out=tmp_path / "run", **options)  # type: ignore[arg-type]
    given = {"trainer": "network", "image_column": "picture", "device": "cpu"}
    found = prove(tmp_path / "run", tmp_path / "test.parquet", seeds=2, steps=1, batch_rows=4, **given)  # type: ignore[arg-type]
    assert [(arm.name, arm.rows) for arm in found.arms] == [("kept", 20), ("random", 20), ("full", 40)]
    assert (found.trainer, found.test_rows) == ("network", 20)
    assert "10 of 30 test images are also in the run, and are left out." in found.warnings
    frame.head(20).write_parquet(tmp_path / "all.parquet")
    with pytest.raises(SourceError, match=r"20 images of the run .* are no longer in its source, .*all\.parquet"):
        prove(tmp_path / "run", tmp_path / "test.parquet", seeds=2, **given)  # type: ignore[arg-type]
    curate(frame.head(40), out=tmp_path / "framed", **options)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="came with a frame, which is gone"):
        prove(tmp_path / "framed", tmp_path / "test.parquet", seeds=2, **given)  # type: ignore[arg-type]
