"""Labels that are there already: a stage of the same teachers that has judged the wanted rows among others.

stages/teach-* -> same teachers, mode, seed and rows ingested? -> all wanted rows in it? -> StageOutput
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datapipe.pipeline import StageOutput
from datapipe.storage.digest import digest_of, plain
from datapipe.storage.stage import MANIFEST, Manifest, StageIdentity

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from datapipe.stages.teach import TeachStage

__all__ = ["need_digest", "wider_stage"]


def wider_stage(folder: Path, outputs: Mapping[str, StageOutput], stage: TeachStage) -> StageOutput | None:
    """Return a finished stage that differs from `stage` in nothing but more rows; of several the one with the fewest.

    Args:
        folder: The run.
        outputs: Its stages by name.
        stage: Which would judge the wanted rows.

    Returns:
        None where there is none, or `stage` itself is done.
    """
    own = stage.identity([need_digest(outputs, need) for need in stage.needs])
    root = folder / "stages"
    if (root / own.key / MANIFEST).exists():
        return None
    shared = len(stage.needs) - len(stage.choice)
    found = []
    for path in sorted(root.glob(f"{stage.name}-*")):
        if not (path / MANIFEST).exists():
            continue
        manifest = Manifest.read(path / MANIFEST)
        if _same_but_rows(manifest.identity, own, shared):
            found.append(StageOutput(name=stage.name, path=path, manifest_name=MANIFEST, manifest=manifest))
    fitting = [each for each in found if _covers(each, stage.settings.rows, outputs)]
    return min(fitting, key=lambda each: (each.manifest.rows, each.path.name), default=None)


def need_digest(outputs: Mapping[str, StageOutput], need: str) -> str:
    """Return the digest of what a stage reads, as its identity names it."""
    name, _, family = need.partition("/")
    return digest_of([shard.sha256 for shard in outputs[name].parts(family or None)])


def _same_but_rows(found: Mapping[str, Any], own: StageIdentity, shared: int) -> bool:
    mine = plain(own)
    configs = [{**each["config"], "rows": None} for each in (found, mine)]
    inputs = [list(each["inputs"])[:shared] for each in (found, mine)]
    others = [{name: each[name] for name in ("name", "version", "models", "platform")} for each in (found, mine)]
    return all(one == two for one, two in (configs, inputs, others))


def _covers(other: StageOutput, rows: str, outputs: Mapping[str, StageOutput]) -> bool:
    """Whether a stage has judged every wanted row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from datapipe.stages.soft_labels import kept_ids

    if other.manifest.identity["config"]["rows"] == "all":
        return True
    if rows == "all":
        return False
    tables = [table["row_id"] for table in other.tables(columns=["row_id"])]
    there = pa.chunked_array([chunk for each in tables for chunk in each.chunks], pa.binary(16)).cast(pa.binary())
    return pc.all(pc.is_in(kept_ids(outputs["select"]), value_set=there)).as_py() is not False
