"""The files that a user sees in a run folder, replaced all at once.

    DIR/kept.parquet -> current/kept.parquet        links that never change
    DIR/current      -> results/1f0c…               one link, swapped by a single rename
    DIR/results/1f0c…/kept.parquet                  hard links to the stages' own files

A reader therefore sees the whole old result or the whole new one, and a killed process leaves the old one.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from datapipe.storage.atomic import (
    TEMPORARY_SUFFIX,
    explain_os_error,
    make_folder,
    remove_leftovers,
    sync_folder,
    write_atomically,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CURRENT = "current"
RESULTS = "results"


def publish(folder: Path, files: Mapping[str, Path | bytes], *, key: str) -> None:
    """Make `files` the result of the run in `folder`. The caller holds its lock.

    Args:
        folder: The run folder.
        files: By the name that the user sees: a stage's file, or content to write.
        key: Digest of the result, which names its folder; publishing the same key again changes nothing.

    Raises:
        OutputError: The folder cannot be written.
    """
    target = folder / RESULTS / key
    make_folder(target)
    try:
        _tidy(folder, target)
        for name, content in files.items():
            if isinstance(content, bytes):
                if not _holds(target / name, content):
                    write_atomically(target / name, content)
            else:
                _link(content, target / name)
        sync_folder(target)
        _point(folder / CURRENT, f"{RESULTS}/{key}")
        for name in files:
            _point(folder / name, f"{CURRENT}/{name}")
        _forget(folder, keep=set(files), key=key)
    except OSError as error:
        raise explain_os_error(error, folder) from error


def _tidy(folder: Path, target: Path) -> None:
    """Take away what a process left that was killed in here."""
    remove_leftovers(target)
    for link in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        if link.is_symlink():
            link.unlink()


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


def _link(source: Path, path: Path) -> None:
    if path.exists() and path.samefile(source):
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, temporary)
    temporary.replace(path)


def _point(link: Path, target: str) -> None:
    if link.is_symlink() and link.readlink().as_posix() == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_folder(link.parent)


def _forget(folder: Path, *, keep: set[str], key: str) -> None:
    for link in folder.iterdir():
        if link.is_symlink() and link.name not in keep and link.readlink().parts[0] == CURRENT and link.name != CURRENT:
            link.unlink()
    for old in (folder / RESULTS).iterdir():
        if old.name != key:
            shutil.rmtree(old)
