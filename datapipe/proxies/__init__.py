"""Small models whose training tells how hard each row is: heads on frozen vectors, or the user's own loop, recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datapipe.proxies.recorder import DynamicsRecorder

__all__ = ["DynamicsRecorder"]


def __getattr__(name: str) -> Any:  # the recorder brings numpy and pyarrow
    if name in __all__:
        from datapipe.proxies import recorder

        return getattr(recorder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
