"""Logs: entries, and the traces that continue them."""

from __future__ import annotations

import pytest

from provence.units.detect import detect
from tests.provence.units.readings import read

LOG = """\
2024-01-01 10:00:00,123 INFO started
2024-01-01 10:00:01,007 ERROR failed
Traceback (most recent call last):
  File "x.py", line 1, in f
ValueError: bad
2024-01-01 10:00:02,000 INFO done
"""
TRACE = """\
Exception in thread "main" a.B: no
    at a.C.d(C.java:1)
Caused by: a.E
    at a.F.g(F.java:2)
Next
"""


def test_lines_without_a_time_continue_the_entry_before_them() -> None:
    failed = "2024-01-01 10:00:01,007 ERROR failed"
    assert read(LOG, "auto") == [
        ("line", "2024-01-01 10:00:00,123 INFO started", None),
        ("line", failed, None),
        ("line", "Traceback (most recent call last):", failed),
        ("line", 'File "x.py", line 1, in f', failed),
        ("line", "ValueError: bad", failed),
        ("line", "2024-01-01 10:00:02,000 INFO done", None),
    ]


def test_without_times_a_trace_stands_under_its_first_line() -> None:
    first = 'Exception in thread "main" a.B: no'
    assert [parent for _, _, parent in read(TRACE, "log")] == [None, first, first, first, None]


@pytest.mark.parametrize(
    "entry",
    [
        "Jan 31 10:00:00 host sshd[1]: x",
        "[2024-01-31T10:00:00Z] x",
        "31/Jan/2024:10:00:00 x",
        "WARN: x",
        "[error] x",
        "I0131 10:00:00.000 1 x.cc:1] x",
        '10.0.0.1 - - [31/Jan/2024:10:00:00 +0000] "GET /"',
        "10:00:00 x",
    ],
)
def test_many_kinds_of_entries_are_known(entry: str) -> None:
    assert detect(f"{entry}\n{entry}\n{entry}") == "log"
