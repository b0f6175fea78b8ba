"""Models whose weights lie inside the package; each folder's README says where it came from and how it was made."""

from __future__ import annotations

from pathlib import Path

from datapipe.errors import ModelNotFoundError

__all__ = ["embedded_folder", "embedded_names"]

_HERE = Path(__file__).resolve().parent


def embedded_names() -> list[str]:
    """Names of the embedded models, sorted."""
    return sorted(path.parent.name for path in _HERE.glob("*/config.json"))


def embedded_folder(name: str) -> Path:
    """Folder of an embedded model. Raises `ModelNotFoundError` with the names there are."""
    if name not in embedded_names():
        raise ModelNotFoundError(f"no model {name!r} is embedded; there are: {', '.join(embedded_names())}")
    return _HERE / name
