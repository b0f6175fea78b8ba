"""Where the files of a source are and how they are opened: local paths, folders, globs, and URIs through fsspec.

source -> places (sorted, hidden ones left out) -> format by suffix -> streams of bytes, decompressed where need be

Everything that is not there, not reachable or not one format is a SourceError that names it.
"""

from __future__ import annotations

import codecs
import glob
import os
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, cast

import pyarrow as pa

from datapipe.errors import MissingExtraError, SourceError
from datapipe.storage.formats.place import COMPRESSIONS, FORMATS, Place
from datapipe.storage.formats.saved import saved_dataset
from datapipe.storage.limits import DecodedMeter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datapipe.storage.limits import Limits

__all__ = ["COMPRESSIONS", "FORMATS", "Place", "format_of", "locate", "open_text", "remote_filesystem", "text_start"]

_HEAD_BYTES = 1 << 10
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
    "hf": "huggingface_hub",
    "http": "aiohttp",
    "https": "aiohttp",
}


def locate(sources: list[str | os.PathLike[str]]) -> list[Place]:
    """Find the files of one or more paths, folders, globs or URIs. Those of a folder or glob come sorted by name.

    Raises:
        SourceError: Nothing is there, a remote store cannot be reached, or a file is named twice or holds nothing.
        MissingExtraError: The package for a URI's protocol is not installed.
    """
    places: dict[str, Place] = {}
    for source in sources:
        uri = os.fspath(source)
        if "\0" in uri:
            raise SourceError(f"{uri!r} is no path: it holds a zero byte")
        for place in _remote(uri) if _is_remote(uri) else _local(uri):
            if place.uri in places:
                raise SourceError(f"{place.uri} is named twice; its rows would count twice")
            if not place.size:
                raise SourceError(f"{place.uri} is empty (0 bytes); write it again, or leave it out")
            places[place.uri] = place
    return list(places.values())


def format_of(places: list[Place]) -> str:
    """Return the one format of all places.

    Raises:
        SourceError: The format is unknown, or there are several; names a file of each.
    """
    examples: dict[str, str] = {}
    for place in places:
        suffix, packed = place.suffixes
        kind = FORMATS.get(suffix)
        if kind is None:
            raise SourceError(f"{place.uri} is of unknown format {suffix or '(no suffix)'}; {_known_formats()}")
        if packed and kind not in {"csv", "jsonl"}:
            raise SourceError(f"{place.uri}: {packed} is read around CSV and JSONL only; unpack it first")
        examples.setdefault(kind, place.uri)
    if len(examples) > 1:
        named = ", ".join(f"{kind} ({uri})" for kind, uri in sorted(examples.items()))
        raise SourceError(f"a source is of one format, and this one mixes {named}; name one of them, or use a glob")
    return next(iter(examples))


@contextmanager
def open_text(place: Place, start: int = 0, *, limits: Limits) -> Iterator[IO[bytes]]:
    """Open a CSV or JSONL file as a stream of bytes, decompressed, from byte `start` of its text.

    Raises:
        LimitError: Raised while reading, when a compressed file unpacks to more than the limits allow.
    """
    codec = COMPRESSIONS.get(place.suffixes[1])
    with place.open() as stream:
        if codec is None:
            stream.seek(start)
            yield stream
            return
        with pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec) as text:
            metered = _Metered(text, DecodedMeter(place.uri, place.size, limits))
            while start:
                start -= len(metered.read(min(start, 1 << 20)))
            yield cast("IO[bytes]", metered)


def text_start(place: Place, *, limits: Limits) -> tuple[int, bytes]:
    """Return the byte behind a byte order mark, and the first KiB of the text that begins there.

    Raises:
        SourceError: The text is UTF-16.
    """
    with open_text(place, limits=limits) as stream:
        head = bytes(stream.read(_HEAD_BYTES))
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SourceError(f"{place.uri} is UTF-16; write it as UTF-8")
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    return start, head[start:]


