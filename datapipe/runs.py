"""Finished runs: their manifest, and the object that stands for one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.pipeline import StageTiming
from datapipe.storage.atomic import write_atomically
from datapipe.storage.digest import file_sha256, plain
from datapipe.storage.stage import FORMAT_VERSION
from datapipe.storage.verify import read_run_manifest

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import polars as pl

    from datapipe.config import CurateConfig
    from datapipe.pipeline import StageOutput
    from datapipe.stages.build import Wiring
    from datapipe.storage.source import Source

DIGESTS = ".source-digests.json"
TIMINGS = "timings.json"
"""Of a run folder: `stages`, how long each took the last time, and `made`, how long when it was made."""


@dataclass(frozen=True, kw_only=True, repr=False)
class CurateResult:
    """A finished run.

    Attributes:
        out: The run folder: kept.parquet, selection.parquet, scores.parquet, manifest.json, report.html and, where rows
            were refused, rejected.parquet.
        manifest: What manifest.json says.
        timings: Seconds and rows a stage in this process; stages done before are marked.
    """

    out: Path
    manifest: Mapping[str, Any]
    timings: tuple[StageTiming, ...] = field(default=())

    @property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them (`kept`, `over_budget`, `rejected` …); they add up to the rows read."""
        return dict(self.manifest["counts"])

    @property
    def warnings(self) -> list[str]:
        """What speaks against the chosen strategy, in sentences."""
        return list(self.manifest["selection"]["warnings"])

    @property
    def reasons(self) -> list[str]:
        """Why the strategy is what it is, in sentences that cite their evidence."""
        return list(self.manifest["selection"]["reasons"])

    @property
    def update(self) -> dict[str, Any] | None:
        """Of a run that was brought up to date: `drift`, `refit`, `changes` and its base; else None."""
        return self.manifest.get("update")

    @property
    def report(self) -> Path:
        """The run's page."""
        return self.out / "report.html"

    @property
    def made_seconds(self) -> dict[str, float]:
        """Seconds that each stage took when it was made, by KEY/MANIFEST of the manifest's `stages`, where recorded."""
        return dict(_timings(self.out)["made"])

    @cached_property
    def kept(self) -> pl.LazyFrame:
        """The kept rows: row_id and the source's own columns, sorted by row_id."""
        import polars as pl

        return pl.scan_parquet(self.out / "kept.parquet", glob=False)

    @cached_property
    def selection(self) -> pl.LazyFrame:
        """Every accepted row: row_id, kept, reason, stratum, rank; sorted by row_id."""
        import polars as pl

        return pl.scan_parquet(self.out / "selection.parquet", glob=False)

    @cached_property
    def scores(self) -> pl.LazyFrame:
        """Every accepted row: row_id and a float32 column named after the metric; sorted by row_id."""
        import polars as pl

        return pl.scan_parquet(self.out / "scores.parquet", glob=False)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, for `--json`."""
        return {
            "out": str(self.out),
            "counts": self.counts,
            "selection": plain(dict(self.manifest["selection"])),
            "outputs": plain(list(self.manifest["outputs"])),
            "timings": [plain(timing) for timing in self.timings],
        }

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={rows:,}" for name, rows in self.counts.items())
        return f"CurateResult(out={str(self.out)!r}, {counts})"

    def _repr_html_(self) -> str:
        from datapipe.report.table import to_html

        return to_html(self.out)


def record_seconds(
    out: Path, *, stages: Sequence[StageTiming] | None = None, made: Mapping[str, float] | None = None
) -> None:
    """Add to what timings.json says, at once: a run that is interrupted still knows what it has cost.

    Args:
        out: The run folder.
        stages: How long each stage took this time; None leaves what is there.
        made: Seconds of stages that were made now, by KEY/MANIFEST.
    """
    known = _timings(out)
    content = {
        **known,
        "stages": [plain(timing) for timing in stages] if stages is not None else known["stages"],
        "made": {**known["made"], **(made or {})},
    }
    write_atomically(out / TIMINGS, json.dumps(content, indent=1).encode())


def known_digests(out: Path) -> dict[str, str]:
    """Digests of source files that have been read before, as the run folder remembers them; see `Source.digests`."""
    try:
        return dict(json.loads((out / DIGESTS).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def remember_digests(out: Path, known: Mapping[str, str]) -> None:
    """Write them down, at once."""
    write_atomically(out / DIGESTS, json.dumps(known, indent=1).encode())


def _timings(out: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((out / TIMINGS).read_bytes())
    except (FileNotFoundError, ValueError):
        found = {}
    return {"stages": [], "made": {}, **found}


def open_run(out: str | os.PathLike[str]) -> CurateResult:
    """Open a finished run folder again. Raises `SourceError` where there is none."""
    folder = Path(out)
    timings = tuple(StageTiming(**timing) for timing in _timings(folder)["stages"])
    return CurateResult(out=folder, manifest=read_run_manifest(folder), timings=timings)


def run_manifest(
    config: CurateConfig,
    source: Source,
    wiring: Wiring,
    *,
    outputs: Mapping[str, StageOutput],
    names: Sequence[str],
    update: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `manifest.json` says of a run; no host, time or output path, so that equal runs have equal manifests.

    Args:
        config: The options.
        source: What was read.
        wiring: Columns, model and source digests.
        outputs: Every stage by name, in order.
        names: The files that the run leaves for its user.
        update: Base, drift and changes of a run that brings another one up to date.
    """
    infos = {shard.name: shard for output in outputs.values() for shard in output.manifest.shards}
    select, ingest = outputs["select"].facts, outputs["ingest"].facts
    rejected = {f"rejected_{reason}": rows for reason, rows in ingest["rejected"].items()}
    files = zip(source.files, wiring.digests, strict=True)
    return {
        "format": FORMAT_VERSION,
        "kind": "curate",
        "config": plain(config),
        "source": {
            "format": source.format,
            "files": [{"name": file.uri, "bytes": file.size, "sha256": digest} for file, digest in files],
        },
        "columns": plain(wiring.columns),
        "model": wiring.model_facts,
        "versions": versions(),
        "counts": {**select["counts"], **rejected},
        "selection": {name: select[name] for name in ("budget", "plan", "reasons", "warnings", "strata")},
        "stages": [stage_entry(output) for output in outputs.values()],
        "outputs": [
            {"name": name, "rows": infos[name].rows, "bytes": infos[name].bytes, "sha256": infos[name].sha256}
            for name in names
        ],
        **({"update": plain(dict(update))} if update is not None else {}),
    }


