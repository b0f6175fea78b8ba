"""`datapipe.distill.rewrite`: a model says the answers of an instruction pool in its own words.

    pool, original model -> pool -> rewrite -> rewritten -> OUT/rewritten.parquet, failed.parquet, rejected.parquet

Self-data distillation (arXiv 2410.09982): answers in the original model's own words move a pruned one less far from
what it was than human answers do. Every row stays; `rewritten` and `reason` say whose answer it has and why. Answers
grow by it, so count a budget of tokens afterwards (`tokens`). Raises `ConfigError`, `ColumnError`, `SourceError`,
`ModelError`, `LockedError`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.distill.rewrite_checks import Limits
from datapipe.distill.rewrite_model import OriginalModel
from datapipe.distill.rewrite_prompt import PROMPT_VERSION
from datapipe.distill.rewrite_stages import (
    FAILED,
    REWRITTEN,
    GatherRewritten,
    RewriteConfig,
)
from datapipe.errors import ConfigError
from datapipe.pipeline import Pipeline, StageOutput
from datapipe.stages.instructions import InstructionPool, PoolConfig
from datapipe.storage.digest import digest_of, plain
from datapipe.storage.instructions import PoolColumns, columns_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from datapipe.pipeline import StageTiming
    from datapipe.progress import Progress
    from datapipe.storage.source import Source

__all__ = ["RewriteResult", "rewrite"]

SCRATCH = ".scratch"


@dataclass(frozen=True, kw_only=True)
class RewriteResult:
    """A finished rewriting.

    Attributes:
        out: The folder.
        manifest: What manifest.json says.
        timings: Rows and seconds a stage in this process.
    """

    out: Path
    manifest: Mapping[str, Any]
    timings: tuple[StageTiming, ...] = field(default=())

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them: `rewritten`, `kept_REASON`, `rejected_REASON`."""
        return dict(self.manifest["counts"])

    @property
    def share(self) -> float:
        """Share of the rows that have the model's answer, 0 ... 1."""
        rows = int(self.manifest["rows"])
        return self.counts["rewritten"] / rows if rows else 0.0

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for `--json`."""
        return {
            "out": str(self.out),
            "counts": self.counts,
            "share": self.share,
            "tokens": dict(self.manifest["tokens"]),
            "outputs": plain(list(self.manifest["outputs"])),
            "timings": [plain(timing) for timing in self.timings],
        }


def rewrite(  # noqa: PLR0913 - the pool and the model; the rest by keyword
    pool: str | os.PathLike[str] | Sequence[str],
    *,
    model: str,
    out: str | os.PathLike[str],
    instruction_column: str | None = None,
    input_column: str | None = None,
    response_column: str | None = None,
    messages_column: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    limits: Limits | None = None,
    max_chars: int = 16_384,
    shard_rows: int = 512,
    device: str | None = None,
    workers: str | None = None,
    tokenizer: str | None = None,
    token_budget: int | None = None,
    progress: Progress | None = None,
) -> RewriteResult:
    """Have a causal language model say the answers of a pool in its own words; the same as `datapipe rewrite`.

    Args:
        pool: Parquet, JSON Lines, CSV or Arrow with instructions and responses, or with conversations of one turn; see
            `datapipe.storage.instructions`.
        model: The original model, before it was pruned: a folder or a cached hub id, or a name at the server.
        out: The folder. A rewriting begun there is resumed.
        instruction_column: Where the usual names do not stand.
        input_column: The same.
        response_column: The same.
        messages_column: The same; takes conversations even where there are instructions.
        max_new_tokens: Tokens after which an answer is cut; a cut one does not count.
        temperature: 0 for the most probable token each time, the same answer every time.
        top_p: The most probable tokens that together have at least this probability are drawn from.
        seed: Of the draws; unused at temperature 0.
        limits: How much longer or shorter than the human answer one may be.
        max_chars: Characters of a row; longer ones are refused.
        shard_rows: Rows of a shard; a killed run loses the shards in the making.
        device: `auto`, `cpu`, `cuda`, `cuda:1`; default from `DATAPIPE_DEVICE`.
        workers: URL of a `datapipe serve` that serves the model for the task `causal`.
        tokenizer: Model whose tokenizer counts tokens; default the model itself. Behind a server it has to be named.
        token_budget: Tokens of a batch, prompts and answers; None takes 16,384 on the CPU and the worker's own on CUDA.
        progress: Is told how far the stages are.

    Raises:
        ConfigError: An option is out of range.
        ColumnError: The pool has no column of answers.
        SourceError: The pool cannot be read, or holds no row that can be used.
        ModelError: The model cannot be loaded, or is no causal language model.
        LockedError: Another process is writing to the folder.
    """
    from datapipe.settings import Settings
    from datapipe.storage.lock import exclusive
    from datapipe.storage.source import open_source

    _check(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, seed=seed, shard_rows=shard_rows)
    machine = Settings()
    asked = PoolColumns(
        instruction=instruction_column, input=input_column, response=response_column, messages=messages_column
    )
    source = open_source(pool, limits=machine.limits.as_limits())
    columns = columns_of(source.schema.names, asked)
    folder = Path(out)
    asked_model = OriginalModel(
        model, device=device or machine.device, url=workers, tokenizer=tokenizer, token_budget=token_budget
    )
    with asked_model as original:
        settings = RewriteConfig(
            prompt_version=PROMPT_VERSION,
            chat=original.chat,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            limits=limits or Limits(),
        )
        with exclusive(folder):
            digests = source.digests({})
            names = (file.uri for file in source.files)
            files = tuple(zip(names, digests, strict=True))
            read = PoolConfig(
                files=files, columns=columns, shard_rows=shard_rows, max_chars=max_chars, turns="one", stems=False
            )
            pipeline = Pipeline([InstructionPool(source, read), original.stage(settings), GatherRewritten()])
            outputs = _run(pipeline, folder, progress)
            manifest = _publish(folder, source, read, original, outputs)
    return RewriteResult(out=folder, manifest=manifest, timings=tuple(pipeline.timings))


def _check(*, max_new_tokens: int, temperature: float, top_p: float, seed: int, shard_rows: int) -> None:
    for name, value in {"max_new_tokens": max_new_tokens, "shard_rows": shard_rows}.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature must be 0 or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise ConfigError(f"top_p must be above 0 and at most 1, got {top_p}")
    if not 0 <= seed < 1 << 63:
        raise ConfigError(f"seed must be in [0, 2^63), got {seed}")


def _run(pipeline: Pipeline, folder: Path, progress: Progress | None) -> dict[str, StageOutput]:
    from datapipe.executors.local import LocalExecutor
    from datapipe.storage.atomic import scratch_folder
    from datapipe.storage.stage import StageStore

    with scratch_folder(folder, SCRATCH) as scratch:
        return pipeline.run(StageStore(folder / "stages"), LocalExecutor(), scratch=scratch, progress=progress)


def _publish(
    folder: Path, source: Source, read: PoolConfig, original: OriginalModel, outputs: Mapping[str, StageOutput]
) -> dict[str, Any]:
    """Put the files into the folder, all at once; returns the manifest."""
    from datapipe.runs import stage_entry, versions
    from datapipe.storage.publish import publish
    from datapipe.storage.refused import REJECTED
    from datapipe.storage.stage import FORMAT_VERSION

    made, pool = outputs["rewritten"], outputs["pool"]
    files: dict[str, Path | bytes] = {name: made.path / name for name in (REWRITTEN, FAILED)}
    if pool.has(REJECTED):
        files[REJECTED] = pool.path / REJECTED
    infos = {shard.name: shard for output in (made, pool) for shard in output.manifest.shards}
    kept = sorted(name for name in made.facts if name.startswith("kept_"))
    told = {name: made.facts[name] for name in ("rewritten", *kept)}
    rejected = {f"rejected_{reason}": rows for reason, rows in pool.facts["rejected"].items()}
    sizes = [(file.uri, file.size, digest) for file, (_, digest) in zip(source.files, read.files, strict=True)]
    manifest = {
        "format": FORMAT_VERSION,
        "kind": "rewrite",
        "config": plain(outputs["rewrite"].manifest.identity["config"]),
        "source": {
            "format": source.format,
            "files": [{"name": name, "bytes": size, "sha256": digest} for name, size, digest in sizes],
        },
        "columns": plain(read.columns),
        "model": original.facts,
        "versions": versions(),
        "rows": made.facts["rows"],
        "counts": {**told, **rejected},
        "tokens": {"human": made.facts["tokens_human"], "final": made.facts["tokens"]},
        "stages": [stage_entry(output) for output in outputs.values()],
        "outputs": [
            {"name": name, "rows": infos[name].rows, "bytes": infos[name].bytes, "sha256": infos[name].sha256}
            for name in sorted(files)
        ],
    }
    files["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    publish(folder, files, key=digest_of(manifest)[:24])
    return manifest
