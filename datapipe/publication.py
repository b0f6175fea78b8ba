"""The result of a run as its user sees it: files of the stages, the manifest, and what was proved of it.

    outputs -> publish_run -> DIR/kept.parquet, ..., DIR/manifest.json
    DIR/proof.json, DIR/proof.html -> publish_proof -> the same files, and report.html with a section on the proof
    teach, soft_labels -> publish_labels -> the same files, DIR/soft_labels.parquet and DIR/teacher_scores.parquet

A proof and soft labels belong to one choice of rows: they stay where the same choice is published again, and go with
any other one. The manifest names them, so `datapipe verify` checks their files too. Raises `OutputError` where the
folder cannot be written and `SourceError` where it holds no finished run.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from datapipe.errors import SourceError
from datapipe.stages.soft_labels import SOFT_LABELS, TEACHER_SCORES
from datapipe.storage.digest import digest_of
from datapipe.storage.lock import exclusive
from datapipe.storage.publish import publish
from datapipe.storage.stage import Manifest
from datapipe.storage.verify import read_run_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.pipeline import StageOutput

FILES = {"kept.parquet": "export", "scores.parquet": "export", "selection.parquet": "select", "report.html": "report"}
"""What every run leaves, and the stage that makes it."""
PROOF = ("proof.json", "proof.html")
LABELS = (SOFT_LABELS, TEACHER_SCORES)
LABEL_STAGES = ("teach", "soft_labels")
"""Stages that make them after the run, in order; the manifest lists them behind its own."""


def files_of(outputs: Mapping[str, StageOutput]) -> dict[str, Path | bytes]:
    """The files that the stages leave for the user, by name."""
    files: dict[str, Path | bytes] = {name: outputs[stage].path / name for name, stage in FILES.items()}
    if outputs["ingest"].has("rejected.parquet"):
        files["rejected.parquet"] = outputs["ingest"].path / "rejected.parquet"
    if "changes" in outputs:
        files["changes.parquet"] = outputs["changes"].path / "changes.parquet"
    return files


def publish_run(folder: Path, files: Mapping[str, Path | bytes], manifest: dict[str, Any]) -> dict[str, Any]:
    """Make `files` and the manifest the result of the run, and return the manifest.

    What was published of the same choice of rows before, a proof and soft labels, stays.
    """
    try:
        before = read_run_manifest(folder)
    except SourceError:
        return _publish(folder, files, manifest)
    if "select" in {stage["name"] for stage in before["stages"]} and _choice(before) == _choice(manifest):
        files, manifest = _keep_labels(folder, files, manifest, before)
        files, manifest = _keep_proof(folder, files, manifest, before)
    return _publish(folder, files, manifest)


def publish_labels(
    folder: Path, manifest: Mapping[str, Any], *, stages: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Make soft labels part of the result, in place of earlier ones, and return the manifest.

    Args:
        folder: The run folder. The caller holds its lock.
        manifest: Of the run, as it is published.
        stages: What a manifest says of `LABEL_STAGES`, in order.
        facts: What it is to say of the labels.
    """
    own = [output["name"] for output in manifest["outputs"] if output["name"] not in LABELS]
    files: dict[str, Path | bytes] = {name: (folder / name).resolve() for name in own}
    return _publish(folder, *_with_labels(folder, files, manifest, stages=stages, facts=facts))


def publish_proof(folder: Path, *, of: Mapping[str, Any]) -> bool:
    """Make DIR/proof.json and DIR/proof.html part of the result.

    Args:
        folder: A run folder in which both lie.
        of: The manifest of the run that was proved.

    Returns:
        False where the folder holds another choice of rows by now, which the proof says nothing of.

    Raises:
        LockedError: Another process is writing to the run folder.
        SourceError: There is no finished run, or no proof.
    """
    with exclusive(folder):
        manifest = read_run_manifest(folder)
        if _choice(manifest) != _choice(of):
            return False
        try:
            proof = {name: (folder / name).read_bytes() for name in PROOF}
        except FileNotFoundError as error:
            raise SourceError(f"{error.filename} is missing: run datapipe prove") from error
        names = [output["name"] for output in manifest["outputs"] if output["name"] not in PROOF]
        files: dict[str, Path | bytes] = {name: (folder / name).resolve() for name in names}
        _publish(folder, *_with_proof(folder, files, manifest, proof))
    return True


