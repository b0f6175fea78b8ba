"""`provence train` from a config file to a folder that prunes; and what it says of a config it cannot use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from datapipe.errors import ConfigError
from provence import Pruner
from provence.calibration import Calibration
from provence.cli import app
from provence.training.config import TrainingConfig, load_config
from tests.provence.training.tiny import DATA, SQUAD

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = f"""
name = "tiny"
bits = 4

[student]
source = "embedded:all-MiniLM-L6-v2"

[student.optimiser]
steps = 1
batch_tokens = 256
frozen = ["embeddings."]

[windows]
max_tokens = 64
max_sentence = 40
max_question = 20

[[sources]]
name = "{SQUAD}"
validation_every = 1000
licence = "CC BY-SA 4.0"
"""


def written(folder: Path, content: str) -> Path:
    path = folder / "config.toml"
    path.write_text(content)
    return path


def test_a_config_and_a_folder_of_sets_become_a_pruner_with_a_card(tmp_path: Path) -> None:
    arguments = ["train", str(written(tmp_path, CONFIG)), "--data", str(DATA), "--out", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--checkpoint-every", "0"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == str(tmp_path / "out" / "model")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert f"| {SQUAD} | train | 9,248 | 0 | CC BY-SA 4.0 |" in card
    assert "a 4-bit difference to `embedded:all-MiniLM-L6-v2`" in card
    assert "Its own threshold is 0.5, for too few questions were held out." in card
    assert not (tmp_path / "out" / "model" / "calibration.json").exists(), "nothing was held out"
    pruner = Pruner.load(str(tmp_path / "out" / "model"), device="cpu")
    assert len(pruner.prune("Who?", ["One sentence. Another one."], threshold=0.0)[0].sentences) == 2


def test_the_threshold_and_a_calibration_come_from_the_held_out_questions(tmp_path: Path) -> None:
    few = [row for row in pq.read_table(DATA / f"{SQUAD}.parquet").to_pylist() if row["answerable"]]
    few = [row for title in {row["title"]: 0 for row in few} for row in [r for r in few if r["title"] == title][:4]]
    pq.write_table(
        pa.Table.from_pylist(few, schema=pq.read_schema(DATA / f"{SQUAD}.parquet")), tmp_path / "few.parquet"
    )
    content = CONFIG.replace(SQUAD, "few").replace("validation_every = 1000", "validation_every = 2")
    arguments = ["train", str(written(tmp_path, content)), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--checkpoint-every", "0"])
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / "model"
    made = Calibration.load(folder / "calibration.json")
    assert made.questions >= 20
    assert "chosen on held-out questions; `calibration.json` holds others" in (folder / "README.md").read_text()
    assert json.loads((folder / "config.json").read_text())["threshold"] == made.threshold_for(0.9) != 0.5
    pruner = Pruner.load(str(folder), device="cpu")
    made.check(pruner.digest)
    text = ["One sentence. Another one."]
    assert pruner.prune("Who?", text, target_recall=0.9)[0].kept_spans == pruner.prune("Who?", text)[0].kept_spans


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("bits = 4", "bits = 3"), "bits must be 0, 4 or 8. Got 3"),
        (("steps = 1", "stepps = 1"), "unknown key student.optimiser.stepps; there are: steps"),
        (("steps = 1", "steps = 0"), r"student.optimiser.steps must be in 1 to .* Got 0"),
        (("steps = 1", 'steps = "many"'), "student.optimiser.steps must be of type int. Got 'many'"),
        (('source = "embedded:all-MiniLM-L6-v2"', ""), "key student.source is missing"),
        (("max_tokens = 64", "title_share = 2"), "windows.title_share must be in 0 to 1. Got 2"),
        (('frozen = ["embeddings."]', "frozen = 1"), "student.optimiser.frozen must be a list. Got 1"),
        (("[windows]", "[windows"), "is not valid TOML"),
    ],
)
def test_a_wrong_config_names_the_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(written(tmp_path, CONFIG.replace(*change)))


def test_a_missing_config_says_which() -> None:
    with pytest.raises(ConfigError, match=r"config nowhere\.toml cannot be read"):
        load_config("nowhere.toml")


def test_the_digest_follows_every_value(tmp_path: Path) -> None:
    one = load_config(written(tmp_path, CONFIG))
    other = load_config(written(tmp_path, CONFIG.replace("max_tokens = 64", "max_tokens = 65")))
    assert one.digest() == load_config(written(tmp_path, CONFIG)).digest() != other.digest()


def test_the_config_of_the_default_is_the_one_that_its_folder_states() -> None:
    from pathlib import Path as Folder

    import provence.training
    from provence.weights import DEFAULT

    config: TrainingConfig = load_config(Folder(provence.training.__file__).with_name("default.toml"))
    stated = json.loads((Folder(DEFAULT.source) / "config.json").read_text())
    assert stated["training_digest"] == config.digest()


def test_the_test_split_is_refused_by_the_command(tmp_path: Path) -> None:
    content = CONFIG.replace("validation_every", 'splits = ["test"]\nvalidation_every')
    arguments = ["train", str(written(tmp_path, content)), "--data", str(DATA), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ConfigError)
    assert "its test split is for figures" in str(result.exception)
