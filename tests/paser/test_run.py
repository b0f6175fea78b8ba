"""A selection for recovery from pool to page, with tiny models: files, resuming, sameness, mistakes."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from typer.testing import CliRunner

import datapipe
from datapipe.cli import app
from datapipe.errors import BudgetError, ConfigError, ModelError, SourceError
from datapipe.paser.estimate import estimate_recovery
from datapipe.paser.run import RecoveryResult
from datapipe.report.table import read_facts
from tests.paser.conftest import small_llama
from tests.runs import contents, kept_ids, spread
from tests.runs import datapipe as command

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 48
SETTINGS: dict[str, Any] = {"clusters": 3, "device": "cpu", "shard_rows": 20}


@pytest.fixture(scope="module")
def rows(data: Path) -> pl.DataFrame:
    """Short rows of Dolly, of which one has no response."""
    short = pl.col("output").str.len_chars().is_between(5, 90) & (pl.col("instruction").str.len_chars() < 90)
    found = pl.read_parquet(data / "dolly_3k.parquet").filter(short, pl.col("input") == "").head(ROWS)
    empty = found.head(1).with_columns(id=pl.lit("empty"), output=pl.lit(" "))
    return pl.concat([found, empty])


@pytest.fixture(scope="module")
def pool(rows: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "dolly.parquet"
    rows.write_parquet(path)
    return path


@pytest.fixture(scope="module")
def models(tiny_original: Path, tiny_pruned: Path, tiny_rounded: Path) -> dict[str, Any]:
    return {"original": tiny_original, "pruned": [tiny_pruned, tiny_rounded]}


@pytest.fixture(scope="module")
def made(pool: Path, models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> RecoveryResult:
    """A run of a quarter of the rows, which further tests copy."""
    return datapipe.select_recovery(
        pool, **models, out=tmp_path_factory.mktemp("run") / "run", keep_rows=12, **SETTINGS
    )


@pytest.fixture
def again(made: RecoveryResult, tmp_path: Path) -> Path:
    """A copy of that run's folder."""
    return shutil.copytree(made.out, tmp_path / "run", symlinks=True)


def test_a_run_leaves_the_rows_that_heal_with_their_own_columns(made: RecoveryResult, rows: pl.DataFrame) -> None:
    assert made.counts == {"kept": 12, "over_budget": ROWS - 12, "rejected_empty_text": 1}
    kept = made.kept.collect()
    assert kept.columns == ["row_id", *rows.columns]
    assert kept.height == 12
    assert kept.drop("row_id").join(rows, on=rows.columns, how="anti").is_empty()
    assert kept["row_id"].is_sorted()
    told = made.selection.collect()
    assert told.filter("kept")["row_id"].to_list() == kept["row_id"].to_list()
    assert told["jsd_mean"].is_between(0, 0.6932).all()
    names = {output["name"] for output in made.manifest["outputs"]}
    assert names == {
        *("kept.parquet", "train.parquet", "selection.parquet", "clusters.parquet", "damage.parquet"),
        *("dataset_info.json", "report.html", "rejected.parquet"),
    }
    assert made.manifest["kind"] == "paser"
    assert datapipe.verify(made.out).ok


def test_a_finished_run_is_opened_again_and_another_kind_of_run_is_refused(
    made: RecoveryResult, tmp_path: Path
) -> None:
    again = RecoveryResult.open(made.out)
    assert again.counts == made.counts
    assert again.skills == made.skills
    (tmp_path / "manifest.json").write_text('{"kind": "curate", "outputs": [], "stages": [], "config": {}}')
    with pytest.raises(SourceError, match="holds a run of curate, not a selection for recovery"):
        RecoveryResult.open(tmp_path)


def test_the_atlas_has_every_pruned_model_and_skill_and_the_first_decides(made: RecoveryResult) -> None:
    atlas = made.damage.collect()
    assert atlas["variant"].unique(maintain_order=True).to_list() == ["pruned", "rounded"]
    assert atlas.height == 2 * (1 + 3)
    assert atlas.filter(pl.col("cluster") >= 0).group_by("variant").agg(pl.col("rows").sum())["rows"].to_list() == [
        ROWS,
        ROWS,
    ]
    clusters = made.clusters.collect()
    first = atlas.filter(pl.col("variant") == "pruned", pl.col("cluster") >= 0)
    assert first["cds"].to_list() == pytest.approx(clusters["cds"].to_list())
    assert clusters["taken"].sum() == 12
    assert [", ".join(words) for words in made.skills] == clusters["name"].to_list()


def test_the_page_and_the_table_show_the_run(made: RecoveryResult) -> None:
    page = made.report.read_text()
    assert "12</b> of 49 rows kept" in page
    assert "in proportion to its damage" in page
    assert all(words[0] in page for words in made.skills if words)
    facts = read_facts(made.out)
    assert facts.counts.kept == 12
    assert len(facts.strata) == 3
    assert made._repr_html_().startswith("<div>")


