"""Limits as such; what they do to files is tested beside the formats."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datapipe.errors import LimitError, SourceError
from datapipe.storage.limits import DecodedMeter, Limits, check_footer

if TYPE_CHECKING:
    from pathlib import Path


def test_the_meter_lets_pass_what_is_in_proportion_or_below_the_floor() -> None:
    meter = DecodedMeter("a.parquet", 1000, Limits(max_expansion=10, decoded_floor=500))
    meter.add(9_999)
    meter.add(1)
    assert meter.decoded == meter.allowed == 10_000
    with pytest.raises(LimitError) as found:
        meter.add(1)
    assert str(found.value) == (
        "a.parquet: its 1,000 bytes decode to more than 10,000 bytes, beyond max_expansion=10 and decoded_floor=500; "
        "if you trust the file, raise it: Limits(max_expansion=…) or DATAPIPE_LIMITS__MAX_EXPANSION=…"
    )
    small = DecodedMeter("a.parquet", 10, Limits(max_expansion=10, decoded_floor=500))
    small.add(500)
    with pytest.raises(LimitError, match="decode to more than 500 bytes"):
        small.add(1)


def test_limits_cannot_be_changed_and_say_what_each_does() -> None:
    with pytest.raises(FrozenInstanceError):
        Limits().max_rows = 1  # type: ignore[misc]
    assert all(f"{field.name}: " in (Limits.__doc__ or "") for field in fields(Limits))


def test_only_limits_that_the_environment_can_raise_name_a_variable(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "a.parquet")
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    with pytest.raises(LimitError) as found:
        check_footer(metadata, uri="a.parquet", limits=Limits(max_columns=1))
    assert str(found.value) == (
        "a.parquet: 2 columns, more than max_columns=1; if you trust the file, raise it: "
        "Limits(max_columns=…) or DATAPIPE_LIMITS__MAX_COLUMNS=…"
    )
    with pytest.raises(LimitError, match=r"raise it: Limits\(max_row_group_rows=…\)$"):
        check_footer(metadata, uri="a.parquet", limits=Limits(max_row_group_rows=0))


def test_a_footer_is_held_against_the_size_of_its_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [0] * 100_000}), tmp_path / "a.parquet", compression="zstd")
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    limits = Limits(decoded_floor=0)
    check_footer(metadata, uri="a.parquet", limits=limits, file_bytes=8_000)
    for file_bytes in (7_999, None):
        with pytest.raises(LimitError, match=r"a\.parquet: its [\d,]+ bytes decode to more than"):
            check_footer(metadata, uri="a.parquet", limits=limits, file_bytes=file_bytes)


def test_a_footer_that_contradicts_itself_is_damage(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2, 3]}), tmp_path / "a.parquet")
    metadata = pq.read_metadata(tmp_path / "a.parquet")

    class Lying:
        num_rows = 5

        def __getattr__(self, name: str) -> object:
            return getattr(metadata, name)

    with pytest.raises(SourceError, match=r"a\.parquet is damaged: its row groups do not add up to its 5 rows"):
        check_footer(Lying(), uri="a.parquet", limits=Limits())
