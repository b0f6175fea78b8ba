"""A look at real sets gives their counts, and does not depend on how the source is cut or ordered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.advisor.geometry import geometry
from datapipe.advisor.record import evidence_from
from datapipe.errors import BudgetError, ColumnError, ConfigError, MetricError
from datapipe.selection.evidence import load_evidence
from tests.runs import datapipe as command
from tests.workers.tiny import vision_folder

if TYPE_CHECKING:
    from datapipe.storage.arrays import Float32

DATA = Path(__file__).parents[2] / "data"


def vectors(rows: int, *, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).normal(size=(rows, 8)).astype(np.float32)


def rows_with_vectors() -> pl.DataFrame:
    """300 rows of three classes, 20 of them a copy of the first, 5 without a label."""
    matrix = vectors(300)
    matrix[1:21] = matrix[0]
    labels = [f"class {at % 3}" if at >= 5 else None for at in range(300)]
    return pl.DataFrame({"vector": matrix, "kind": labels})


def test_counts_are_those_of_the_rows() -> None:
    facts = datapipe.advise(rows_with_vectors(), keep=0.2, embedding_column="vector", label_column="kind").facts
    assert (facts.rows, facts.labelled, facts.classes, facts.modality) == (300, 295, 3, "other")
    assert facts.repeats == pytest.approx(20 / 300)
    assert facts.sampled == 280
    assert facts.near_repeats == 0.0
    assert facts.dimensions == pytest.approx(8, abs=0.6)


def test_advice_does_not_depend_on_the_order_of_rows_or_the_cut_into_files(tmp_path: Path) -> None:
    frame = rows_with_vectors()
    options = {"embedding_column": "vector", "label_column": "kind"}
    whole = datapipe.advise(frame, keep=0.2, **options)  # type: ignore[arg-type]
    for at, part in enumerate((frame[150:].reverse(), frame[:150])):
        part.write_parquet(tmp_path / f"part-{at}.parquet")
    again = datapipe.advise(tmp_path, keep=0.2, **options)  # type: ignore[arg-type]
    assert again.facts == whole.facts
    assert (again.preset, again.why, again.warnings) == (whole.preset, whole.why, whole.warnings)


def test_a_set_of_images_is_advised_on_without_vectors() -> None:
    advice = datapipe.advise(DATA / "fashion_mnist_60.parquet", keep=0.1, label_column="label_name")
    assert (advice.facts.rows, advice.facts.classes, advice.facts.modality) == (60, 10, "images")
    assert advice.facts.dimensions is None
    assert advice.preset == "elfs"
    assert advice.command.endswith("--preset elfs --image-column image --label-column label_name --model MODEL")
    assert any("name a vision model" in warning for warning in advice.warnings)


def test_images_are_embedded_by_a_vision_model_and_the_command_names_it(tmp_path: Path) -> None:
    model = tmp_path / "vit"
    model.mkdir()
    vision_folder(model, "vit")
    frame = pl.read_parquet(DATA / "fashion_mnist_60.parquet")
    broken = frame.head(2).with_columns(image=pl.lit(b"no image"))
    advice = datapipe.advise(pl.concat([frame, broken]), keep=0.1, image_column="image", model=str(model))
    assert (advice.facts.rows, advice.facts.sampled) == (62, 60)
    assert advice.facts.dimensions is not None
    assert f"--image-column image --model {model}" in advice.command
    assert not any("vision model" in warning for warning in advice.warnings)
    with pytest.raises(ColumnError, match="none of 1 sampled images in the column 'image' can be used"):
        datapipe.advise(broken, keep=0.1, image_column="image", model=str(model))


def test_a_set_of_texts_is_advised_on_by_the_command_with_one_object_of_json() -> None:
    source = DATA / "banking77.parquet"
    done = command("advise", source, "--keep", "0.1", "--text-column", "text", "--label-column", "label_name", "--json")
    assert done.returncode == 0, done.stderr
    advice = json.loads(done.stdout)
    assert advice["facts"]["classes"] == 77
    assert advice["command"].startswith(f"datapipe curate {source} --out OUT --keep 0.1 --preset ")
    assert "--dedup exact" in advice["command"]
    assert advice["evidence"] or advice["preset"].startswith("random")


def test_a_pilot_goes_into_the_advice() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3, 600)
    points = (np.eye(8)[codes] + 0.2 * rng.normal(size=(600, 8))).astype(np.float32)
    shown = np.where(rng.random(600) < 0.4, rng.integers(0, 3, 600), codes)
    frame = pl.DataFrame({"vector": points, "kind": [str(code) for code in shown]})
    advice = datapipe.advise(frame, keep=0.1, embedding_column="vector", label_column="kind", pilot=True)
    assert advice.pilot is not None
    assert advice.preset == "bws"
    assert f"--window-start {advice.pilot.start:g}" in advice.command
    assert advice.pilot.curve is not None
    assert advice.pilot.curve.at == 60


def test_geometry_tells_lines_from_balls() -> None:
    line = np.outer(np.linspace(-1, 1, 200), np.ones(8)) + np.array([1.0, *[0.0] * 7])
    line /= np.linalg.norm(line, axis=1, keepdims=True)
    ball = vectors(200) / np.linalg.norm(vectors(200), axis=1, keepdims=True)
    assert geometry(line.astype(np.float32))["dimensions"] < 2
    assert geometry(ball)["dimensions"] > 6
    assert geometry(line.astype(np.float32))["near_repeats"] > 0.9
    assert 0 <= geometry(ball)["cluster_balance"] <= 1


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    frame = rows_with_vectors()
    with pytest.raises(ColumnError, match="label_column 'sort' is not in the source; its columns are vector, kind"):
        datapipe.advise(frame, embedding_column="vector", label_column="sort")
    with pytest.raises(MetricError, match="a pilot trains on labels"):
        datapipe.advise(frame, embedding_column="vector", pilot=True)
    with pytest.raises(MetricError, match="a pilot needs vectors"):
        datapipe.advise(DATA / "fashion_mnist_60.parquet", keep=0.1, label_column="label_name", pilot=True)
    with pytest.raises(BudgetError, match=r"above 0 and at most 1, got 2\.0"):
        datapipe.advise(frame, keep=2.0, embedding_column="vector")
    (tmp_path / "evidence.json").write_text('[{"method": "elfs"}]')
    with pytest.raises(ConfigError, match=r"evidence.json, row 1: unknown \[\], missing \['accuracy'"):
        datapipe.advise(frame, embedding_column="vector", evidence=tmp_path / "evidence.json")


def result(method: str, seed: int, accuracy: float, fraction: float = 0.1) -> dict[str, object]:
    return {
        "dataset": "cifar10",
        "encoder": "simclr",
        "fraction": fraction,
        "method": method,
        "seed": seed,
        "accuracy": accuracy,
    }


def test_results_of_a_benchmark_become_evidence_paired_by_seed() -> None:
    runs = [result("full", 0, 95.0, 1.0), result("full", 1, 96.0, 1.0)]
    for seed, random in enumerate([80.0, 82.0, 81.0, 80.0, 82.0]):
        runs += [result("random", seed, random), result("prototypes_hard", seed, random - 9 + seed % 2)]
    runs.append(result("default_labels", 0, 85.0))
    single, hard = evidence_from(runs, rows=50_000, classes=10)
    assert (hard.method, hard.accuracy, hard.random, hard.full) == ("sorscher_hard", 72.4, 81.0, 95.5)
    assert hard.gain == pytest.approx(-8.6)
    assert hard.half_width == pytest.approx(2.776 * np.std([0, 1, 0, 1, 0], ddof=1) / np.sqrt(5), rel=0.01)
    assert hard.loses
    assert not single.wins, "one seed proves nothing"


def test_results_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"elfs at 0\.1 on cifar10, simclr, has no seed in common with random"):
        evidence_from([result("elfs", 0, 80.0), result("random", 1, 80.0)], rows=10, classes=2)
    with pytest.raises(ConfigError, match="has the seed 0 twice"):
        evidence_from([result("random", 0, 80.0), result("random", 0, 80.0)], rows=10, classes=2)
    with pytest.raises(ConfigError, match="result row 1 lacks dataset"):
        evidence_from([{}], rows=10, classes=2)


def test_a_table_of_evidence_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evidence.json"
    for text, message in (("[", "cannot read the evidence"), ("{}", "holds no list"), ("[1]", "no object")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_evidence(path)
