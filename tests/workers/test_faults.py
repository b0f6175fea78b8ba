"""An error that has crossed a process is the error that it was."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from datapipe import errors
from datapipe.errors import (
    DatapipeError,
    ItemError,
    MissingExtraError,
    ModelNotFoundError,
    OverloadedError,
    WorkerError,
)
from datapipe.workers.faults import RemoteTracebackError, from_plain, shifted, to_plain


def crossed(error: Exception) -> DatapipeError:
    try:
        raise error
    except type(error) as raised:
        return from_plain(json.loads(json.dumps(to_plain(raised))))


def test_an_item_error_keeps_its_message_its_index_its_notes_and_its_traceback() -> None:
    error = ItemError("item 3 has no tokens", index=3)
    error.add_note("in stage embed")
    found = crossed(error)
    assert type(found) is ItemError
    assert (str(found), found.index, found.__notes__) == ("item 3 has no tokens", 3, ["in stage embed"])
    assert isinstance(found.__cause__, RemoteTracebackError)
    assert "in crossed" in str(found.__cause__)


def made(name: str) -> DatapipeError:
    fields: dict[str, dict[str, Any]] = {"ItemError": {"index": 2}, "OverloadedError": {"retry_after": 2.5}}
    kind: type[DatapipeError] = getattr(errors, name)
    return kind("what was wrong", **fields.get(name, {}))


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_crosses(name: str) -> None:
    error = made(name)
    found = crossed(error)
    assert type(found) is type(error)
    assert str(found) == "what was wrong"
    assert {key: value for key, value in vars(found).items() if key != "__notes__"} == vars(error)


def test_errors_with_makers_of_their_own_cross_too() -> None:
    found = crossed(MissingExtraError.of("ray", extra="ray", purpose="running on Ray"))
    assert str(found) == "running on Ray needs ray, which is not installed: pip install 'secateur[ray]'"
    assert crossed(OverloadedError("full", retry_after=7.5)).retry_after == 7.5  # type: ignore[attr-defined]
    assert isinstance(crossed(ModelNotFoundError("no such model")), FileNotFoundError)


def test_what_is_no_error_of_ours_becomes_a_worker_error_that_names_it() -> None:
    found = crossed(KeyError("weights"))
    assert type(found) is WorkerError
    assert str(found) == "KeyError: 'weights'"


class OwnError(DatapipeError):
    """An error of another package; it takes more than a message."""

    def __init__(self, message: str, *, place: str = "") -> None:
        super().__init__(message)
        self.place = place
        self.later = [1]


def test_errors_of_other_packages_keep_their_class_where_it_can_be_imported() -> None:
    found = crossed(OwnError("here", place="there"))
    assert type(found) is OwnError
    assert found.place == "there"


@pytest.mark.parametrize("kind", ["nowhere:Lost", "datapipe.errors:Lost", "builtins:KeyError", "os:getcwd"])
def test_a_class_that_is_not_here_or_no_error_of_ours_becomes_a_worker_error(kind: str) -> None:
    described = to_plain(ItemError("item 1", index=1)) | {"kind": kind}
    assert type(from_plain(described)) is WorkerError


def test_a_part_of_a_request_is_told_its_place_in_the_whole() -> None:
    moved = shifted(ItemError("item 3 must be text. Got item 3", index=3), 2048)
    assert moved.index == 2051
    assert str(moved) == "item 2051 must be text. Got item 3"


def test_the_workers_on_ray_are_imported_without_ray() -> None:
    code = (
        "import sys\nsys.modules['ray'] = sys.modules['polars'] = None\n"
        "import datapipe.workers.ray, datapipe.workers.faults\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
