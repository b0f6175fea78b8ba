"""Healing end to end: instructions of any shape in, a folder that loads as any model out; and the two commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer import Typer
from typer.testing import CliRunner

from datapipe.errors import ColumnError, ConfigError, MetricError, SourceError
from datapipe.paser.damage_run import damage
from datapipe.paser.recover_command import damage_command, recover_command
from datapipe.paser.recovery import Recovered, RecoveryRecipe, recover
from datapipe.storage.instructions import PoolColumns
from datapipe.workers import CausalItem, LocalWorker, ModelSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = [
    {"instruction": "Name a tool of a carpenter.", "input": "", "output": "A plane."},
    {"instruction": "Translate.", "input": "the blue sky", "output": "der blaue Himmel"},
    {"instruction": "How many legs has a spider?", "input": "", "output": "A spider has eight legs."},
]
RECIPE = RecoveryRecipe(tokens=240, batch_tokens=80, max_length=80, learning_rate=2e-2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small wait for a second thread longer than it helps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def losses(folder: Path, text: str, context: str) -> float:
    with LocalWorker([ModelSpec("m", str(folder), task="causal")], device="cpu") as worker:
        found = worker.run("causal", [CausalItem(text, context)], model="m")
    return -float(np.mean(found[0].log_probabilities))


def test_a_healed_model_loads_as_any_and_knows_what_it_has_read(tiny_pruned: Path, pool: Path, tmp_path: Path) -> None:
    found = recover(pool, model=tiny_pruned, out=tmp_path / "healed", recipe=RECIPE)
    context = "user : How many legs has a spider?\nassistant : "
    text = "A spider has eight legs."
    assert losses(tmp_path / "healed", text, context) < losses(tiny_pruned, text, context) - 0.5
    assert (found.rows, found.course.steps) == (3, 3)
    assert found.loss_after < found.loss_before
    told = json.loads((tmp_path / "healed" / "recovery.json").read_text())
    assert (told["rows"], told["steps"], len(told["losses"])) == (3, 3, 3)
    assert (
        load_file(tmp_path / "healed" / "model.safetensors").keys()
        == load_file(tiny_pruned / "model.safetensors").keys()
    )


def test_low_rank_updates_are_merged_into_the_folder(tiny_pruned: Path, pool: Path, tmp_path: Path) -> None:
    recipe = RecoveryRecipe(tokens=240, batch_tokens=80, max_length=80, learning_rate=2e-2, lora=4)
    recover(pool, model=tiny_pruned, out=tmp_path / "healed", recipe=recipe)
    before, after = (load_file(at / "model.safetensors") for at in (tiny_pruned, tmp_path / "healed"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj." in name}


def test_the_rows_of_a_run_are_found_in_its_folder_and_chats_are_read_with_their_history(
    tiny_pruned: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    said = [("user", "Name a tool."), ("assistant", "A saw."), ("user", "Another."), ("assistant", "A plane.")]
    rows = [{"row_id": b"0" * 16, "messages": [{"role": role, "content": text} for role, text in said]}, {}]
    pq.write_table(pa.Table.from_pylist(rows), run / "kept.parquet")
    found = recover(run, model=tiny_pruned, out=tmp_path / "healed", recipe=RECIPE)
    assert found.rows == 1
    pq.write_table(pa.Table.from_pylist(ROWS), run / "train.parquet")
    assert recover(run, model=tiny_pruned, out=tmp_path / "again", recipe=RECIPE).rows == 3
    own = PoolColumns(messages="messages")
    assert recover(run, model=tiny_pruned, out=tmp_path / "own", recipe=RECIPE, columns=own).rows == 1
    assert sum(found.refused.values()) == 1
    assert found.warnings[0].startswith("1 rows were left out")


def test_nothing_is_written_where_the_training_fails(tiny_pruned: Path, pool: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny_pruned.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(MetricError, match="step 1 has loss nan"):
        recover(pool, model=broken, out=tmp_path / "healed", recipe=RECIPE)
    assert not list(tmp_path.glob("healed*"))


def test_what_cannot_be_learnt_from_is_refused_in_words(tiny_pruned: Path, pool: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.parquet"
    pq.write_table(pa.Table.from_pylist([ROWS[0] | {"output": " "}]), empty)
    with pytest.raises(SourceError, match="holds an instruction with an answer: 1 empty_text"):
        recover(empty, model=tiny_pruned, out=tmp_path / "healed", recipe=RECIPE)
    pq.write_table(pa.table({"number": [1]}), empty)
    with pytest.raises(ColumnError, match="no instructions with responses"):
        recover(empty, model=tiny_pruned, out=tmp_path / "healed", recipe=RECIPE)
    with pytest.raises(ConfigError, match="exists; a model is written to a new folder"):
        recover(pool, model=tiny_pruned, out=tiny_pruned, recipe=RECIPE)


def test_a_set_that_is_read_in_part_or_too_often_is_told(tiny_pruned: Path, pool: Path, tmp_path: Path) -> None:
    def told(tokens: int, name: str) -> Recovered:
        recipe = RecoveryRecipe(tokens=tokens, batch_tokens=1000, max_length=80)
        return recover(pool, model=tiny_pruned, out=tmp_path / name, recipe=recipe)

    assert "ended after" in told(20, "part").warnings[0]
    assert "the set was read" in told(2000, "often").warnings[0]


def commanded(*arguments: str) -> Any:
    app = Typer()
    app.command("recover")(recover_command)
    app.command("damage")(damage_command)
    return CliRunner().invoke(app, list(arguments))


def test_both_commands_print_one_object(tiny_original: Path, pool: Path, tmp_path: Path) -> None:
    thin, healed = str(tmp_path / "thin"), str(tmp_path / "healed")
    found = commanded(
        *("damage", str(tiny_original), "--out", thin, "--width", "0.5", "--texts", str(pool), "--device", "cpu"),
        "--json",
    )
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["share_left"] < 1
    found = commanded(
        *("recover", str(pool), "--model", thin, "--out", healed, "--epochs", "1", "--max-length", "80"),
        *("--lora", "2", "--device", "cpu", "--json"),
    )
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert (told["rows"], told["steps"], told["recipe"]["lora"]) == (3, 1, 2)
    assert (tmp_path / "healed" / "model.safetensors").is_file()


def test_the_commands_say_what_they_did(tiny_original: Path, pool: Path, tmp_path: Path) -> None:
    found = commanded("damage", str(tiny_original), "--out", str(tmp_path / "rough"), "--bits", "3", "--group", "32")
    assert "(100.0%)" in found.stdout
    found = commanded("recover", str(pool), "--model", str(tmp_path / "rough"), "--out", str(tmp_path / "healed"))
    assert "3 rows, 1 steps" in found.stdout
    both = commanded("recover", str(pool), "--model", "m", "--out", "o", "--tokens", "5", "--epochs", "1")
    assert "give one of them" in str(both.exception)


def test_damage_is_one_kind_at_a_time(tiny_original: Path, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="got blocks and bits"):
        damage(str(tiny_original), out, blocks=2, bits=3)
    with pytest.raises(ConfigError, match="got none of them"):
        damage(str(tiny_original), out)
    with pytest.raises(ConfigError, match="blocks is measured on texts"):
        damage(str(tiny_original), out, blocks=2)
    with pytest.raises(ColumnError, match="text column 'words' is not in"):
        damage(str(tiny_original), out, blocks=2, texts=str(pool), text_column="words")
    done = damage(str(tiny_original), out, blocks=2, texts=str(pool), text_column="instruction")
    assert len(done.removed) == 2
