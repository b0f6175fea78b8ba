"""What a machine or an operator decides, not a run: environment variables with the prefix `DATAPIPE_`.

None of these changes which rows are kept. `datapipe config` prints them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from datapipe.errors import ConfigError

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


class ServeSettings(BaseModel):
    """What `datapipe serve` serves, where, and how much it takes; `DATAPIPE_SERVE__PORT` and so on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="SOURCE or NAME=SOURCE, then ,task=T and the like; several between blanks; none: the embedded."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; one that others reach needs a key.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    device: str | None = Field(None, description="Where models run; default DATAPIPE_DEVICE.")
    api_key_file: Path | None = Field(None, description="File of bearer keys, one a line; besides DATAPIPE_API_KEY.")
    allow_public: bool = Field(default=False, description="Listen for others although no key is set.")
    max_body_bytes: int = Field(8 << 20, ge=1, description="Bytes of a JSON body; more: 413.")
    max_task_bytes: int = Field(256 << 20, ge=1, description="Bytes of an Arrow body of /v1/tasks; more: 413.")
    max_header_bytes: int = Field(64 << 10, ge=256, description="Bytes of a request line and its headers; more: 431.")
    max_texts: int = Field(2048, ge=1, description="Texts of a request; more: 413.")
    max_characters: int = Field(1_000_000, ge=1, description="Characters of a text; more: 413.")
    max_tokens: int = Field(1 << 20, ge=1, description="Tokens that an online request sends to a model; more: 413.")
    max_requests: int = Field(1024, ge=1, description="Requests in progress; more: 429.")
    max_pending_bytes: int = Field(1 << 30, ge=1, description="Bytes of all bodies held at a time; more: 429.")
    queue_items: int = Field(4096, ge=1, description="Online items in the worker; more: 429.")
    timeout_seconds: float = Field(30.0, gt=0, description="Deadline of a request; later: 504.")
    body_seconds: float = Field(30.0, gt=0, description="Time in which a body must arrive; later: 408.")
    health_seconds: float = Field(5.0, gt=0, description="Time in which the worker must answer /health.")
    stuck_seconds: float = Field(120.0, gt=0, description="Time after which a batch that still runs is stuck: 503.")
    drain_seconds: float = Field(30.0, ge=0, description="Time that running requests get when the server is stopped.")
    memory_bytes: int = Field(8 << 30, ge=1, description="Memory of the loaded models on a device.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What is logged: info names every request by route, status and time."
    )

    @field_validator("model", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return value.split() if isinstance(value, str) else value


class Settings(BaseSettings):
    """Settings of this process, read from the environment when constructed."""

    model_config = SettingsConfigDict(env_prefix="DATAPIPE_", env_nested_delimiter="__", extra="ignore")

    device: str = Field("auto", description="Where models run: auto, cpu, cuda, cuda:1.")
    workers: int | None = Field(None, ge=1, description="Threads of the local executor; default one a core.")
    threads: int | None = Field(
        None, ge=1, description="Threads that a model computes with on the CPU; default one a core."
    )
    limits: LimitSettings = Field(default_factory=LimitSettings)
    api_key: SecretStr | None = Field(None, description="Bearer key of `datapipe serve` and of its clients.")
    serve: ServeSettings = Field(default_factory=ServeSettings)
    ray: RaySettings = Field(default_factory=RaySettings)

    def __init__(self, **values: Any) -> None:
        """Read the environment. Raises `ConfigError` that names the variable at fault, and never its value."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            faults = [f"DATAPIPE_{'__'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors()]
            raise ConfigError("; ".join(faults)) from None
        except SettingsError as error:
            raise ConfigError(f"the environment's settings cannot be read: {error}") from None
