"""The files that a selection for recovery leaves, and the manifest that names them.

stages -> DIR/kept.parquet, train.parquet, ..., manifest.json, all replaced at once
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from datapipe.storage.digest import digest_of, plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.paser.wiring import RecoveryWiring
    from datapipe.pipeline import StageOutput

__all__ = ["publish_selection"]

FILES = {
    "kept.parquet": "exported",
    "train.parquet": "exported",
    "dataset_info.json": "exported",
    "selection.parquet": "pick",
    "clusters.parquet": "pick",
    "damage.parquet": "atlas",
    "report.html": "paser_report",
}
"""What a run leaves, and the stage that makes it."""


def publish_selection(
    wiring: RecoveryWiring, digests: Sequence[str], folder: Path, outputs: Mapping[str, StageOutput]
) -> dict[str, Any]:
    """Put the files of the run into the folder, all at once; returns the manifest. Raises `OutputError`."""
    from datapipe.storage.publish import publish
    from datapipe.storage.refused import REJECTED

    files: dict[str, Path | bytes] = {name: outputs[stage].path / name for name, stage in FILES.items()}
    if outputs["pool"].has(REJECTED):
        files[REJECTED] = outputs["pool"].path / REJECTED
    manifest = _manifest(wiring, digests, outputs, names=sorted(files))
    files["manifest.json"] = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    publish(folder, files, key=digest_of(manifest)[:24])
    return manifest


def _manifest(
    wiring: RecoveryWiring, digests: Sequence[str], outputs: Mapping[str, StageOutput], *, names: Sequence[str]
) -> dict[str, Any]:
    """What manifest.json says; no host, time or output path, so that equal runs have equal manifests."""
    from datapipe.paser.wiring import embedder_facts
    from datapipe.runs import stage_entry, versions
    from datapipe.storage.stage import FORMAT_VERSION

    config, pick, skills = wiring.config, outputs["pick"].facts, outputs["skills"].facts
    infos = {shard.name: shard for output in outputs.values() for shard in output.manifest.shards}
    rejected = {f"rejected_{reason}": rows for reason, rows in outputs["pool"].facts["rejected"].items()}
    return {
        "format": FORMAT_VERSION,
        "kind": "paser",
        "config": plain(config),
        "source": {
            "format": wiring.source.format,
            "files": [
                {"name": file.uri, "bytes": file.size, "sha256": digest}
                for file, digest in zip(wiring.source.files, digests, strict=True)
            ],
        },
        "columns": plain(wiring.columns),
        "models": {**wiring.models.facts, "bits": dict(wiring.models.bits), "embedder": embedder_facts(wiring)},
        "versions": versions(),
        "counts": {**pick["counts"], **rejected},
        "selection": {
            "method": config.pick.method,
            "budget": plain(config.budget),
            "conflicts": config.pick.filter,
            "warnings": list(pick["warnings"]),
        },
        "skills": {name: skills[name] for name in ("k", "names", "sizes")},
        "stages": [stage_entry(output) for output in outputs.values()],
        "outputs": [
            {"name": name, "rows": infos[name].rows, "bytes": infos[name].bytes, "sha256": infos[name].sha256}
            for name in names
        ],
    }
