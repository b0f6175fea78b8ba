"""What all tests share: the shipped data, and an environment without a network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")

DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of the shipped data sets."""
    return DATA
