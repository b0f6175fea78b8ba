"""The base of stages whose arithmetic runs on a device: settings are the config, the device's facts the platform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datapipe.pipeline import SetStage

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class DeviceStage(SetStage):
    """A set stage on a device.

    Attributes:
        settings: The frozen config.
        device: Where the arithmetic runs, such as `cpu` or `cuda:0`.
        bits: Platform facts of that device.
    """

    settings: Any
    device: str
    bits: Mapping[str, str]

    @property
    def config(self) -> Any:
        """The frozen config."""
        return self.settings

    @property
    def platform(self) -> Mapping[str, str]:
        """As the arithmetic's device states it."""
        return self.bits
