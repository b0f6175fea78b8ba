"""The engine gives, out of core and in any cut, what plain loops over lists give."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis.strategies import SearchStrategy, builds, floats, integers, just, one_of, sampled_from

from datapipe.errors import BudgetError, SelectionError
from datapipe.selection.budget import Budget
from datapipe.selection.engine import select
from datapipe.selection.plan import Plan
from datapipe.storage.rowid import ids_from_arrow
from tests.selection.plain_selection import Row, Table, choose_rows, make_table

if TYPE_CHECKING:
    import pyarrow as pa

    from datapipe.selection.result import Selection
    from datapipe.storage.arrays import Float64

GROUPS = ["a", "b", "c"]
SLUGS = ["excluded-0", "excluded-1"]


def run(
    table: Table,
    plan: Plan,
    budget: Budget,
    *,
    seed: int = 0,
    given: Float64 | None = None,
    placed: bool = False,
    memory_bytes: int = 1 << 20,
) -> tuple[Selection, list[pa.Table]]:
    with tempfile.TemporaryDirectory() as scratch:
        options: dict[str, Any] = {
            "groups": GROUPS,
            "exclusions": SLUGS,
            "weights": given,
            "placed": placed,
            "memory_bytes": memory_bytes,
        }
        with select(table.batches, plan, budget, seed=seed, scratch=Path(scratch), **options) as selection:
            tables = list(selection)
        assert not list(Path(scratch).iterdir())
    return selection, tables


def rows_of(selection: Selection, tables: list[pa.Table]) -> list[Row]:
    numbers = {stratum.name: at for at, stratum in enumerate(selection.strata)} | {"": -1}
    return [
        (row["kept"], row["reason"], numbers[row["stratum"]], row["rank"])
        for table in tables
        for row in table.drop_columns("row_id").to_pylist()
    ]


def kept_of(table: Table, plan: Plan, budget: Budget, *, seed: int = 0) -> set[int]:
    selection, tables = run(table, plan, budget, seed=seed)
    return {at for at, row in enumerate(rows_of(selection, tables)) if row[0]}


def _plans() -> SearchStrategy[Plan]:
    """Plans with every field drawn at random."""
    order = sampled_from(["hard", "easy", "random", "weighted"])
    trims = sampled_from([0.0, 0.1, 0.25, 0.4])

    def plan(order: str, mix: float, beta: tuple[float, float] | None, **settings: Any) -> Plan:
        most = 1 - settings.get("floor_ratio", 0.5) if settings.get("quota") == "fill" else 1.0
        return Plan(
            order=order,  # type: ignore[arg-type]
            mix_random=0.0 if order == "random" else min(mix, most),
            beta=beta if order == "weighted" else None,
            **settings,
        )

    common: dict[str, Any] = {
        "order": order,
        "mix": sampled_from([0.0, 0.0, 0.2, 1.0]),
        "beta": sampled_from([None, (1.0, 1.0), (15.0, 0.4), (0.5, 0.0)]),
        "trim_hard": trims,
        "trim_easy": trims,
    }
    scored = {"strata": sampled_from(["score_width", "score_count"]), "bins": integers(2, 6)}
    even = sampled_from(["proportional", "equal", "given"])
    ratio = sampled_from([0.0, 0.3, 0.5, 1.0])
    return one_of(
        builds(plan, **common),
        builds(plan, **common, **scored, quota=even),
        builds(plan, **common, strata=just("group"), quota=even),
        builds(plan, **common, **scored, quota=just("fill"), floor_ratio=ratio),
        builds(plan, **common, strata=just("group"), quota=just("fill"), floor_ratio=ratio),
    )


BUDGETS = one_of(
    builds(Budget, fraction=floats(0.01, 1)),
    builds(Budget, rows=integers(1, 30)),
    builds(Budget, tokens=integers(1, 400)),
)


@settings(max_examples=150)
@given(
    plan=_plans(),
    budget=BUDGETS,
    rows=integers(0, 60),
    values=sampled_from([1, 4, 1000]),
    seed=integers(0, 1000),
    placed=sampled_from([False, True]),
)
def test_every_plan_gives_what_plain_loops_give(
    plan: Plan, budget: Budget, rows: int, values: int, seed: int, *, placed: bool
) -> None:
    table = make_table(rows, seed=seed, values=values)
    pool = int((table.excluded < 0).sum())
    strata = {"none": 1, "group": 3}.get(plan.strata, plan.bins)
    given = np.random.default_rng(seed).integers(0, 4, strata).astype(np.float64) if plan.quota == "given" else None
    left = pool - int(plan.trim_hard * pool) - int(plan.trim_easy * pool)
    if budget.tokens is None and (budget.rows or 0) <= pool and budget.rows_of(pool) > left:
        with pytest.raises(BudgetError, match=f"leaves only {left}"):
            run(table, plan, budget, given=given, placed=placed)
        return
    assume((budget.rows or 0) <= pool)
    selection, tables = run(table, plan, budget, seed=seed, given=given, placed=placed)
    expected = choose_rows(table, plan, budget, seed=seed, strata=strata, given=given, placed=placed)
    assert rows_of(selection, tables) == expected
    assert selection.kept == sum(row[0] for row in expected)
    assert selection.reasons == {
        reason: [row[1] for row in expected].count(reason) for reason in {r[1] for r in expected}
    }
    for number, stratum in enumerate(selection.strata):
        members = [at for at, row in enumerate(expected) if row[2] == number and row[3] >= 0]
        assert stratum.rows == len(members)
        assert stratum.kept == sum(expected[at][0] for at in members)
        if budget.tokens is not None:
            assert stratum.tokens == sum(int(table.tokens[at]) for at in members)
            assert stratum.kept_tokens == sum(int(table.tokens[at]) for at in members if expected[at][0])
    if budget.tokens is None:
        assert selection.kept == budget.rows_of(pool)
        assert selection.kept_tokens is None
    else:
        assert selection.kept_tokens is not None
        assert selection.kept_tokens <= budget.tokens


def test_the_output_has_its_columns_in_the_order_of_row_ids_one_table_a_batch() -> None:
    table = make_table(50, seed=1)
    selection, tables = run(table, Plan(order="hard"), Budget(fraction=0.3))
    assert tables[0].schema.names == ["row_id", "kept", "reason", "stratum", "rank"]
    assert [str(kind) for kind in tables[0].schema.types] == [
        "fixed_size_binary[16]",
        "bool",
        "string",
        "string",
        "int64",
    ]
    assert [len(part) for part in tables] == [len(batch.ids) for batch in table.batches()]
    assert np.array_equal(np.concatenate([ids_from_arrow(part["row_id"]) for part in tables]), table.ids)
    assert selection.rows == 50
    assert selection.pool == int((table.excluded < 0).sum())


@given(plan=_plans(), rows=integers(1, 60), seed=integers(0, 100))
def test_the_choice_does_not_depend_on_how_the_rows_were_batched(plan: Plan, rows: int, seed: int) -> None:
    assume(plan.quota != "given")
    table = make_table(rows, seed=seed)
    budget = Budget(tokens=100)
    once = rows_of(*run(table, plan, budget))
    table.cuts = list(range(0, rows, 7))
    assert rows_of(*run(table, plan, budget)) == once


def test_rows_that_do_not_fit_in_memory_are_chosen_as_if_they_did() -> None:
    table = make_table(30_000, seed=3, values=50)
    for plan in (
        Plan(order="hard", strata="group", quota="fill", mix_random=0.1, trim_hard=0.1),
        Plan(order="random", strata="score_width", quota="equal", trim_hard=0.2),
    ):
        small = run(table, plan, Budget(fraction=0.4), memory_bytes=1 << 16)
        large = run(table, plan, Budget(fraction=0.4), memory_bytes=1 << 30)
        assert all(a.equals(b) for a, b in zip(small[1], large[1], strict=True))
        assert small[0].strata == large[0].strata


@given(
    order=sampled_from(["hard", "easy", "random", "weighted"]),
    trim=sampled_from([0.0, 0.1]),
    mix=sampled_from([0.0, 0.3]),
    few=integers(1, 40),
    many=integers(1, 40),
    seed=integers(0, 50),
)
def test_without_strata_a_smaller_budget_lies_within_a_larger_one(
    order: Any, trim: float, mix: float, few: int, many: int, seed: int
) -> None:
    assume(few <= many)
    plan = Plan(order=order, trim_hard=trim, mix_random=0.0 if order == "random" else mix)
    table = make_table(60, seed=seed)
    assert kept_of(table, plan, Budget(rows=few)) <= kept_of(table, plan, Budget(rows=many))


@given(few=floats(0.05, 1), many=floats(0.05, 1), seed=integers(0, 30))
def test_with_strata_smaller_budgets_nest_where_their_quotas_do(few: float, many: float, seed: int) -> None:
    table = make_table(60, seed=seed)
    plan = Plan(order="random", strata="group")
    (small, small_tables), (large, large_tables) = (run(table, plan, Budget(fraction=f)) for f in (few, many))
    assume(all(a.kept <= b.kept for a, b in zip(small.strata, large.strata, strict=True)))
    kept = [
        {at for at, row in enumerate(rows_of(*r)) if row[0]} for r in ((small, small_tables), (large, large_tables))
    ]
    assert kept[0] <= kept[1]


def test_another_seed_is_another_random_choice() -> None:
    table = make_table(60, seed=0)
    plan = Plan(order="random")
    assert kept_of(table, plan, Budget(rows=20), seed=1) != kept_of(table, plan, Budget(rows=20), seed=2)


def test_the_cut_of_a_stratum_is_the_score_of_the_last_row_kept() -> None:
    table = make_table(60, seed=4, values=1000, excluded=0.0)
    selection, _ = run(table, Plan(order="hard", strata="group"), Budget(fraction=0.5))
    for number, stratum in enumerate(selection.strata):
        scores = np.sort(table.scores[table.groups == number])[::-1]
        assert stratum.cut == pytest.approx(scores[stratum.kept - 1])
    selection, _ = run(table, Plan(order="random"), Budget(fraction=0.5))
    assert selection.strata[0].cut is None


def test_one_row_of_one_group_is_kept_by_its_floor() -> None:
    table = make_table(40, seed=5, values=1000, excluded=0.0)
    table.groups[:] = 0
    table.groups[int(np.argmin(table.scores))] = 2
    plan = Plan(order="hard", strata="group", quota="fill")
    selection, _ = run(table, plan, Budget(rows=10))
    assert [stratum.kept for stratum in selection.strata] == [9, 0, 1]


def test_score_strata_are_named_by_their_place_and_their_interval() -> None:
    table = make_table(40, seed=6, values=5, excluded=0.0)
    plan = Plan(order="random", strata="score_width", bins=4, quota="equal")
    selection, _ = run(table, plan, Budget(rows=10))
    assert [stratum.name for stratum in selection.strata][::3] == ["1/4 0 to 0.2", "4/4 0.6 to 0.8"]


def test_a_selection_that_is_not_read_still_leaves_no_files(tmp_path: Path) -> None:
    table = make_table(20, seed=0)
    with select(
        table.batches, Plan(order="hard"), Budget(rows=3), seed=0, scratch=tmp_path, exclusions=SLUGS, memory_bytes=64
    ):
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def _faulty(**columns: Any) -> Table:
    table = make_table(9, seed=0, excluded=0.0)
    table.cuts = [4]
    for name, change in columns.items():
        column = getattr(table, name).copy()
        column[5] = change
        setattr(table, name, column)
    return table


@pytest.mark.parametrize(
    ("columns", "plan", "budget", "message"),
    [
        ({"scores": np.nan}, Plan(order="hard"), Budget(rows=1), "has a score that is not finite"),
        ({"scores": np.inf}, Plan(order="hard"), Budget(rows=1), "has a score that is not finite"),
        (
            {"scores": -1},
            Plan(order="weighted"),
            Budget(rows=1),
            "has a negative score, which cannot be a sampling weight",
        ),
        ({"groups": 3}, Plan(order="hard", strata="group"), Budget(rows=1), "names no group"),
        ({"excluded": 2}, Plan(order="hard"), Budget(rows=1), "names no exclusion"),
        ({"tokens": -1}, Plan(order="hard"), Budget(tokens=1), "has a negative number of tokens"),
        ({"ids": 0}, Plan(order="hard"), Budget(rows=1), "does not come after the row before it"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(columns: dict[str, Any], plan: Plan, budget: Budget, message: str) -> None:
    table = _faulty(**columns)
    name = table.ids[5].astype(">u8").tobytes().hex()
    with pytest.raises(SelectionError, match=f"Row {name} {message}"):
        run(table, plan, budget)


@pytest.mark.parametrize(
    ("options", "plan", "message"),
    [
        ({"groups": ()}, Plan(order="hard", strata="group"), "no group is named"),
        ({"groups": ["a", "b", "a"]}, Plan(order="hard"), "Two groups have the same name: 'a'"),
        ({"exclusions": ["x", "x"]}, Plan(order="hard"), "Two exclusions have the same name: 'x'"),
        ({"exclusions": ["kept"]}, Plan(order="hard"), "'kept' is a reason of the selection itself"),
        ({"weights": np.ones(1)}, Plan(order="hard"), "come with quota 'given', and only with it"),
        ({}, Plan(order="hard", strata="group", quota="given"), "come with quota 'given', and only with it"),
        ({"weights": np.ones(2)}, Plan(order="hard", strata="group", quota="given"), "2 weights for 3 strata"),
    ],
)
def test_names_and_weights_that_do_not_fit_the_plan_are_refused(
    options: dict[str, Any], plan: Plan, message: str, tmp_path: Path
) -> None:
    table = make_table(5, seed=0)
    with pytest.raises(SelectionError, match=message):
        select(table.batches, plan, Budget(rows=1), seed=0, scratch=tmp_path, **{"groups": GROUPS, **options})


def test_batches_that_lack_what_the_plan_needs_are_refused(tmp_path: Path) -> None:
    table = make_table(5, seed=0, excluded=0.0)
    for plan, budget, missing, message in (
        (Plan(order="hard", strata="group"), Budget(rows=1), "groups", "strata are groups, but a batch has none"),
        (Plan(order="hard"), Budget(tokens=1), "tokens", "counts tokens, but a batch has none"),
    ):
        bare = list(table.batches())
        for batch in bare:
            object.__setattr__(batch, missing, None)
        with pytest.raises(SelectionError, match=message):
            select(bare.__iter__, plan, budget, seed=0, scratch=tmp_path, groups=GROUPS, exclusions=SLUGS)
    assert not list(tmp_path.iterdir())


def test_a_second_pass_that_differs_from_the_first_is_noticed(tmp_path: Path) -> None:
    table = make_table(9, seed=0)
    passes = iter([table.batches(), iter(list(table.batches())[:-1])])
    with (
        select(
            lambda: next(passes), Plan(order="hard"), Budget(rows=1), seed=0, scratch=tmp_path, exclusions=SLUGS
        ) as rows,
        pytest.raises(SelectionError, match="second pass over the batches yielded other rows"),
    ):
        list(rows)


def test_a_budget_of_more_rows_than_the_pool_says_how_many_there_are() -> None:
    table = make_table(5, seed=0, excluded=0.0)
    with pytest.raises(BudgetError, match="budget is 6 rows, but there are only 5 to choose from"):
        run(table, Plan(order="hard"), Budget(rows=6))