def _keep_proof(
    folder: Path, files: Mapping[str, Path | bytes], manifest: dict[str, Any], before: Mapping[str, Any]
) -> tuple[Mapping[str, Path | bytes], dict[str, Any]]:
    """With the proof that was published before, if there is one."""
    if "proof" not in before:
        return files, manifest
    try:
        proof = {name: (folder / name).read_bytes() for name in PROOF}
    except FileNotFoundError:
        return files, manifest
    return _with_proof(folder, files, manifest, proof)


def _keep_labels(
    folder: Path, files: Mapping[str, Path | bytes], manifest: dict[str, Any], before: Mapping[str, Any]
) -> tuple[Mapping[str, Path | bytes], dict[str, Any]]:
    """With the soft labels that were published before, if there are any and their stages are still there."""
    if "soft_labels" not in before:
        return files, manifest
    stages = [stage for stage in before["stages"] if stage["name"] in LABEL_STAGES]
    needed = [f"{stage['key']}/{stage['manifest']}" for stage in stages]
    needed += [f"{stages[-1]['key']}/{name}" for name in LABELS]
    if not all((folder / "stages" / name).exists() for name in needed):
        return files, manifest
    return _with_labels(folder, files, manifest, stages=stages, facts=before["soft_labels"])


def _with_labels(
    folder: Path,
    files: Mapping[str, Path | bytes],
    manifest: Mapping[str, Any],
    *,
    stages: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> tuple[dict[str, Path | bytes], dict[str, Any]]:
    made = folder / "stages" / stages[-1]["key"]
    shards = {shard.name: shard for shard in Manifest.read(made / stages[-1]["manifest"]).shards}
    entries = {output["name"]: output for output in manifest["outputs"]}
    for name in LABELS:
        shard = shards[name]
        entries[name] = {"name": name, "rows": shard.rows, "bytes": shard.bytes, "sha256": shard.sha256}
    own = [stage for stage in manifest["stages"] if stage["name"] not in LABEL_STAGES]
    told = {
        "outputs": [entries[name] for name in sorted(entries)],
        "stages": [*own, *stages],
        "soft_labels": dict(facts),
    }
    return {**files, **{name: made / name for name in LABELS}}, {**manifest, **told}


def _choice(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """What names a choice of rows: the digests of the stages up to it. Later ones say nothing of it."""
    names = [stage["name"] for stage in manifest["stages"]]
    return tuple(stage["sha256"] for stage in manifest["stages"][: names.index("select") + 1])


def _with_proof(
    folder: Path, files: Mapping[str, Path | bytes], manifest: Mapping[str, Any], proof: Mapping[str, bytes]
) -> tuple[dict[str, Path | bytes], dict[str, Any]]:
    from datapipe.report.facts import facts_from_json
    from datapipe.report.page import build_report

    report = next(stage for stage in manifest["stages"] if stage["name"] == "report")
    facts = facts_from_json((folder / "stages" / report["key"] / "facts.json").read_bytes())
    page = build_report(facts, proof=json.loads(proof["proof.json"])).encode()
    written = {**proof, "report.html": page}
    entries = {output["name"]: output for output in manifest["outputs"]}
    for name, content in written.items():
        digest = hashlib.sha256(content).hexdigest()
        entries[name] = {"name": name, "rows": 0, "bytes": len(content), "sha256": digest}
    outputs = [entries[name] for name in sorted(entries)]
    verdicts = {name: json.loads(proof["proof.json"])[name]["verdict"] for name in ("against_random", "against_full")}
    return {**files, **written}, {**manifest, "outputs": outputs, "proof": verdicts}


def _publish(folder: Path, files: Mapping[str, Path | bytes], manifest: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    publish(folder, {**files, "manifest.json": body}, key=digest_of(manifest)[:24])
    return manifest
