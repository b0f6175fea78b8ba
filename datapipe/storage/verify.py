"""Hash every byte of a run again and compare with what its manifests say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datapipe.errors import IntegrityError, SourceError
from datapipe.storage.digest import file_sha256
from datapipe.storage.stage import Manifest

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found.

    Attributes:
        files: Files hashed.
        bytes: Bytes hashed.
        problems: One sentence for each file that is missing or differs; empty where all is well.
    """

    files: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file is what its manifest says."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise `IntegrityError` with all problems, if there are any."""
        if self.problems:
            raise IntegrityError("; ".join(self.problems))


def verify(run: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> Verification:
    """Check a finished run: its result files, and every shard of every stage it was made of.

    Args:
        run: The run folder, as given to `curate(out=…)`.
        progress: Called with the bytes of each chunk that was hashed.

    Raises:
        SourceError: `run` is no finished run.
    """
    folder = Path(run)
    manifest = read_run_manifest(folder)
    problems: list[str] = []
    files = total = 0
    for path, name, size, sha256 in _expected(folder, manifest, problems):
        if not path.is_file():
            problems.append(f"{name} is missing")
            continue
        found = path.stat().st_size
        files, total = files + 1, total + found
        if found != size:
            problems.append(f"{name} has {found:,} bytes, its manifest says {size:,}")
        elif file_sha256(path, progress=progress) != sha256:
            problems.append(f"{name} has other contents than its manifest says")
    return Verification(files=files, bytes=total, problems=tuple(problems))


def read_run_manifest(folder: Path) -> dict[str, Any]:
    """Read `manifest.json` of a run folder.

    Raises:
        SourceError: There is none, or it is not one of ours; says what to do.
    """
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if not {"outputs", "stages", "config"} <= manifest.keys():
            raise SourceError(f"{path} is not the manifest of a run")
    except FileNotFoundError as error:
        raise SourceError(
            f"{folder} holds no finished run (no manifest.json); finish it by running curate again"
        ) from error
    except (ValueError, AttributeError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} is damaged: {error}") from error
    return manifest


def _expected(folder: Path, manifest: dict[str, Any], problems: list[str]) -> Iterator[tuple[Path, str, int, str]]:
    """Yield path, shown name, size and digest of every file; what cannot be followed becomes a problem."""
    names = [(output["name"], output["bytes"], output["sha256"]) for output in manifest["outputs"]]
    for stage in manifest["stages"]:
        base = f"stages/{stage['key']}"
        names.append((f"{base}/{stage['manifest']}", stage["bytes"], stage["sha256"]))
        try:
            shards = Manifest.read(folder / base / stage["manifest"]).shards
        except FileNotFoundError:  # told as missing when its name comes up
            continue
        except IntegrityError as error:
            problems.append(str(error))
            continue
        names += [(f"{base}/{shard.name}", shard.bytes, shard.sha256) for shard in shards]
    root = folder.resolve()
    for name, size, sha256 in names:
        path = folder / name
        if path.resolve().is_relative_to(root):
            yield path, name, size, sha256
        else:
            problems.append(f"{name} points outside the run folder")
