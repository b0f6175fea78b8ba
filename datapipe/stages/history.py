"""What a run knows of the run before it in the same folder: its files, its stages, and what its centroids were fit to.

    DIR/manifest.json -> record -> History(files, base, fitted) -> the stages of an update, and `update` in the manifest

The record of a base stands in the manifest of the update, so that an update that is run again has the same base and
writes the same bytes. Raises `ConfigError` where the run before cannot be continued and `IntegrityError` where its
stages are gone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.errors import ConfigError, IntegrityError, SourceError
from datapipe.pipeline import StageOutput
from datapipe.storage.digest import file_sha256, plain
from datapipe.storage.stage import Manifest
from datapipe.storage.verify import read_run_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from datapipe.stages.build import Wiring

FREE = ("keep", "keep_rows", "keep_tokens", "strategy", "max_rejected", "device")
"""Options that may differ from those of the run before: they change no row, no vector and no centroid."""
_FITTED = ("ingest", "screen", "score")


@dataclass(frozen=True, kw_only=True)
class History:
    """A finished run that is brought up to date.

    Attributes:
        record: The run as its update's manifest tells it: config, columns, model, files, stages, fitted.
        base: Its stages, by name.
        fitted: Stages of the run whose rows the centroids were fitted to; empty where the metric has no centroids.
    """

    record: Mapping[str, Any]
    base: Mapping[str, StageOutput]
    fitted: Mapping[str, StageOutput]

    @property
    def files(self) -> tuple[tuple[str, str], ...]:
        """Name and sha256 of each file of the source, in order."""
        return tuple((file["name"], file["sha256"]) for file in self.record["files"])


def files_before(folder: Path) -> list[str]:
    """Names of the source files of the finished run in `folder`, in order.

    Raises:
        ConfigError: There is no finished run, or it read a frame, which cannot be read again.
    """
    source = _finished(folder)["source"]
    if source["format"] == "frame":
        raise ConfigError(
            f"the run in {folder} read a Polars frame, which an update cannot read again: write the rows to a file, "
            "run from that, and update by files"
        )
    return [file["name"] for file in source["files"]]


def read_history(folder: Path, *, config: Any, files: Sequence[tuple[str, str]]) -> History:
    """Return the base of an update of the run in `folder`.

    Args:
        folder: The run folder.
        config: The options of the update.
        files: Name and sha256 of the files of the update. Where the finished run is that very update, its base is
            returned, so that running it again changes nothing.

    Raises:
        ConfigError: There is no finished run, or it was made with other options; names them.
        IntegrityError: One of its stages is gone or changed.
    """
    manifest = _finished(folder)
    record = _record(manifest, folder)
    here = [(file["name"], file["sha256"]) for file in record["files"]]
    if "update" in manifest and here == list(files) and record["config"] == plain(config):
        record = manifest["update"]["base"]
    _check_options(record["config"], plain(config))
    return History(
        record=record,
        base=_opened(folder, record["stages"]),
        fitted=_opened(folder, record["fitted"]),
    )


def check_continues(history: History, wiring: Wiring) -> None:
    """Refuse an update whose columns or model are not those of the run before.

    Raises:
        ConfigError: Says which differ.
    """
    before, columns = history.record["columns"], plain(wiring.columns)
    if before != columns:
        told = ", ".join(
            f"{role} {before.get(role)!r} is now {columns[role]!r}" for role in _differing(before, columns)
        )
        raise ConfigError(f"the columns of the run changed ({told}); name them, or run without update")
    model, now = history.record["model"], wiring.model_facts
    if (model or {}).get("digest") != (now or {}).get("digest"):
        raise ConfigError(
            f"the run was embedded by another model ({(model or {}).get('digest')}) than {(now or {}).get('name')} "
            f"({(now or {}).get('digest')}); vectors of two models cannot be compared: run without update"
        )


def update_facts(history: History, outputs: Mapping[str, StageOutput]) -> dict[str, Any]:
    """What the manifest of an update says of it: base, drift, whether the centroids were fitted again, and changes."""
    fit = outputs["fit"].facts if "fit" in outputs else {}
    refit = fit.get("refit")
    return {
        "base": dict(history.record),
        "fitted": _refs(outputs) if refit else list(history.record["fitted"]),
        "drift": fit.get("drift"),
        "refit": refit,
        "changes": plain(dict(outputs["changes"].facts)),
    }


def _finished(folder: Path) -> dict[str, Any]:
    try:
        return read_run_manifest(folder)
    except SourceError as error:
        raise ConfigError(f"nothing to update: {error}") from error


def _record(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    stages = [{key: stage[key] for key in ("name", "key", "manifest", "sha256")} for stage in manifest["stages"]]
    own = [stage for stage in stages if stage["name"] in _FITTED]
    return {
        "manifest": hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest(),
        "config": manifest["config"],
        "columns": manifest["columns"],
        "model": manifest["model"],
        "files": manifest["source"]["files"],
        "stages": stages,
        "fitted": manifest["update"]["fitted"] if "update" in manifest else own,
    }


def _refs(outputs: Mapping[str, StageOutput]) -> list[dict[str, str]]:
    return [
        {
            "name": output.name,
            "key": output.path.name,
            "manifest": output.manifest_name,
            "sha256": file_sha256(output.path / output.manifest_name),
        }
        for output in outputs.values()
        if output.name in _FITTED
    ]


def _opened(folder: Path, refs: Sequence[Mapping[str, str]]) -> dict[str, StageOutput]:
    found = {}
    for ref in refs:
        path = folder / "stages" / ref["key"]
        manifest = path / ref["manifest"]
        if not manifest.is_file() or file_sha256(manifest) != ref["sha256"]:
            raise IntegrityError(f"{manifest} is gone or changed, so the run cannot be updated; run without update")
        found[ref["name"]] = StageOutput(
            name=ref["name"], path=path, manifest_name=ref["manifest"], manifest=Manifest.read(manifest)
        )
    return found


def _check_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = [name for name in _differing(before, now) if name not in FREE]
    if names:
        told = ", ".join(f"{name} was {before.get(name)!r} and is {now[name]!r}" for name in names)
        raise ConfigError(f"an update continues a run of the same options, but {told}; run without update")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in now if before.get(name) != now[name]]
