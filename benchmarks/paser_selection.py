"""What a selection for recovery costs, stage by stage, beside the training that it saves.

    python -m benchmarks.paser_selection POOL --original FOLDER --pruned FOLDER [--way survey] [--rows N]

    POOL -> pool -> vectors -> skills -> states -> damage | survey -> pick -> exported -> seconds of each

Ways: `exact` measures every row, `survey` as many as the split of the budget asks for, `training` times a piece of full
fine-tuning of the damaged model and says how long three epochs of the pool would take: their quotient is the price of
selection. The stages are those of `datapipe.select_recovery`; nothing here needs Polars, so it runs on a bare GPU host.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import Row, record, rows, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datapipe.paser.models import Models
    from datapipe.paser.recovery import Recovered
    from datapipe.pipeline import Stage, StageOutput, StageTiming
    from datapipe.storage.source import Source
    from datapipe.workers.worker import LocalWorker

NAME = "paser_selection"
WAYS = ("exact", "survey", "training")
KEEP = 0.2
EPOCHS = 3
SHARD_ROWS = 4096
TRAINED_TOKENS = {"cpu": 8_192, "cuda": 1_500_000}
"""Tokens of the timed piece of training; a tenth as many are trained first, untimed."""
COLUMNS = [
    *("way", "rows", "seconds", "rows_per_second", "measured", "response_tokens", "of_training"),
    *(
        "opening_seconds",
        "pool_seconds",
        "vectors_seconds",
        "skills_seconds",
        "states_seconds",
        "damage_seconds",
        "survey_seconds",
    ),
    *("pick_seconds", "exported_seconds", "hardware"),
]


def main() -> None:
    """Measure one way and print all that were measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path, help="Parquet or JSON Lines of instructions and responses")
    parser.add_argument("--original", required=True)
    parser.add_argument("--pruned", required=True)
    parser.add_argument("--way", choices=WAYS, default="exact")
    parser.add_argument("--rows", type=int, help="the first so many rows of the pool")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--max-length", type=int, default=1024)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        pool = _pool(asked.pool, asked.rows, Path(scratch))
        measure = _training if asked.way == "training" else _selection
        config, row = measure(asked, pool, Path(scratch))
        record(NAME, row | _price(config, row), config)
    print(table(NAME, COLUMNS))


def _pool(path: Path, count: int | None, scratch: Path) -> Path:
    if count is None:
        return path
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).slice(0, count), scratch / path.name)
    return scratch / path.name


def _selection(asked: argparse.Namespace, pool: Path, scratch: Path) -> tuple[Row, Row]:
    """Run the stages once from nothing; a model is loaded by the stage that first asks for it. `opening` is imports."""
    from datapipe.executors.local import LocalExecutor
    from datapipe.paser.models import Models
    from datapipe.pipeline import Pipeline
    from datapipe.storage.source import open_source
    from datapipe.storage.stage import StageStore
    from datapipe.workers.worker import LocalWorker

    source, begun = open_source(pool), time.perf_counter()
    with (
        Models(asked.original, [asked.pruned], device=asked.device, max_length=asked.max_length) as models,
        LocalWorker(device=asked.device) as embedder,
    ):
        opening = time.perf_counter() - begun
        pipeline = Pipeline(_stages(source, models, embedder, asked))
        found = pipeline.run(StageStore(scratch / "stages"), LocalExecutor(), scratch=scratch / "scratch")
        seconds = time.perf_counter() - begun
        config = _config(asked, source.digests({}), models)
    timed = _timed(pipeline.timings) | {"seconds": seconds, "opening_seconds": opening}
    return config, timed | _counted(found, seconds)


