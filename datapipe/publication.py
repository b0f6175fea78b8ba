"""The result of a run as its user sees it: files of the stages, the manifest, and what was proved of it.

    outputs -> publish_run -> DIR/kept.parquet, ..., DIR/manifest.json
    DIR/proof.json, DIR/proof.html -> publish_proof -> the same files, and report.html with a section on the proof

A proof belongs to one choice of rows: it stays where the same choice is published again, and goes with any other one.
The manifest names it, so `datapipe verify` checks its files too. Raises `OutputError` where the folder cannot be
written and `SourceError` where it holds no finished run.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from datapipe.errors import SourceError
from datapipe.storage.digest import digest_of
from datapipe.storage.lock import exclusive
from datapipe.storage.publish import publish
from datapipe.storage.verify import read_run_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datapipe.pipeline import StageOutput

FILES = {"kept.parquet": "export", "scores.parquet": "export", "selection.parquet": "select", "report.html": "report"}
"""What every run leaves, and the stage that makes it."""
PROOF = ("proof.json", "proof.html")


def files_of(outputs: Mapping[str, StageOutput]) -> dict[str, Path | bytes]:
    """The files that the stages leave for the user, by name."""
    files: dict[str, Path | bytes] = {name: outputs[stage].path / name for name, stage in FILES.items()}
    if outputs["ingest"].has("rejected.parquet"):
        files["rejected.parquet"] = outputs["ingest"].path / "rejected.parquet"
    if "changes" in outputs:
        files["changes.parquet"] = outputs["changes"].path / "changes.parquet"
    return files


def publish_run(folder: Path, files: Mapping[str, Path | bytes], manifest: dict[str, Any]) -> dict[str, Any]:
    """Make `files` and the manifest the result of the run, and return the manifest; an earlier proof of it stays."""
    proof = _proof_of(folder, manifest)
    if proof is None:
        return _publish(folder, files, manifest)
    return _publish(folder, *_with_proof(folder, files, manifest, proof))


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


def _proof_of(folder: Path, manifest: Mapping[str, Any]) -> dict[str, bytes] | None:
    """The proof in the folder, where the choice of rows that it is of is that of `manifest`."""
    try:
        before = read_run_manifest(folder)
        if "proof" in before and _choice(before) == _choice(manifest):
            return {name: (folder / name).read_bytes() for name in PROOF}
    except (SourceError, FileNotFoundError):
        pass
    return None


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
