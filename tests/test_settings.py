"""A setting that cannot be used is told by the name of its variable, without its value."""

from __future__ import annotations

import pytest

from datapipe.errors import ConfigError
from datapipe.settings import Settings


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DATAPIPE_WORKERS", "0", "DATAPIPE_WORKERS: Input should be greater than or equal to 1"),
        ("DATAPIPE_SERVE__PORT", "x17", "DATAPIPE_SERVE__PORT: Input should be a valid integer"),
        ("DATAPIPE_LIMITS__MAX_COLUMNS", "-3", "DATAPIPE_LIMITS__MAX_COLUMNS: Input should be greater"),
        ("DATAPIPE_LIMITS", "{x17", "the environment's settings cannot be read"),
    ],
)
def test_a_setting_out_of_range_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=words) as caught:
        Settings()
    assert "x17" not in str(caught.value)
