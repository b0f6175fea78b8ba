"""Folders that Hugging Face's `save_to_disk` writes: Arrow streams, and a state.json that names them in order."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from datapipe.errors import SourceError

if TYPE_CHECKING:
    from datapipe.storage.formats.place import Place

__all__ = ["saved_dataset"]

_STATE, _SPLITS = "state.json", "dataset_dict.json"


def saved_dataset(places: list[Place], *, root: str, uri: str) -> list[Place] | None:
    """Return the data files of a saved Dataset, in its order; None where the folder holds anything else.

    Args:
        places: All files below the folder.
        root: The folder's own path, as in `Place.path`.
        uri: The folder, for messages.

    Raises:
        SourceError: The folder is a DatasetDict (names its splits), or state.json is damaged or names what is missing.
    """
    top = {
        PurePosixPath(place.path).name: place
        for place in places
        if PurePosixPath(place.path).parent == PurePosixPath(root)
    }
    if _SPLITS in top:
        splits = [str(split) for split in _read(top[_SPLITS]).get("splits", [])]
        example = f"{uri.rstrip('/')}/{splits[0] if splits else 'train'}"
        raise SourceError(
            f"{uri} is a DatasetDict of the splits {', '.join(splits)}; name one of them, as in {example}"
        )
    if _STATE not in top or "_data_files" not in (state := _read(top[_STATE])):
        return None
    if state.get("_indices_data_files"):
        raise SourceError(
            f"{uri} was saved with a selection of rows beside its data; save it with flatten_indices() again"
        )
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (TypeError, KeyError) as error:
        raise SourceError(f"{top[_STATE].uri} is damaged: _data_files is no list of file names") from error
    lost = [name for name in names if name not in top]
    if lost:
        raise SourceError(f"{top[_STATE].uri} names {lost[0]!r}, which is not in {uri}")
    if not names:
        raise SourceError(f"{uri} is a saved dataset without data files")
    return [top[name] for name in names]


def _read(place: Place) -> dict[str, Any]:
    try:
        with place.open() as stream:
            found = json.loads(stream.read())
    except (OSError, ValueError) as error:
        raise SourceError(f"{place.uri} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise SourceError(f"{place.uri} is damaged: it holds no JSON object")
    return found
