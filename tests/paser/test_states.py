"""States of the original and damage of its versions, over real rows and small random models."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers

from datapipe.errors import ModelError
from datapipe.stages.alone import Alone
from datapipe.stages.damage import Damage
from datapipe.stages.states import States
from datapipe.workers.folder import ModelFolder
from datapipe.workers.tasks.causal import PlainTokenizer
from tests.paser.pools import dolly, models, run, whole

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datapipe.pipeline import StageOutput

ROWS = 12


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some rows are longer than the models read."""
    return dolly(tmp_path_factory.mktemp("pool") / "pool.parquet", ROWS, long=3)


@pytest.fixture(scope="module")
def done(
    pool: Path, tmp_path_factory: pytest.TempPathFactory, tiny_original: Path, tiny_pruned: Path
) -> Mapping[str, StageOutput]:
    with models(tiny_original, tiny_pruned) as both:
        stages = [States.of(both), Damage.of(both, "pruned"), Alone.of(both, "pruned")]
        return run(pool, tmp_path_factory.mktemp("run"), stages)


def texts(done: Mapping[str, StageOutput]) -> dict[bytes, tuple[str, str]]:
    found = {}
    for table in done["pool"].tables("rows"):
        for row in table.to_pylist():
            asked = "\n\n".join(part for part in (row["instruction"], row["input"]) if part)
            found[row["row_id"]] = (f"user : {asked}\nassistant : ", row["response"])
    return found


def test_numbers_of_a_row_agree_with_plain_transformers(
    done: Mapping[str, StageOutput], tiny_original: Path, tiny_pruned: Path
) -> None:
    rows, known = whole(done["damage_pruned"]).to_pylist(), texts(done)
    assert len(rows) == ROWS
    tokenizer = PlainTokenizer(ModelFolder("m", tiny_original))
    loaded = [transformers.AutoModelForCausalLM.from_pretrained(each) for each in (tiny_original, tiny_pruned)]
    for row in [row for row in rows if row["tokens"] + row["prompt_tokens"] < 256][:5]:
        prompt, text = tokenizer.plain(list(known[row["row_id"]]), first=0)
        ids = np.concatenate([tokenizer.opening, prompt, text]).astype(np.int64)
        assert row["tokens"] == len(text)
        assert row["prompt_tokens"] == len(ids) - len(text)
        with torch.inference_mode():
            one, other = (model(torch.from_numpy(ids)[None]).logits[0, -len(text) - 1 : -1] for model in loaded)
        # States are rounded to bfloat16 before the heads: 2^-9 of their length, and so of the logits.
        for name, value in expected(one.double(), other.double(), torch.from_numpy(text.astype(np.int64))).items():
            assert row[name] == pytest.approx(float(value), rel=0.03), name


def expected(logits_o: torch.Tensor, logits_p: torch.Tensor, own: torch.Tensor) -> dict[str, torch.Tensor]:
    a, b = logits_o.log_softmax(1), logits_p.log_softmax(1)
    p, q = a.exp(), b.exp()
    m = ((p + q) / 2).log()
    jsd = (0.5 * p * (a - m) + 0.5 * q * (b - m)).sum(1)
    return {
        "jsd_mean": jsd.mean(),
        "jsd_sum": jsd.sum(),
        "jsd_p95": jsd.quantile(0.95),
        "jsd_first": jsd[0],
        "kl_op": (p * (a - b)).sum(1).mean(),
        "kl_po": (q * (b - a)).sum(1).mean(),
        "nll_o": -a.gather(1, own[:, None]).mean(),
        "nll_p": -b.gather(1, own[:, None]).mean(),
    }


def test_rows_that_are_too_long_lose_the_beginning_of_their_prompt_and_are_counted(
    done: Mapping[str, StageOutput],
) -> None:
    states, damage = whole(done["states"]), whole(done["damage_pruned"])
    long = states["truncated"].to_numpy()
    assert 0 < long.sum() < ROWS
    assert done["states"].facts["truncated"] == long.sum()
    assert (states["tokens"].to_numpy() > 256).tolist() == long.tolist()
    seen = damage["tokens"].to_numpy() + damage["prompt_tokens"].to_numpy()
    assert (seen[long] == 256).all()
    assert (seen[~long] == states["tokens"].to_numpy()[~long]).all()
    assert damage["row_id"].to_pylist() == states["row_id"].to_pylist()