def test_a_second_run_does_nothing_and_other_budgets_need_no_model(again: Path, pool: Path, models: Any) -> None:
    before = contents(again)
    same = datapipe.select_recovery(pool, **models, out=again, keep_rows=12, **SETTINGS)
    assert all(timing.reused for timing in same.timings)
    assert contents(again) == before
    more = datapipe.select_recovery(pool, **models, out=again, keep_rows=20, **SETTINGS)
    assert [timing.stage for timing in more.timings if not timing.reused] == ["pick", "exported", "paser_report"]
    assert more.counts["kept"] == 20


def test_another_pruned_model_costs_its_own_pass_alone(
    again: Path, pool: Path, models: Any, tiny_original: Path, tmp_path: Path
) -> None:
    third = shutil.copytree(models["pruned"][0], tmp_path / "third")
    (third / "LICENSE").write_text("another digest")
    found = datapipe.select_recovery(
        pool, original=tiny_original, pruned=[*models["pruned"], third], out=again, keep_rows=12, **SETTINGS
    )
    fresh = [timing.stage for timing in found.timings if not timing.reused]
    assert set(fresh) <= {"damage_third", "atlas", "paser_report"}
    assert found.damage.collect()["variant"].n_unique() == 3


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bytes(
    made: RecoveryResult, pool: Path, models: Any, tmp_path: Path
) -> None:
    class Stops:
        """Stops the run in the middle of a pass over the rows."""

        stage, rows = "", 0

        def start(self, stage: str, *, total: int | None) -> None:
            self.stage, self.rows = stage, 0

        def advance(self, rows: int) -> None:
            self.rows += rows
            if self.stage == "damage_pruned" and self.rows > 20:
                raise KeyboardInterrupt

        def finish(self, stage: str, *, rows: int, seconds: float, reused: bool) -> None:
            """Nothing to stop."""

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        datapipe.select_recovery(pool, **models, out=out, keep_rows=12, progress=Stops(), **SETTINGS)
    assert not (out / "kept.parquet").exists()
    found = datapipe.select_recovery(pool, **models, out=out, keep_rows=12, **SETTINGS)
    assert next(timing for timing in found.timings if timing.stage == "states").reused
    assert contents(out) == contents(made.out)


@pytest.mark.slow
def test_neither_the_cut_nor_the_order_nor_the_format_of_the_pool_matters(
    made: RecoveryResult, rows: pl.DataFrame, models: Any, tmp_path: Path
) -> None:
    parts = spread(rows.sample(fraction=1.0, shuffle=True, seed=1), tmp_path / "parts", files=3, suffix="jsonl")
    found = datapipe.select_recovery(parts, **models, out=tmp_path / "run", keep_rows=12, **SETTINGS)
    assert kept_ids(found.out) == kept_ids(made.out)
    assert found.selection.collect().equals(made.selection.collect())


@pytest.mark.parametrize(
    "method",
    [
        "paper",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("random", "stratified", "longest", "ifd", "top_jsd")),
    ],
)
def test_other_methods_choose_in_the_same_folder(again: Path, pool: Path, models: Any, method: str) -> None:
    found = datapipe.select_recovery(pool, **models, out=again, keep_rows=12, method=method, **SETTINGS)
    assert found.counts["kept"] <= 12 if method == "paper" else found.counts["kept"] == 12
    fresh = {timing.stage for timing in found.timings if not timing.reused}
    assert fresh <= {"alone", "pick", "exported", "paser_report"}
    assert datapipe.verify(again).ok


def test_a_budget_of_tokens_is_not_exceeded(again: Path, pool: Path, models: Any) -> None:
    found = datapipe.select_recovery(pool, **models, out=again, keep_tokens=300, **SETTINGS)
    kept = found.selection.filter("kept").collect()
    assert 250 < kept["tokens"].sum() <= 300
    assert "at most 300 tokens" in found.report.read_text()


def test_a_budget_over_the_pool_keeps_all_of_it_with_a_warning(again: Path, pool: Path, models: Any) -> None:
    found = datapipe.select_recovery(pool, **models, out=again, keep_rows=500, **SETTINGS)
    assert found.counts["kept"] == ROWS
    assert "the budget is 500 rows, but the pool holds 48" in found.warnings[0]


@pytest.mark.slow
def test_a_survey_measures_a_part_of_the_rows(again: Path, pool: Path, models: Any) -> None:
    found = datapipe.select_recovery(pool, **models, out=again, keep_rows=12, survey=True, **SETTINGS)
    assert "states" not in {timing.stage for timing in found.timings}
    assert found.counts["kept"] == 12
    assert found.clusters.collect()["measured"].sum() <= ROWS
    assert found.damage.collect()["variant"].unique(maintain_order=True).to_list() == ["pruned", "rounded"]


@pytest.mark.slow
def test_two_identical_models_are_said_and_the_choice_follows_the_sizes(
    again: Path, pool: Path, tiny_original: Path
) -> None:
    found = datapipe.select_recovery(
        pool, original=tiny_original, pruned=tiny_original, out=again, keep_rows=12, **SETTINGS
    )
    assert found.counts["kept"] == 12
    assert found.warnings == ["the models do not differ on any cluster: the budget follows the clusters' sizes"]
    assert found.damage.filter(pl.col("jsd_mean") > 1e-6).collect().is_empty()


