"""Runs over images: from cells or files to kept rows, with hostile images refused and thumbnails on the page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from PIL import Image
from typer.testing import CliRunner

import datapipe
from datapipe.cli import app
from datapipe.curation import Curation
from datapipe.embedding.image import embed_images
from datapipe.errors import ColumnError, ConfigError, MissingExtraError, SourceError
from datapipe.report.facts import facts_from_json
from datapipe.stages import embed_images as stage
from datapipe.storage.vectors import decode
from datapipe.storage.verify import verify
from datapipe.workers.worker import LocalWorker
from tests.conftest import DATA
from tests.pictures import encoded, hostile, opened, shipped
from tests.runs import contents
from tests.workers.tiny import vision_folder

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.report.facts import RunFacts

IMAGES = shipped(DATA)
LABELS = pl.read_parquet(DATA / "fashion_mnist_60.parquet")["label_name"].to_list()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "vit"
    folder.mkdir()
    vision_folder(folder, "vit")
    return str(folder)


def frame(images: list[Any] = IMAGES, **columns: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"image": images, "number": list(range(len(images))), **columns})


def curate(source: Any, out: Path, model: str, **options: Any) -> Any:
    return datapipe.curate(source, out=out, model=model, image_column="image", device="cpu", **options)


def facts_of(out: Path) -> RunFacts:
    return facts_from_json(next((out / "stages").glob("report-*/facts.json")).read_bytes())


def kept(out: Path) -> list[int]:
    return sorted(pl.read_parquet(out / "kept.parquet")["number"].to_list())


def test_the_command_keeps_whole_rows_and_the_page_shows_them(tmp_path: Path, model: str) -> None:
    frame(label=LABELS).write_parquet(tmp_path / "images.parquet")
    arguments = ["--image-column", "image", "--label-column", "label", "--model", model, "--keep", "0.5"]
    where = ["--device", "cpu", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, ["curate", str(tmp_path / "images.parquet"), *arguments, *where])
    assert done.exit_code == 0, done.output
    result = datapipe.open_run(tmp_path / "run")
    assert result.counts == {"kept": 30, "over_budget": 30}
    rows = result.kept.collect()
    assert rows["image"].to_list() == [IMAGES[number] for number in rows["number"]]
    assert [timing.stage for timing in result.timings][:2] == ["ingest", "embed"]
    assert result.manifest["columns"]["image"] == "image"
    facts = facts_of(tmp_path / "run")
    shown = [row for group in facts.examples for row in (*group.kept, *group.dropped)]
    assert len(shown) == 60
    by_id = dict(result.scores.select("row_id").with_row_index().collect().select("row_id", "index").iter_rows())
    assert {bytes.fromhex(row.row_id) for row in shown} <= by_id.keys()
    for row in shown:
        assert row.image is not None
        assert Image.open(io.BytesIO(base64.b64decode(row.image))).size == (28, 28)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 60
    assert verify(tmp_path / "run").ok


def test_the_vectors_are_those_of_the_model_in_the_order_of_the_row_ids(tmp_path: Path, model: str) -> None:
    curate(frame(), tmp_path / "run", model)
    outputs = Curation(frame(), out=tmp_path / "run", model=model, image_column="image", device="cpu").outputs(
        until="embed"
    )
    vectors = np.concatenate([decode(table["vector"]) for table in outputs["embed"].tables()])
    places = [row for table in outputs["ingest"].tables("places") for row in table["row"].to_pylist()]
    with LocalWorker(device="cpu", token_budget=1 << 30, max_items=8) as worker:
        expected = embed_images(worker, IMAGES, model=model, batch=8)
    np.testing.assert_allclose(vectors, expected[np.array(places) - 1], atol=2**-8)


def test_the_choice_hangs_on_neither_cut_nor_order_nor_where_the_images_lie(tmp_path: Path, model: str) -> None:
    order = np.random.default_rng(3).permutation(60).tolist()
    whole = frame(label=LABELS)
    whole.write_parquet(tmp_path / "whole.parquet")
    (tmp_path / "cut").mkdir()
    for i, part in enumerate((order[:7], order[7:31], order[31:])):
        whole[part].write_parquet(tmp_path / "cut" / f"{i}.parquet")
    options: dict[str, Any] = {"keep": 0.4, "label_column": "label", "shard_rows": 16}
    first = curate(str(tmp_path / "whole.parquet"), tmp_path / "a", model, workers=1, **options)
    second = curate(str(tmp_path / "cut"), tmp_path / "b", model, workers=3, **options)
    one, two = contents(tmp_path / "a"), contents(tmp_path / "b")
    results = [f"{run.out.joinpath('current').readlink()}" for run in (first, second)]
    for name in ("kept.parquet", "scores.parquet", "selection.parquet"):
        assert one[f"{results[0]}/{name}"] == two[f"{results[1]}/{name}"]


def test_images_beside_a_table_are_read_by_their_paths(tmp_path: Path, model: str) -> None:
    (tmp_path / "set" / "train").mkdir(parents=True)
    for i, image in enumerate(IMAGES):
        (tmp_path / "set" / "train" / f"{i:03d}.png").write_bytes(image)
    table = pl.DataFrame({"image": [f"train/{i:03d}.png" for i in range(60)], "number": range(60)})
    table.write_csv(tmp_path / "set" / "metadata.csv")
    curate(str(tmp_path / "set" / "metadata.csv"), tmp_path / "run", model, keep_rows=12, metric="prototypes")
    assert len(kept(tmp_path / "run")) == 12
    scores = pl.read_parquet(tmp_path / "run" / "scores.parquet")["prototypes"]
    assert scores.n_unique() > 50


def test_hostile_images_are_refused_each_with_its_reason(tmp_path: Path, model: str) -> None:
    bad = hostile(IMAGES)
    images = [*IMAGES[:20], *(image for image, _ in bad.values())]
    result = curate(frame(images), tmp_path / "run", model, keep=1.0)
    assert result.counts["kept"] == 20
    rejected = pl.read_parquet(tmp_path / "run" / "rejected.parquet").sort("row")
    assert rejected["row"].to_list() == list(range(21, 21 + len(bad)))
    assert rejected["reason"].to_list() == [reason for _, reason in bad.values()]
    assert all(detail.startswith("column 'image'") for detail in rejected["detail"])


def test_a_run_of_which_no_image_can_be_used_is_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(SourceError, match=r"all 2 rows are refused \(2 not_an_image\)"):
        curate(frame([b"a", b"b"]), tmp_path / "run", model)


def test_equal_image_files_are_repeats_and_the_page_shows_both(tmp_path: Path, model: str) -> None:
    result = curate(frame([*IMAGES, *IMAGES[:5]]), tmp_path / "run", model, dedup="exact", keep=1.0)
    assert result.counts == {"kept": 60, "duplicate": 5}
    matches = facts_of(tmp_path / "run").matches
    assert len(matches) == 5
    assert all(match.image is not None and match.image == match.other_image for match in matches)


def test_images_saved_again_are_repeats_by_their_vectors(tmp_path: Path, model: str) -> None:
    again = [encoded(opened(image), "BMP") for image in IMAGES[:5]]
    result = curate(
        frame([*IMAGES, *again]), tmp_path / "run", model, dedup="semantic", dedup_threshold=0.9999, keep=1.0
    )
    assert result.counts["duplicate"] >= 5
    pictures = {opened(IMAGES[number] if number < 60 else again[number - 60]).tobytes() for number in kept(result.out)}
    assert len(pictures) == len(kept(result.out))


def test_an_image_of_another_split_is_not_trained_on(tmp_path: Path, model: str) -> None:
    source = frame([*IMAGES, *IMAGES[:5]], part=["train"] * 60 + ["test"] * 5)
    result = curate(source, tmp_path / "run", model, split_column="part", keep=1.0)
    assert result.counts == {"kept": 55, "other_split": 5, "leak": 5}
    assert kept(tmp_path / "run") == list(range(5, 60))


def test_equal_images_need_no_model(tmp_path: Path) -> None:
    images = [*IMAGES, *IMAGES[:5]]
    result = datapipe.curate(
        frame(images), out=tmp_path / "run", image_column="image", metric="random", dedup="exact", keep=1.0
    )
    assert result.counts == {"kept": 60, "duplicate": 5}


def test_images_of_an_evaluation_set_go_out_equal_or_near(tmp_path: Path, model: str) -> None:
    saved_again = encoded(opened(IMAGES[9]), "BMP")
    frame([IMAGES[4], saved_again]).write_parquet(tmp_path / "evaluation.parquet")
    result = curate(frame(), tmp_path / "run", model, protect=str(tmp_path / "evaluation.parquet"), keep=1.0)
    gone = pl.concat([pl.read_parquet(path) for path in (tmp_path / "run").glob("stages/screen-*/excluded-*.parquet")])
    rules = dict(gone.select("match", "rule").iter_rows())
    assert rules["evaluation row 0"] == "exact"
    assert rules["evaluation row 1"] == "near"
    assert not {4, 9} & set(kept(tmp_path / "run"))
    assert result.counts["protected"] == gone.height


def test_an_evaluation_image_that_cannot_be_used_is_told(tmp_path: Path, model: str) -> None:
    frame([IMAGES[4], b"nothing"]).write_parquet(tmp_path / "evaluation.parquet")
    with pytest.raises(SourceError, match=r"evaluation.parquet row 2: .* leave it out, it would protect nothing"):
        curate(frame(), tmp_path / "run", model, protect=str(tmp_path / "evaluation.parquet"))
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(ColumnError, match="has neither the image nor the vector column of the run"):
        curate(frame(), tmp_path / "run", model, protect=str(tmp_path / "other.parquet"))


def test_given_vectors_are_used_and_the_images_shown(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    source = frame().with_columns(vector=vectors)
    result = datapipe.curate(
        source, out=tmp_path / "run", image_column="image", embedding_column="vector", dedup="exact"
    )
    assert [timing.stage for timing in result.timings] == [
        *("ingest", "screen", "fit", "score", "select", "export", "report")
    ]
    assert all(row.image for group in facts_of(tmp_path / "run").examples for row in (*group.kept, *group.dropped))


class Killed(BaseException):
    """Stands for a process that ends."""


def test_a_killed_run_goes_on_after_the_last_finished_part(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "PART_ROWS", 16)
    monkeypatch.setattr(stage, "CALL_ROWS", 16)
    plain = curate(frame(), tmp_path / "plain", model, shard_rows=20)
    calls: list[int] = []
    real = embed_images

    def counted(worker: Any, images: list[bytes], **options: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 3:
            raise Killed
        return real(worker, images, **options)

    monkeypatch.setattr("datapipe.embedding.image.embed_images", counted)
    with pytest.raises(Killed):
        curate(frame(), tmp_path / "run", model, shard_rows=20)
    again = curate(frame(), tmp_path / "run", model, shard_rows=20)
    assert calls == [16, 16, 16, 16, 12]
    assert again.manifest == plain.manifest
    assert contents(tmp_path / "run") == contents(tmp_path / "plain")
    assert not list((tmp_path / "run").glob("stages/embed-*/part-*"))


def test_an_image_that_changed_since_it_was_ingested_is_told(tmp_path: Path, model: str) -> None:
    (tmp_path / "0.png").write_bytes(IMAGES[0])
    (tmp_path / "1.png").write_bytes(IMAGES[1])
    pl.DataFrame({"image": ["0.png", "1.png"]}).write_parquet(tmp_path / "a.parquet")
    options: dict[str, Any] = {"model": model, "image_column": "image", "device": "cpu"}
    curation = Curation(str(tmp_path / "a.parquet"), out=tmp_path / "run", **options)
    curation.run_stage("ingest")
    (tmp_path / "1.png").write_bytes(IMAGES[2])
    with pytest.raises(SourceError, match=r"a.parquet row 2: the image has changed since it was ingested"):
        curation.run()
    (tmp_path / "1.png").unlink()
    with pytest.raises(SourceError, match=r"a.parquet row 2: column 'image': the image '1.png' is not there"):
        curation.run()


def test_a_run_over_images_asks_for_a_vision_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs a vision model, and the default one embeds texts: pass model"):
        datapipe.curate(frame(), out=tmp_path / "run", image_column="image")
    assert not (tmp_path / "run").exists()


def test_without_pillow_the_extra_is_named(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"image_column 'image'.*secateur\[images\]"):
        curate(frame(), tmp_path / "run", model)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text_column": "text"}, "image_column and text_column exclude each other"),
        ({"keep_tokens": 9}, "images have no tokens to count"),
    ],
)
def test_options_that_images_have_no_use_for_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        datapipe.CurateConfig(image_column="image", **options)


def test_a_dry_run_times_the_model_and_writes_nothing(tmp_path: Path, model: str) -> None:
    curation = Curation(frame(), out=tmp_path / "run", model=model, image_column="image", device="cpu")
    found = curation.estimate()
    assert (found.rows, found.rows_kept) == (60, 18)
    assert found.stages[:2] == ("ingest", "embed")
    assert not (tmp_path / "run").exists()
