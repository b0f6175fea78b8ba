"""What a machine or an operator decides, not a run: environment variables with the prefix `DATAPIPE_`.

None of these changes which rows are kept. `datapipe config` prints them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from datapipe.storage.limits import Limits


class LimitSettings(BaseSettings):
    """Caps on what a source may hold; `DATAPIPE_LIMITS__MAX_CELL_BYTES` and so on."""

    max_columns: int = Field(10_000, ge=1, description="Columns of a source; more are refused.")
    max_cell_bytes: int = Field(16 << 20, ge=1, description="Bytes of one value; a row with more is rejected.")
    max_expansion: float = Field(100.0, gt=0, description="Decoded bytes over file bytes; more are refused.")
    decoded_floor: int = Field(1 << 30, ge=0, description="Decoded bytes of a file below which nothing is refused.")

    def as_limits(self) -> Limits:
        """Turn into what the readers take."""
        from datapipe.storage.limits import Limits

        return Limits(**self.model_dump())


class RaySettings(BaseSettings):
    """What an actor of the Ray executor takes; `DATAPIPE_RAY__GPUS` and so on. Which Ray, `RAY_ADDRESS` says."""

    actors: int | None = Field(
        None, ge=1, description="Actors of a stage at most; default as many as the cluster holds."
    )
    cpus: float = Field(1.0, gt=0, description="CPUs of an actor.")
    gpus: float = Field(1.0, gt=0, description="GPUs of an actor of a stage that computes on GPUs; 0.5 shares one.")


class Settings(BaseSettings):
    """Settings of this process, read from the environment when constructed."""

    model_config = SettingsConfigDict(env_prefix="DATAPIPE_", env_nested_delimiter="__", extra="ignore")

    device: str = Field("auto", description="Where models run: auto, cpu, cuda, cuda:1.")
    workers: int | None = Field(None, ge=1, description="Threads of the local executor; default one a core.")
    threads: int | None = Field(
        None, ge=1, description="Threads that a model computes with on the CPU; default one a core."
    )
    limits: LimitSettings = Field(default_factory=LimitSettings)
    ray: RaySettings = Field(default_factory=RaySettings)
