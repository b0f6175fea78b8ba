"""A pool rewritten by a small random model whose answers end early: some pass the checks, most do not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from datapipe.cli import app
from datapipe.distill.rewrite import RewriteResult, rewrite
from datapipe.distill.rewrite_checks import Limits, check
from datapipe.distill.rewrite_model import TOKEN_BUDGET
from datapipe.errors import ColumnError, ConfigError, ModelError, SourceError
from datapipe.storage.instructions import PoolColumns, columns_of, read_pairs
from datapipe.storage.verify import verify
from datapipe.workers.http.app import create_app
from datapipe.workers.spec import ModelSpec
from datapipe.workers.tasks.generate import GenerateTask
from datapipe.workers.worker import LocalWorker
from tests.workers.http.servers import listening
from tests.workers.tiny import text_folder

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 48


def pool_rows() -> list[dict[str, Any]]:
    """Real rows, half of them with answers of so few words that a random answer is not taken for unrelated."""
    table = pq.read_table("data/dolly_3k.parquet", columns=["instruction", "input", "output"])
    rows: list[dict[str, Any]] = table.to_pylist()
    short = [row for row in rows if 40 < len(row["output"]) < 60 and len(row["input"]) < 200]
    return [*rows[: ROWS // 2], *short[: ROWS // 2]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token in eight ends an answer."""
    folder = tmp_path_factory.mktemp("original")
    text_folder(folder, "llama", mapping="MODEL_FOR_CAUSAL_LM_MAPPING", max_position_embeddings=512)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(0, 30_522, 8))}))
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(pool_rows()), path)
    return path


def run(pool: Path | list[str], model: Path, out: Path, **options: Any) -> RewriteResult:
    given = {"max_new_tokens": 24, "shard_rows": 16, "device": "cpu", **options}
    return rewrite(pool, model=str(model), out=out, **given)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, pool: Path, model: Path) -> RewriteResult:
    return run(pool, model, tmp_path_factory.mktemp("run") / "out")


def test_every_row_has_an_answer_and_says_whose(done: RewriteResult) -> None:
    rows = pq.read_table(done.out / "rewritten.parquet").to_pylist()
    human = {(row["instruction"], row["input"]): row["output"] for row in pool_rows()}
    assert len(rows) == ROWS
    assert [row["row_id"] for row in rows] == sorted(row["row_id"] for row in rows)
    for row in rows:
        assert row["response_human"] == human[row["instruction"], row["input"]]
        assert row["rewritten"] == (row["reason"] is None) == (row["response"] != row["response_human"])
        assert row["tokens"] > 0
    taken = sum(row["rewritten"] for row in rows)
    assert 0 < taken < ROWS
    assert done.counts["rewritten"] == taken == round(done.share * ROWS)
    assert sum(done.counts.values()) == ROWS


def test_answers_that_are_taken_pass_the_checks_and_failed_ones_are_kept_apart(done: RewriteResult) -> None:
    rows = {row["row_id"]: row for row in pq.read_table(done.out / "rewritten.parquet").to_pylist()}
    failed = pq.read_table(done.out / "failed.parquet").to_pylist()
    assert {row["row_id"] for row in failed} == {key for key, row in rows.items() if not row["rewritten"]}
    for row in failed:
        assert row["reason"] == rows[row["row_id"]]["reason"]
    for row in rows.values():
        if row["rewritten"]:
            asked = f"{row['instruction']}\n{row['input']}"
            assert check(row["response"], reference=row["response_human"], instruction=asked) is None


def test_the_model_is_asked_with_its_own_chat_form(tmp_path: Path, pool: Path, model: Path) -> None:
    plain = run(pool, model, tmp_path / "out")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    try:
        chatted = run(pool, model, tmp_path / "out")
    finally:
        (model / "chat_template.jinja").unlink()
    assert [each.reused for each in chatted.timings] == [True, False, False]
    assert chatted.manifest["model"]["chat"] != plain.manifest["model"]["chat"]