def test_a_model_with_another_tokenizer_is_refused_before_a_folder_is_made(
    pool: Path, tiny_original: Path, tmp_path: Path
) -> None:
    other = small_llama(tmp_path / "other")
    told = json.loads((other / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    one, two = list(vocabulary)[2000:2002]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ModelError, match="have different tokenizers: token"):
        datapipe.select_recovery(pool, original=tiny_original, pruned=other, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"keep": 0.5, "keep_rows": 3}, BudgetError, "exclude each other"),
        ({"pruned": []}, ConfigError, "name at least one pruned model"),
        ({"source_prior": {"nowhere": 2.0}}, ConfigError, "no row is of the source 'nowhere'"),
    ],
)
def test_a_mistake_is_told_in_words(
    again: Path, pool: Path, models: Any, options: dict[str, Any], kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        datapipe.select_recovery(pool, **{**models, "out": again, **SETTINGS, **options})


@pytest.mark.slow
def test_a_pool_in_which_nothing_can_be_used_is_refused(models: Any, tmp_path: Path) -> None:
    pl.DataFrame({"instruction": ["a"], "output": [" "]}).write_parquet(tmp_path / "pool.parquet")
    with pytest.raises(SourceError, match=r"nothing in .* can be used: 1 empty_text"):
        datapipe.select_recovery(tmp_path / "pool.parquet", **models, out=tmp_path / "run", device="cpu")


@pytest.mark.slow
def test_the_estimate_counts_rows_and_times_the_models_and_writes_nothing(pool: Path, models: Any) -> None:
    found = estimate_recovery(pool, **models, device="cpu", keep=0.5)
    assert found.rows == ROWS + 1
    assert found.rows_kept == 24
    assert found.seconds > 0
    assert found.stages[:5] == ("pool", "vectors", "skills", "states", "damage_pruned")
    assert 20 * ROWS < found.tokens < 200 * ROWS


def test_the_command_writes_the_same_bytes_and_prints_one_object(again: Path, pool: Path, models: Any) -> None:
    before = contents(again)
    asked = ["paser", str(pool), "--original", str(models["original"]), "--out", str(again), "--keep-rows", "12"]
    asked += [each for model in models["pruned"] for each in ("--pruned", str(model))]
    asked += ["--clusters", "3", "--device", "cpu", "--shard-rows", "20"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["kept"] == 12
    assert contents(again) == before
    shown = CliRunner().invoke(app, [*asked, "--keep-rows", "500", "--skill-weight", "2=0.5"])
    assert shown.exit_code == 0, shown.stderr
    assert "warning:" in shown.stderr
    assert "48 of 49 rows kept" in shown.stdout
    assert "Skills, the most damaged first" in shown.stdout
    assert "clusters.parquet" in shown.stdout.replace("\n", "")
    wrong = CliRunner().invoke(app, [*asked, "--skill-weight", "code=2"])
    assert wrong.exit_code == 2
    assert "a weight is NUMBER=WEIGHT" in wrong.stderr


def test_a_mistake_on_the_command_line_is_one_line_on_standard_error(pool: Path, tmp_path: Path) -> None:
    done = command("paser", pool, "--original", tmp_path / "no", "--pruned", tmp_path / "no", "--out", tmp_path / "run")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "options", "kept"),
    [
        (1, {}, 1),
        (2, {"keep": 0.5}, 1),
        (6, {"keep_rows": 2, "mode": "paper"}, 2),
        (6, {"survey": True, "keep": 0.5}, 3),
    ],
)
def test_the_smallest_pools_are_of_one_skill_and_make_a_page(
    rows: pl.DataFrame, models: Any, tmp_path: Path, times: int, options: dict[str, Any], kept: int
) -> None:
    rows.head(times).write_parquet(tmp_path / "pool.parquet")
    found = datapipe.select_recovery(tmp_path / "pool.parquet", **models, out=tmp_path / "run", device="cpu", **options)
    assert found.counts["kept"] == kept
    assert len(found.skills) == 1
    assert f"of {times} rows kept" in found.report.read_text()


@pytest.mark.slow
def test_rows_that_the_models_cannot_see_whole_and_repeats_are_counted(
    rows: pl.DataFrame, models: Any, tmp_path: Path
) -> None:
    texts = rows.select("instruction", "output").head(20)
    long = pl.DataFrame({"instruction": ["say it " * 400], "output": ["word " * 400]})
    pl.concat([texts, texts.head(3), long]).write_parquet(tmp_path / "pool.parquet")
    found = datapipe.select_recovery(tmp_path / "pool.parquet", **models, out=tmp_path / "run", device="cpu")
    counts = read_facts(found.out).counts
    assert counts.truncated == 1
    assert counts.duplicates == 3
