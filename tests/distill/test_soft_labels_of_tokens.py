"""Soft labels of the tokens of a run's texts or responses, by a causal teacher in process and behind a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

import datapipe
from datapipe.distill.codec import log_softmax
from datapipe.distill.layout import digest_tokens
from datapipe.embedding.text import tokenizer_digest
from datapipe.errors import ColumnError, ConfigError, ModelError, SoftLabelError
from datapipe.storage.rowid import ids_to_arrow
from datapipe.workers.http.app import create_app
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.teach import TeachItem
from datapipe.workers.worker import LocalWorker
from tests.conftest import DATA
from tests.workers.http.servers import listening
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from pathlib import Path

    from datapipe.workers.tasks.teach import TokenTeaching

ROWS = (
    pl.read_parquet(DATA / "dolly_3k.parquet")
    .select(pl.col("instruction").str.slice(0, 60), pl.col("output").str.slice(0, 80))
    .filter(pl.col("instruction").str.len_chars() > 10, pl.col("output").str.len_chars() > 10)
    .unique(maintain_order=True)
    .head(40)
)
COLUMNS: dict[str, Any] = {"prompt_column": "instruction", "response_column": "output"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "llama"
    folder.mkdir()
    text_folder(folder, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING")
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    curate(out)
    return out


def curate(out: Path, *, keep: float = 0.5, **options: Any) -> Any:
    given: dict[str, Any] = {
        "metric": "random",
        "strategy": "random",
        "text_column": "output",
        "device": "cpu",
    } | options
    return datapipe.curate(ROWS, out=out, keep=keep, **given)


def said(teacher: str, run: Path, *, prompt: bool, rows: int = 20, **wants: int) -> list[TokenTeaching]:
    """What the teacher says of the kept rows, in the order of the store."""
    kept = pl.read_parquet(run / "kept.parquet").head(rows)
    items = [
        TeachItem(row["output"], row["instruction"] if prompt else "", row["row_id"], **wants)
        for row in kept.to_dicts()
    ]
    with LocalWorker([ModelSpec("m", teacher, task="causal")], device="cpu") as worker:
        return worker.run("teach", items, model="m")


def test_the_tokens_of_the_responses_are_taught_after_their_prompts(run: Path, teacher: str) -> None:
    found = datapipe.soft_labels(run, teacher=teacher, top_k=4, device="cpu", **COLUMNS)
    store = found.store(tokenizer=tokenizer_digest(teacher))
    assert (store.header.level, store.header.classes) == ("token", 30_522)
    rows = store.read(np.arange(20))
    wanted = said(teacher, run, prompt=True, k=4)
    assert rows.sizes.tolist() == [len(each.log_probabilities) for each in wanted]
    labels: Any = rows.labels
    assert labels.ids.tolist() == np.concatenate([each.ids.reshape(-1, 4) for each in wanted]).tolist()
    values = np.concatenate([each.values.reshape(-1, 4) for each in wanted])
    assert labels.log_probabilities.astype(np.float32) == pytest.approx(values, abs=2e-2)
    digests = [digest_tokens(each.sequence[each.begin :]) for each in wanted]
    assert rows.table["tokens_digest"].to_pylist() == digests
    assert found.facts["positions"] == rows.sizes.sum()
    assert datapipe.verify(run).ok


def test_draws_are_the_default_and_loss_and_entropy_come_with_them(run: Path, teacher: str) -> None:
    found = datapipe.soft_labels(run, teacher=teacher, device="cpu", **COLUMNS)
    header = found.store().header
    assert (header.mode, header.draws) == ("sampled", 64)
    scores = pl.read_parquet(found.scores)
    wanted = said(teacher, run, prompt=True, k=1)
    assert scores.columns == ["row_id", "loss", "entropy"]
    assert scores["loss"].to_numpy() == pytest.approx([-each.log_probabilities.mean() for each in wanted], rel=1e-2)
    assert scores["entropy"].to_numpy() == pytest.approx([each.entropy.mean() for each in wanted], rel=1e-2)
    rows = found.store().read(np.arange(20))
    assert np.asarray(rows.fact("kd_alpha")) == pytest.approx(np.full(20, found.alpha))


def test_without_columns_the_whole_texts_of_the_run_are_taught(run: Path, teacher: str) -> None:
    found = datapipe.soft_labels(run, teacher=teacher, top_k=2, rows="all", device="cpu")
    assert found.facts["rows"] == 40
    store = found.store()
    kept = pl.read_parquet(run / "kept.parquet")["row_id"].to_list()
    ids = ids_to_arrow(store.row_ids).to_pylist()
    rows = store.read(np.array([ids.index(each) for each in kept]))
    wanted = said(teacher, run, prompt=False, k=2)
    assert rows.sizes.tolist() == [len(each.log_probabilities) for each in wanted]


def test_a_narrower_budget_reads_the_tokens_of_a_wider_one(
    tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    curate(tmp_path / "run", keep=0.8)
    datapipe.soft_labels(tmp_path / "run", teacher=teacher, device="cpu", **COLUMNS)
    curate(tmp_path / "run", keep=0.2)
    monkeypatch.setattr("datapipe.stages.teach_tokens.TeachTokens.run", lambda *_: pytest.fail("a teacher ran"))
    found = datapipe.soft_labels(tmp_path / "run", teacher=teacher, device="cpu", **COLUMNS)
    assert found.facts["rows"] == 8


def test_several_causal_teachers_are_averaged_over_the_whole_vocabulary(
    run: Path, teacher: str, tmp_path: Path
) -> None:
    text_folder(tmp_path, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING", num_hidden_layers=1, hidden_size=48)
    both = [teacher, str(tmp_path)]
    found = datapipe.soft_labels(run, teacher=both, top_k=4, device="cpu", **COLUMNS)
    labels: Any = found.store(tokenizer=tokenizer_digest(teacher)).read(np.arange(3)).labels
    alone = [
        np.concatenate([whole(each) for each in said(model, run, prompt=True, rows=3, k=30_522)]) for model in both
    ]
    mean = log_softmax(np.mean(alone, axis=0))
    assert labels.log_probabilities == pytest.approx(np.sort(mean, axis=1)[:, :-5:-1], abs=2e-2)
    assert labels.log_probabilities == pytest.approx(np.take_along_axis(mean, labels.ids, axis=1), abs=2e-2)
    assert [each["name"] for each in found.facts["header"]["teachers"]] == ["llama", tmp_path.name]
    assert found.facts["header"]["teachers"][0]["digest"] != found.facts["header"]["teachers"][1]["digest"]


def whole(found: TokenTeaching) -> Any:
    """Log probabilities of all tokens in the order of their ids, float64 (scored, vocabulary)."""
    ids = found.ids.reshape(len(found.tail), -1)
    values = np.empty(ids.shape)
    np.put_along_axis(values, ids.astype(np.int64), found.values.reshape(ids.shape), axis=1)
    return values


def test_teachers_of_other_tokens_are_not_averaged(run: Path, teacher: str, tmp_path: Path) -> None:
    text_folder(tmp_path, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING", bare=True)
    with pytest.raises(ModelError, match=r"read different tokens .* cannot be averaged token by token"):
        datapipe.soft_labels(run, teacher=[teacher, str(tmp_path)], device="cpu", **COLUMNS)


def test_a_teacher_behind_a_server_gives_the_same_labels(run: Path, teacher: str) -> None:
    here = datapipe.soft_labels(run, teacher=teacher, sampled=16, device="cpu", **COLUMNS)
    near = here.store().read(np.arange(20))
    spec = ModelSpec("remote", teacher, task="causal")
    with LocalWorker([spec], device="cpu") as worker, listening(create_app(worker, models=[spec])) as url:
        asked: dict[str, Any] = {"teacher": "remote", "task": "causal", "workers": url, "tokenizer": teacher}
        there = datapipe.soft_labels(run, sampled=16, **asked, **COLUMNS)
    far = there.store(tokenizer=tokenizer_digest(teacher)).read(np.arange(20))
    one, two = near.labels, far.labels
    assert np.array_equal(one.ids, two.ids)  # type: ignore[union-attr]
    assert np.array_equal(one.counts, two.counts)  # type: ignore[union-attr]
    assert there.facts["header"]["teachers"][0]["digest"] == here.facts["header"]["teachers"][0]["digest"]


def test_what_a_causal_teacher_cannot_do_is_refused(run: Path, teacher: str, tmp_path: Path) -> None:
    def asked(**options: Any) -> Any:
        return datapipe.soft_labels(run, **({"teacher": teacher, "device": "cpu"} | options))

    with pytest.raises(ConfigError, match="head tells classes apart, and a causal teacher tells tokens"):
        asked(teacher=[teacher, "head"])
    with pytest.raises(ConfigError, match="2 causal teachers are averaged over whole vocabularies on their device"):
        asked(teacher=[teacher, "another"], task="causal", workers="http://127.0.0.1:1")
    with pytest.raises(ColumnError, match=r"response_column 'answer' is not in kept\.parquet; its columns are row_id"):
        asked(response_column="answer")
    with pytest.raises(ConfigError, match=r"read from kept\.parquet: take rows='kept'"):
        asked(rows="all", **COLUMNS)
    with pytest.raises(ConfigError, match=r"k must be 1 \.\.\. 30522"):
        asked(top_k=30_523)
    with pytest.raises(ConfigError, match="dense labels of 30,522 classes"):
        asked(dense=True)
    empty = ROWS.with_columns(pl.when(pl.int_range(pl.len()) < 39).then("output").alias("output"))
    datapipe.curate(empty, out=tmp_path / "run", keep=1.0, metric="random", text_column="instruction")
    with pytest.raises(SoftLabelError, match="has no response, so there are no tokens to teach"):
        datapipe.soft_labels(tmp_path / "run", teacher=teacher, device="cpu", **COLUMNS)