def remote_filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URI and the path in it.

    Raises:
        MissingExtraError: The package for the protocol is not installed; names the pip line.
        SourceError: No such protocol, or its store cannot be reached.
    """
    import fsspec

    protocol = uri.split("://", 1)[0].split("::", 1)[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except ImportError as error:
        package = _PACKAGES.get(protocol, protocol)
        raise MissingExtraError(
            f"reading {uri} needs {package}, which is not installed: pip install {package}"
        ) from error
    except ValueError as error:
        raise SourceError(f"{uri} cannot be opened: {error}") from error
    except Exception as error:
        raise SourceError(f"{uri} cannot be reached: {_first_line(error)}") from error
    return filesystem, str(path)


class _Metered:
    """A stream of which every byte is counted."""

    def __init__(self, stream: Any, meter: DecodedMeter) -> None:
        self._stream = stream
        self._meter = meter

    def read(self, size: int) -> bytes:
        block = bytes(self._stream.read(size))
        self._meter.add(len(block))
        return block


def _is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def _local(uri: str) -> list[Place]:
    path = Path(uri.removeprefix("file://")).expanduser()
    try:
        if path.is_dir():
            return _of_folder([_local_place(file) for file in _walk(path)], str(path), uri)
        if path.exists():
            return [_local_place(path)]
    except OSError as error:
        raise SourceError(f"{uri} cannot be read: {error.strerror}") from error
    if not glob.has_magic(str(path)):
        raise SourceError(f"{uri} does not exist")
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207 - absolute patterns
    files = [file for name in found for file in (_walk(name) if name.is_dir() else [name])]
    root = _fixed_root(str(path))
    return _chosen([_local_place(file) for file in files if not _hidden(str(file), root)], uri)


def _walk(folder: Path) -> list[Path]:
    """Files below `folder`, sorted by path, without names that start with "." or "_" and what is below them."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += [Path(root) / name for name in names if not name.startswith((".", "_"))]
    return sorted(found, key=lambda file: file.relative_to(folder).parts)


def _of_folder(places: list[Place], root: str, uri: str) -> list[Place]:
    return saved_dataset(places, root=root, uri=uri) or _chosen(places, uri)


def _chosen(places: list[Place], uri: str) -> list[Place]:
    """Files of known formats; a folder may hold a README beside them."""
    known = [place for place in places if place.suffixes[0] in FORMATS]
    if not known:
        held = f"; it holds {PurePosixPath(places[0].path).name}" if places else ""
        raise SourceError(f"no file to read in {uri}{held}; {_known_formats()}")
    for place in known:
        key = next((part for part in PurePosixPath(place.path).parts[:-1] if "=" in part), None)
        if key is not None and key not in uri:
            raise SourceError(
                f"{place.uri} lies in a partition folder, whose value {key!r} would be lost; make it a column"
            )
    return known


def _local_place(path: Path) -> Place:
    if not path.is_file():
        raise SourceError(f"{path} is no file")
    facts = path.stat()
    return Place(str(path), facts.st_size, str(facts.st_mtime_ns), str(path))


def _remote(uri: str) -> list[Place]:
    filesystem, path = remote_filesystem(uri)
    try:
        if glob.has_magic(path):
            found = filesystem.glob(path, detail=True)
        else:
            facts = filesystem.info(path)
            if facts["type"] != "directory":
                return [_remote_place(uri, path, facts, filesystem)]
            found = filesystem.find(path, detail=True)
    except FileNotFoundError as error:
        # Over HTTP, a server that does not answer is a file that is not found.
        unanswered = error.__cause__ is not None
        raise SourceError(f"{uri} {'cannot be reached' if unanswered else 'does not exist'}") from error
    except ImportError as error:
        raise MissingExtraError(f"reading {uri} needs a package that is not installed: {_first_line(error)}") from error
    except Exception as error:
        raise SourceError(f"{uri} cannot be reached: {_first_line(error)}") from error
    scheme = uri.split("://", 1)[0]
    root = _fixed_root(path)
    names = sorted(name for name, facts in found.items() if facts["type"] != "directory" and not _hidden(name, root))
    places = [_remote_place(f"{scheme}://{name.lstrip('/')}", name, found[name], filesystem) for name in names]
    return _chosen(places, uri) if glob.has_magic(path) else _of_folder(places, root, uri)


def _fixed_root(path: str) -> str:
    """The folders of a path or pattern before its first wildcard."""
    parts = list(takewhile(lambda part: not glob.has_magic(part), PurePosixPath(path).parts))
    return str(PurePosixPath(*parts))


def _hidden(name: str, root: str) -> bool:
    """Whether a file's name, or that of a folder between it and `root`, starts with "." or "_"."""
    path = PurePosixPath(name)
    below = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath(path.name)
    return any(part.startswith((".", "_")) for part in below.parts)


def _remote_place(uri: str, path: str, facts: dict[str, Any], filesystem: Any) -> Place:
    marks = (facts.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created"))
    stamp = next((str(mark) for mark in marks if mark is not None), None)
    return Place(uri, int(facts.get("size") or 0), stamp, path, filesystem)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _known_formats() -> str:
    return f"read are {', '.join(FORMATS)}, and CSV and JSONL as {' or '.join(COMPRESSIONS)}"
