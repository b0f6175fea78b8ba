"""Helpers that look at run folders from outside."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parent.parent
TRANSIENT = {"timings.json", ".lock", ".source-digests.json"}


def command(*arguments: object) -> list[str]:
    """The `datapipe` command line as a list, run by this interpreter."""
    return [sys.executable, "-m", "datapipe.cli", *map(str, arguments)]


def datapipe(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `datapipe` to its end and capture what it prints."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=240, check=False, cwd=ROOT)


def contents(run: Path) -> dict[str, str]:
    """Every file of a run folder by relative path: its digest, or the target of a link; times and locks left out."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if name in TRANSIENT or (path.is_dir() and not path.is_symlink()):
            continue
        found[name] = f"-> {path.readlink()}" if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def kept_ids(run: Path) -> list[bytes]:
    """The kept row ids of a run, in their order."""
    return pl.read_parquet(run / "kept.parquet", columns=["row_id"])["row_id"].to_list()


def spread(frame: pl.DataFrame, folder: Path, *, files: int, suffix: str) -> str:
    """Write a frame as so many files of a format, and return the folder's path."""
    folder.mkdir(parents=True)
    size = -(-frame.height // files)
    for i in range(files):
        part, path = frame.slice(i * size, size), folder / f"part-{i:03d}.{suffix}"
        if not part.height:
            continue
        if suffix == "parquet":
            part.write_parquet(path)
        elif suffix == "csv":
            part.write_csv(path)
        else:
            part.write_ndjson(path)
    return str(folder)
