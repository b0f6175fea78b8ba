"""Bearer keys: read from the environment and a file, compared in constant time, never shown.

Raises `KeyRefusedError` for a request without a key of the server, `ConfigError` for a server that others could reach
without one.
"""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING

from datapipe.errors import ConfigError
from datapipe.workers.http.errors import KeyRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from datapipe.settings import ServeSettings

__all__ = ["Keys", "check_exposure", "is_loopback"]

_SCHEME = b"bearer "


class Keys:
    """The keys that open a server; without any, everybody may enter.

    Args:
        keys: Blank ones are left out.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = [stripped.encode() for key in keys if (stripped := key.strip())]

    @classmethod
    def of(cls, key: str | None, file: Path | None) -> Keys:
        """The key of the environment, and those of a file, one a line; lines that begin with # are skipped.

        Raises:
            ConfigError: The file cannot be read, or holds no key.
        """
        lines: list[str] = []
        if file is not None:
            try:
                content = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"the key file {file} cannot be read ({type(error).__name__})") from error
            lines = [line for line in content.splitlines() if line.strip() and not line.lstrip().startswith("#")]
            if not lines:
                raise ConfigError(f"the key file {file} holds no key: write one a line")
        return cls([*([key] if key else []), *lines])

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __repr__(self) -> str:
        return f"Keys({len(self._keys)} keys)"

    def check(self, authorization: bytes | None) -> None:
        """Compare with every key, so that the time taken tells nothing. Raises `KeyRefusedError`."""
        if not self._keys:
            return
        if authorization is None or not authorization.lower().startswith(_SCHEME):
            raise KeyRefusedError("this server needs a key: send the header Authorization: Bearer KEY")
        given = authorization[len(_SCHEME) :].strip()
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        if not any(matches):
            raise KeyRefusedError("the key is not one of this server's")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ServeSettings, keys: Keys) -> None:
    """Refuse to listen where others can reach the server and none of them needs a key. Raises `ConfigError`."""
    if not keys and not is_loopback(settings.host) and not settings.allow_public:
        raise ConfigError(
            f"others can reach {settings.host}, and no key is set: set DATAPIPE_API_KEY or --api-key-file, listen on "
            "127.0.0.1, or pass --allow-public if everybody may use this server"
        )
