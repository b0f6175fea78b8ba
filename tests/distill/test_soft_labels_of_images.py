"""Soft labels of runs over images: read again in the order of the source, stored in the order of the rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.distill.codec import log_softmax
from datapipe.errors import SoftLabelError, SourceError
from datapipe.stages.teach import TeachConfig, TeachRows
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.image import ImageItem
from datapipe.workers.worker import LocalWorker
from tests.conftest import DATA
from tests.runs import contents
from tests.workers.tiny import vision_folder

if TYPE_CHECKING:
    from pathlib import Path

SET = pl.read_parquet(DATA / "fashion_mnist_60.parquet").select("image", "label_name")
NAMES = sorted(SET["label_name"].unique().to_list())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random vision classifier of the ten classes, in another order."""
    folder = tmp_path_factory.mktemp("models") / "vit"
    folder.mkdir()
    names = dict(enumerate(reversed(NAMES)))
    vision_folder(folder, "vit", mapping="MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", id2label=names)
    return str(folder)


def curate(source: Any, out: Path, **options: Any) -> Any:
    given: dict[str, Any] = {"keep": 0.5, "metric": "random", "strategy": "random", "device": "cpu"} | options
    return datapipe.curate(source, out=out, image_column="image", label_column="label_name", **given)


def written(path: Path, frame: pl.DataFrame) -> str:
    frame.write_parquet(path)
    return str(path)


def test_images_are_judged_by_a_classifier_and_stored_in_the_order_of_the_rows(tmp_path: Path, classifier: str) -> None:
    source = written(tmp_path / "rows.parquet", SET)
    curate(source, tmp_path / "run")
    found = datapipe.soft_labels(tmp_path / "run", teacher=classifier, device="cpu")
    kept = pl.read_parquet(tmp_path / "run" / "kept.parquet")
    with LocalWorker([ModelSpec("m", classifier, task="classify_image")], device="cpu") as worker:
        results = worker.run("classify_image", [ImageItem(image) for image in kept["image"].to_list()], model="m")
    wanted = log_softmax(np.stack([each.logits for each in results]))[:, ::-1]
    labels: Any = found.store(class_names=NAMES).read(np.arange(30)).labels
    assert np.asarray(labels.log_probabilities, np.float64) == pytest.approx(wanted, abs=2e-2)
    assert datapipe.verify(tmp_path / "run").ok


def test_the_order_of_the_source_changes_no_byte_of_the_store(tmp_path: Path, classifier: str) -> None:
    for name, frame in (("one", SET), ("two", SET.reverse())):
        curate(written(tmp_path / f"{name}.parquet", frame), tmp_path / name)
        datapipe.soft_labels(tmp_path / name, teacher=classifier, device="cpu")
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    store = "results/{}/soft_labels.parquet"
    digests = [files[store.format(files["current"].removeprefix("-> results/"))] for files in (one, two)]
    assert digests[0] == digests[1]


def test_a_narrower_budget_of_images_reads_the_wider_pass(
    tmp_path: Path, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "rows.parquet", SET)
    curate(source, tmp_path / "run", keep=0.8)
    datapipe.soft_labels(tmp_path / "run", teacher=classifier, device="cpu")
    curate(source, tmp_path / "run", keep=0.3)
    monkeypatch.setattr("datapipe.stages.teach.TeachRows.run", lambda *_: pytest.fail("a teacher ran"))
    found = datapipe.soft_labels(tmp_path / "run", teacher=classifier, device="cpu")
    kept = pl.read_parquet(tmp_path / "run" / "kept.parquet")["row_id"].to_list()
    assert pl.read_parquet(found.scores)["row_id"].to_list() == kept
    assert len(kept) == 18


def test_images_in_several_parts_and_calls_give_the_same_store_even_after_a_kill(
    tmp_path: Path, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "rows.parquet", SET)
    for name in ("whole", "cut"):
        curate(source, tmp_path / name)
    datapipe.soft_labels(tmp_path / "whole", teacher=classifier, device="cpu")
    monkeypatch.setattr("datapipe.distill.wiring.TeachConfig", partial(TeachConfig, part_rows=12))
    monkeypatch.setattr("datapipe.distill.wiring.IMAGE_ROWS", 8)
    original, left = TeachRows._part, [2]

    def dies(self: TeachRows, *arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TeachRows, "_part", dies)
        datapipe.soft_labels(tmp_path / "cut", teacher=classifier, device="cpu")
    datapipe.soft_labels(tmp_path / "cut", teacher=classifier, device="cpu")
    one, two = (pl.read_parquet(tmp_path / name / "soft_labels.parquet") for name in ("whole", "cut"))
    assert one.equals(two)
    assert len(list((tmp_path / "cut" / "stages").glob("teach-*/part-*.parquet"))) == 3


def test_a_source_that_is_gone_or_has_changed_is_refused(tmp_path: Path, classifier: str) -> None:
    source = written(tmp_path / "rows.parquet", SET)
    curate(source, tmp_path / "run")
    written(tmp_path / "rows.parquet", SET.with_columns(pl.col("image").reverse()))
    with pytest.raises(SourceError, match="the image has changed since it was ingested"):
        datapipe.soft_labels(tmp_path / "run", teacher=classifier, device="cpu")
    (tmp_path / "rows.parquet").unlink()
    with pytest.raises(SourceError, match=r"rows\.parquet"):
        datapipe.soft_labels(tmp_path / "run", teacher=classifier, device="cpu")


def test_a_classifier_of_images_that_gives_no_numbers_is_refused(
    tmp_path: Path, classifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(written(tmp_path / "rows.parquet", SET), tmp_path / "run")
    spoilt = np.full((8, 10), np.nan, np.float32)
    monkeypatch.setattr("datapipe.workers.encoders.transfer.to_host", lambda outputs: spoilt[: len(outputs)])
    with pytest.raises(SoftLabelError, match="teacher vit gives logits that are no numbers for row"):
        datapipe.soft_labels(tmp_path / "run", teacher=classifier, device="cpu")