def _stages(source: Source, models: Models, embedder: LocalWorker, asked: argparse.Namespace) -> list[Stage]:
    from datapipe.paser.pick_config import PickConfig
    from datapipe.selection.budget import Budget
    from datapipe.stages.damage import Damage
    from datapipe.stages.export_instructions import ExportInstructions
    from datapipe.stages.instruction_vectors import EmbedInstructions
    from datapipe.stages.instructions import InstructionPool, PoolConfig
    from datapipe.stages.pick import Pick
    from datapipe.stages.skills import FindSkills, SkillsConfig
    from datapipe.stages.states import States
    from datapipe.stages.survey import Survey
    from datapipe.storage.instructions import columns_of
    from datapipe.workers.device import resolve_device
    from datapipe.workers.spec import DEFAULT_EMBEDDER

    digests, columns = tuple(source.digests({})), columns_of(source.schema.names)
    files = tuple(zip((file.uri for file in source.files), digests, strict=True))
    loaded, device, label = embedder.load(DEFAULT_EMBEDDER.name), str(resolve_device(asked.device)), models.labels[0]
    exact: list[Stage] = [States.of(models), Damage.of(models, label)]
    measuring = exact if asked.way == "exact" else [Survey.of(models, label)]
    return [
        InstructionPool(source, PoolConfig(files=files, columns=columns, shard_rows=SHARD_ROWS, max_chars=1 << 20)),
        EmbedInstructions(
            worker=lambda: embedder,
            model=DEFAULT_EMBEDDER.name,
            digest=loaded.digest,
            dim=loaded.dim,
            bits=loaded.bits,
            answers=True,
        ),
        FindSkills(SkillsConfig(), device, models.bits),
        *measuring,
        Pick(PickConfig(budget=Budget(fraction=KEEP)), damage=measuring[-1].name),
        ExportInstructions(source, digests, columns),
    ]


def _timed(timings: list[StageTiming]) -> Row:
    return {f"{each.stage.split('_')[0]}_seconds": each.seconds for each in timings}


def _counted(found: Mapping[str, StageOutput], seconds: float) -> Row:
    import numpy as np

    damage = next(output for name, output in found.items() if name.startswith(("damage", "survey")))
    tables = list(damage.tables(columns=["tokens", "jsd_mean"]))
    count = sum(each.num_rows for each in tables)
    return {
        "rows": count,
        "rows_per_second": count / seconds,
        "measured": sum(int(np.isfinite(each["jsd_mean"].to_numpy()).sum()) for each in tables),
        "response_tokens": sum(int(each["tokens"].to_numpy().sum()) for each in tables),
        "clusters": int(found["skills"].facts["k"]),
    }


def _config(asked: argparse.Namespace, digests: Sequence[str], models: Models) -> Row:
    return {
        "way": asked.way,
        "pool": list(digests),
        "rows_asked": asked.rows,
        "models": [models.digest("original"), models.digest(models.labels[0])],
        "max_length": asked.max_length,
        "platform": dict(models.bits),
    }


def _training(asked: argparse.Namespace, pool: Path, scratch: Path) -> tuple[Row, Row]:
    """Time some tokens of full fine-tuning; the pool's tokens are counted, prompts included."""
    from datapipe.paser.models import Models
    from datapipe.paser.recovery import RecoveryRecipe, recover
    from datapipe.storage.source import open_source

    with Models(asked.original, [asked.pruned], device=asked.device, max_length=asked.max_length) as models:
        config = _config(asked, open_source(pool).digests({}), models)
        kind = models.bits["device"]

    def healed(tokens: int, name: str) -> Recovered:
        recipe = RecoveryRecipe(tokens=tokens, max_length=asked.max_length)
        return recover(pool, model=asked.pruned, out=scratch / name, recipe=recipe, device=asked.device)

    healed(TRAINED_TOKENS[kind] // 10, "first")
    found = healed(TRAINED_TOKENS[kind], "timed")
    course = found.course
    whole = course.tokens / course.epochs if course.epochs else 0.0
    seconds = EPOCHS * whole * course.seconds / course.tokens
    return config, {"rows": found.rows, "seconds": seconds, "tokens_per_second": course.tokens / course.seconds}


def _price(config: Row, row: Row) -> Row:
    """Seconds of a selection over those of the training on the same pool and machine, where that was timed."""
    same = ("pool", "rows_asked", "models", "max_length", "platform")
    known = [each for each in rows(NAME) if all(each[key] == config[key] for key in same) and each["way"] == "training"]
    return {"of_training": row["seconds"] / known[0]["seconds"]} if known and config["way"] != "training" else {}


if __name__ == "__main__":
    main()
