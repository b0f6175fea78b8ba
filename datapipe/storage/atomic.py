"""Files that are there whole or not at all: temporary sibling, flush, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

from datapipe.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TEMPORARY_SUFFIX = ".partial"

_EXPLAINED = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file grew over the size limit of this process or file system",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of the path is not a folder",
}


def explain_os_error(error: OSError, path: Path) -> OutputError:
    """Turn an operating system's refusal to write `path` into an error that says what to do."""
    reason = _EXPLAINED.get(error.errno or 0, error.strerror or str(error))
    hint = (
        "; free some space and run the same command again, finished shards are kept"
        if error.errno
        in {
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        }
        else ""
    )
    return OutputError(f"cannot write {path}: {reason}{hint}")


def make_folder(path: Path) -> None:
    """Create `path` and its parents; raises `OutputError` where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OutputError(f"cannot write into {path}: it is a file, not a folder") from error
    except OSError as error:
        raise explain_os_error(error, path) from error


def sync_folder(path: Path) -> None:
    """Make a rename in `path` durable. Best effort: some file systems cannot open a folder."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on leaving without error it is fsynced and becomes `path`.

    A reader sees the old file or the new one, never a part. On an error the temporary file is removed; where the block
    removes it itself, `path` stays as it was.

    Raises:
        OutputError: The disk is full, read-only or forbidden; names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        if not temporary.exists():
            return
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        if error.errno in _EXPLAINED:
            raise explain_os_error(error, path) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`, whole or not at all. Raises `OutputError`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files that a killed process left directly in `folder`; returns how many."""
    leftovers = list(folder.glob(f".*{TEMPORARY_SUFFIX}"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


@contextmanager
def scratch_folder(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder inside a run folder, gone at the end; what the system refuses meanwhile is explained.

    Raises:
        OutputError: The disk is full or cannot be written.
    """
    scratch = folder / name
    shutil.rmtree(scratch, ignore_errors=True)
    make_folder(scratch)
    try:
        yield scratch
    except OSError as error:
        if error.errno is None:
            raise
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