def stage_entry(output: StageOutput) -> dict[str, Any]:
    """Return what a run's manifest says of one of its stages."""
    path = output.path / output.manifest_name
    return {
        "name": output.name,
        "key": output.path.name,
        "manifest": output.manifest_name,
        "rows": output.manifest.rows,
        "facts": plain(dict(output.facts)),
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
    }


def update_in_words(update: Mapping[str, Any]) -> str:
    """What an update did, in one line: rows that came, whether the prototypes stayed, rows that changed side."""
    changes, drift = update["changes"], update["drift"]
    entered, left = (sum(changes[side].values()) for side in ("entered", "left"))
    moved = f"{changes['rows_new']:,} rows came; {entered:,} entered the kept set and {left:,} left it"
    if drift is None:
        return moved
    fate = "prototypes fitted again" if update["refit"] else "prototypes kept"
    if drift["rise"] is None:
        return f"{moved}; {fate}"
    return f"{moved}; {fate}, error {drift['rise']:+.1%} (95 % interval {drift['low']:+.1%} to {drift['high']:+.1%})"


def versions() -> dict[str, str]:
    """Versions of what the bytes of a run may depend on."""
    from importlib.metadata import version

    names = ("secateur", "numpy", "polars", "pyarrow", "tokenizers", "torch", "transformers")
    return {name: version(name) for name in names}
