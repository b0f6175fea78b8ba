"""The shard that processes die of is found and named, the others are made, and it comes to an end whatever dies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapipe.errors import StageError
from datapipe.executors.blame import BARREN, DEATHS, Left
from datapipe.pipeline import ShardTask

if TYPE_CHECKING:
    from collections.abc import Sequence


def tasks(count: int) -> list[ShardTask]:
    return [ShardTask(inputs=(Path("in"),), output=f"{i:02d}.parquet", rows=i) for i in range(count)]


class Pool:
    """Processes that make shards; whoever takes one of `deadly` dies, and the pool with it.

    Attributes:
        made: Shards, in the order in which they were made.
        deaths: Shards that a process died of.
    """

    def __init__(self, left: Left, deadly: dict[str, int]) -> None:
        self.left, self.deadly = left, dict(deadly)
        self.made: list[str] = []
        self.deaths: list[str] = []

    def __call__(self, tasks: Sequence[ShardTask], *, places: int) -> Exception | None:
        for start in range(0, len(tasks), places):
            side_by_side = tasks[start : start + places]
            for task in side_by_side:
                if self.deadly.get(task.output, 0):
                    self.deadly[task.output] -= 1
                    self.deaths.append(task.output)
                    return RuntimeError("killed")  # nothing that ran beside it is made
            for task in side_by_side:
                assert self.left.made(task.output) == task.rows
                self.made.append(task.output)
        return None


def test_a_shard_that_one_process_died_of_is_made_by_the_next() -> None:
    left = Left("embed", tasks(6))
    pool = Pool(left, {"03.parquet": 1})
    left.make_all(pool, places=2)
    assert sorted(pool.made) == [task.output for task in tasks(6)]
    assert left.outputs == []


@pytest.mark.parametrize("places", [1, 2, 4, 16])
def test_a_shard_that_every_process_dies_of_is_named_when_all_others_are_made(places: int) -> None:
    left = Left("embed", tasks(9))
    pool = Pool(left, {"04.parquet": 1000})
    with pytest.raises(StageError, match=r"stage embed: 3 processes died of shard 04\.parquet, 1 shards are left"):
        left.make_all(pool, places=places)
    assert sorted(pool.made) == [task.output for task in tasks(9) if task.output != "04.parquet"]
    assert len(pool.deaths) <= 2 * DEATHS


def test_where_every_shard_is_deadly_it_ends_after_a_few() -> None:
    left = Left("embed", tasks(50))
    pool = Pool(left, {task.output: 1000 for task in tasks(50)})
    with pytest.raises(StageError, match=f"{BARREN} processes died one after the other") as caught:
        left.make_all(pool, places=4)
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(pool.deaths) <= 2 * BARREN


def test_shards_that_never_come_back_are_an_error_and_no_endless_loop() -> None:
    with pytest.raises(StageError, match="stage embed: 4 shards were given away and none came back"):
        Left("embed", tasks(4)).make_all(lambda *_, **__: None, places=2)


@given(
    count=st.integers(0, 12),
    places=st.integers(1, 5),
    deadly=st.dictionaries(st.integers(0, 11).map("{:02d}.parquet".format), st.integers(1, 9)),
)
def test_it_always_ends_with_each_shard_made_at_most_once(count: int, places: int, deadly: dict[str, int]) -> None:
    left = Left("embed", tasks(count))
    pool = Pool(left, deadly)
    try:
        left.make_all(pool, places=places)
    except StageError:
        assert left.outputs
    else:
        assert left.outputs == []
    assert len(set(pool.made)) == len(pool.made)
    assert {*pool.made, *left.outputs} == {task.output for task in tasks(count)}
