"""Reading ahead changes when items are made, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from datapipe.storage.ahead import ahead


def test_reading_ahead_keeps_the_order_and_hands_errors_on() -> None:
    def items() -> Any:
        yield from range(5)
        raise ValueError("broken")

    found = []
    with pytest.raises(ValueError, match="broken"):
        for item in ahead(items(), depth=3):
            found.append(item)  # noqa: PERF402
    assert found == [0, 1, 2, 3, 4]


def test_leaving_early_closes_what_was_read_ahead() -> None:
    closed = []

    def items() -> Any:
        try:
            yield from range(100)
        finally:
            closed.append(True)

    reader = ahead(items())
    assert next(reader) == 0
    reader.close()
    assert closed == [True]