def test_a_second_run_does_nothing_and_any_cut_of_the_pool_gives_the_same_bytes(
    tmp_path: Path, done: RewriteResult, model: Path
) -> None:
    rows = pool_rows()
    for name, part in (("b", rows[:20]), ("a", rows[20:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    names = [str(tmp_path / f"{name}.jsonl") for name in "ba"]
    again = run(names, model, tmp_path / "out")
    assert (tmp_path / "out/rewritten.parquet").read_bytes() == (done.out / "rewritten.parquet").read_bytes()
    assert again.counts == done.counts
    assert all(each.reused for each in run(names, model, tmp_path / "out").timings)
    assert verify(tmp_path / "out").ok


def test_a_killed_run_goes_on_with_what_is_missing(
    tmp_path: Path, pool: Path, model: Path, done: RewriteResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = 0
    forward = GenerateTask.forward

    def failing(self: GenerateTask, batch: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        return forward(self, batch)

    monkeypatch.setattr(GenerateTask, "forward", failing)
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        run(pool, model, tmp_path / "out")
    monkeypatch.undo()
    before = {path.name for path in (tmp_path / "out/stages").glob("rewrite-*/*.parquet")}
    run(pool, model, tmp_path / "out")
    after = {path.name for path in (tmp_path / "out/stages").glob("rewrite-*/*.parquet")}
    assert before < after
    assert (tmp_path / "out/rewritten.parquet").read_bytes() == (done.out / "rewritten.parquet").read_bytes()


def test_draws_follow_seed_and_row(tmp_path: Path, pool: Path, model: Path) -> None:
    def answers(name: str, **options: Any) -> list[str]:
        run(pool, model, tmp_path / name, temperature=1.0, limits=Limits(shortest=0.0), **options)
        rows = pq.read_table(tmp_path / name / "failed.parquet").to_pylist()
        return [row["candidate"] for row in rows]

    assert answers("one", seed=1) == answers("again", seed=1)
    assert answers("one", seed=1) != answers("two", seed=2)


def test_rows_that_cannot_be_used_are_rejected_with_a_reason(tmp_path: Path, model: Path) -> None:
    rows = [*pool_rows()[:3], {"instruction": " ", "input": "", "output": "x"}, {"instruction": "y", "output": None}]
    rows.append({"instruction": "z", "input": "", "output": "long " * 40})
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run([str(tmp_path / "pool.jsonl")], model, tmp_path / "out", max_chars=190)
    rejected = pq.read_table(tmp_path / "out/rejected.parquet").to_pylist()
    told = {row["row"]: row["reason"] for row in rejected}
    assert {told[4], told[5], told[6]} == {"empty_text", "null_text", "text_too_long"}
    assert sum(found.counts.values()) == len(rows)


def test_a_prompt_longer_than_the_model_keeps_its_human_answer(tmp_path: Path, model: Path) -> None:
    rows = [{"instruction": "rose " * 600, "output": "a rose is a rose"}, *pool_rows()[:2]]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run([str(tmp_path / "pool.jsonl")], model, tmp_path / "out")
    assert found.counts["kept_prompt_too_long"] == 1


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "In winter."},
]


def test_chats_of_one_turn_are_read_in_both_shapes() -> None:
    shared = [{"from": "human", "value": "When?"}, {"from": "gpt", "value": "In winter."}]
    for rows, instruction in (([{"messages": CHAT}], "Be brief.\n\nWhen?"), ([{"conversations": shared}], "When?")):
        table = pa.Table.from_pylist(rows)
        pairs, refused = read_pairs(table, columns_of(table.column_names), max_chars=100, turns="one")
        assert (pairs[0].instruction, pairs[0].input, pairs[0].response) == (instruction, "", "In winter.")
        assert refused == {}


def test_chats_of_no_or_several_turns_are_refused() -> None:
    rows = [{"messages": chat} for chat in ([], CHAT[:2], [*CHAT, *CHAT[1:]], [{"role": "tool", "content": "x"}], None)]
    table = pa.Table.from_pylist(rows)
    pairs, refused = read_pairs(table, columns_of(["messages"]), max_chars=100, turns="one")
    assert pairs == []
    assert [refused[place][0] for place in range(5)] == [
        "no_turns",
        "no_turns",
        "several_turns",
        "no_turns",
        "no_turns",
    ]
    assert "It holds system, user" in refused[1][1]


def test_columns_are_found_by_their_usual_names_or_as_they_are_named() -> None:
    assert columns_of(["question", "answer", "id"]) == PoolColumns(instruction="question", response="answer")
    assert columns_of(["a", "output", "instruction"], PoolColumns(response="a")).response == "a"
    assert columns_of(["instruction", "output", "messages"]).messages is None
    assert columns_of(["instruction", "output", "m"], PoolColumns(messages="m")) == PoolColumns(messages="m")
    with pytest.raises(ColumnError, match=r"no instructions with responses and no conversations; its columns are text"):
        columns_of(["text"])
    with pytest.raises(ColumnError, match="response column 'b' is not in the pool; its columns are a, c"):
        columns_of(["a", "c"], PoolColumns(response="b"))


def test_a_column_of_another_type_is_refused(tmp_path: Path, model: Path) -> None:
    pq.write_table(pa.table({"instruction": [1], "output": ["x"]}), tmp_path / "pool.parquet")
    with pytest.raises(ColumnError, match="column 'instruction' of the pool is int64; it must hold strings"):
        run([str(tmp_path / "pool.parquet")], model, tmp_path / "out")
    pq.write_table(pa.table({"messages": ["x"]}), tmp_path / "chat.parquet")
    with pytest.raises(ColumnError, match="it must hold lists of messages"):
        run([str(tmp_path / "chat.parquet")], model, tmp_path / "out")


def test_a_pool_of_which_nothing_can_be_used_is_refused(tmp_path: Path, model: Path) -> None:
    pq.write_table(pa.table({"instruction": ["x"], "output": [" "]}), tmp_path / "pool.parquet")
    with pytest.raises(SourceError, match="can be used: 1 empty_text"):
        run([str(tmp_path / "pool.parquet")], model, tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"seed": -1}, "seed must be in"),
        ({"workers": "http://127.0.0.1:1"}, "name the model's folder or hub id as tokenizer too"),
    ],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, pool: Path, model: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        run(pool, model, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_that_generates_nothing_is_refused(tmp_path: Path, pool: Path) -> None:
    text_folder(tmp_path / "m", "distilbert", mapping="MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING")
    with pytest.raises(ModelError, match="distilbert has no causal language model in transformers"):
        run(pool, tmp_path / "m", tmp_path / "out")


def test_a_model_behind_a_server_gives_the_same_answers(
    tmp_path: Path, pool: Path, model: Path, done: RewriteResult
) -> None:
    spec = ModelSpec("original", str(model), task="causal", dtype="float32")
    local = LocalWorker([spec], device="cpu", token_budget=TOKEN_BUDGET)
    with local as worker, listening(create_app(worker, models=[spec])) as url:
        options: dict[str, Any] = {"workers": url, "tokenizer": str(model), "max_new_tokens": 24, "shard_rows": 16}
        found = rewrite(pool, model="original", out=tmp_path / "out", **options)
    assert found.counts == done.counts
    assert (tmp_path / "out/rewritten.parquet").read_bytes() == (done.out / "rewritten.parquet").read_bytes()


def test_the_command_gives_the_same_result(tmp_path: Path, pool: Path, model: Path, done: RewriteResult) -> None:
    asked = ["rewrite", str(pool), "--model", str(model), "--out", str(tmp_path / "out"), "--device", "cpu"]
    asked += ["--max-new-tokens", "24", "--shard-rows", "16"]
    found = CliRunner().invoke(app, [*asked, "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["counts"] == done.counts
    shown = CliRunner().invoke(app, asked)
    assert f"of {ROWS} answers are the model's" in shown.stdout