def test_a_model_against_itself_differs_by_nothing(pool: Path, tmp_path: Path, tiny_original: Path) -> None:
    with models(tiny_original, tiny_original) as both:
        assert both.labels == ("original-2",)
        found = whole(run(pool, tmp_path, [States.of(both), Damage.of(both, "original-2")])["damage_original-2"])
    for name in ("jsd_mean", "jsd_sum", "jsd_p95", "jsd_first", "kl_op", "kl_po", "disagree"):
        assert np.abs(found[name].to_numpy()).max() < 1e-6, name
    np.testing.assert_array_equal(found["nll_o"].to_numpy(), found["nll_p"].to_numpy())


def test_another_version_costs_its_own_pass_alone(
    pool: Path, tmp_path: Path, tiny_original: Path, tiny_pruned: Path, tiny_rounded: Path, monkeypatch: Any
) -> None:
    def counted(*pruned: Path) -> dict[str, int]:
        asked: dict[str, int] = {}
        with models(tiny_original, *pruned) as all_of_them:
            worker, true_run = all_of_them.worker, all_of_them.worker.run

            def counting(task: str, items: Any, *, model: str, **rest: Any) -> Any:
                asked[model] = asked.get(model, 0) + len(items)
                return true_run(task, items, model=model, **rest)

            monkeypatch.setattr(worker, "run", counting)
            run(pool, tmp_path, [States.of(all_of_them), *(Damage.of(all_of_them, at) for at in all_of_them.labels)])
        return asked

    assert counted(tiny_pruned) == {"original": ROWS, "pruned": ROWS}
    assert counted(tiny_pruned, tiny_rounded) == {"rounded": ROWS}


def test_what_is_done_is_not_loaded_again(
    pool: Path, tmp_path: Path, tiny_original: Path, tiny_pruned: Path, monkeypatch: Any
) -> None:
    for _ in range(2):
        with models(tiny_original, tiny_pruned) as both:
            run(pool, tmp_path, [States.of(both), Damage.of(both, "pruned")])
        monkeypatch.setattr("datapipe.workers.worker.LocalWorker.load", lambda *_, **__: pytest.fail("loaded"))


def test_difficulty_without_the_prompt_is_that_of_the_text_alone(
    done: Mapping[str, StageOutput], tiny_pruned: Path
) -> None:
    rows, known = whole(done["alone"]).to_pylist(), texts(done)
    tokenizer = PlainTokenizer(ModelFolder("m", tiny_pruned))
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_pruned)
    for row in rows[:4]:
        text = tokenizer.plain([known[row["row_id"]][1]], first=0)[0]
        ids = torch.from_numpy(np.concatenate([tokenizer.opening, text]).astype(np.int64))[:256]
        with torch.inference_mode():
            chances = model(ids[None]).logits[0, :-1].log_softmax(1)
        assert row["nll_alone"] == pytest.approx(-float(chances.gather(1, ids[1:, None]).mean()), rel=1e-3)


def test_a_response_without_tokens_has_no_numbers(
    pool: Path, tmp_path: Path, tiny_original: Path, tiny_pruned: Path
) -> None:
    rows = pq.read_table(pool).slice(0, 3).to_pylist()
    rows[1]["output"] = "\N{ZERO WIDTH JOINER}"  # the tokenizer drops it
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pool.parquet")
    with models(tiny_original, tiny_pruned) as both:
        stages = [States.of(both), Damage.of(both, "pruned"), Alone.of(both, "pruned")]
        done = run(tmp_path / "pool.parquet", tmp_path, stages)
    found = whole(done["damage_pruned"])
    tokens = found["tokens"].to_numpy()
    assert sorted(tokens == 0) == [False, False, True]
    assert np.isnan(found["jsd_mean"].to_numpy()).tolist() == (tokens == 0).tolist()
    assert np.isnan(whole(done["alone"])["nll_alone"].to_numpy()).tolist() == (tokens == 0).tolist()
    assert done["states"].facts["unscored"] == 1


def test_two_ways_to_cut_a_text_are_refused_by_the_row(
    pool: Path, tmp_path: Path, tiny_original: Path, tiny_pruned: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_pruned, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False  # the same vocabulary, other tokens
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with (
        models(tiny_original, other) as both,
        pytest.raises(ModelError, match=r"models original and other cut the response of row [0-9a-f]{32} into differ"),
    ):
        run(pool, tmp_path, [States.of(both), Damage.of(both, "other")])
