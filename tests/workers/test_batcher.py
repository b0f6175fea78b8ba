"""What runs next: windows, sealed batches, priorities and their floor, bounds, deadlines; no threads, no devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.strategies import booleans, data, floats, integers, lists, sampled_from

from datapipe.errors import DeadlineError, OverloadedError, WorkerStoppedError
from datapipe.workers.batcher import BatchLimits, DynamicBatcher
from datapipe.workers.calls import Call, Ticket
from datapipe.workers.pack import pack
from datapipe.workers.protocol import Priority
from datapipe.workers.registry import LoadedModel
from datapipe.workers.spec import ModelSpec
from tests.workers.echo import Echo, EchoItem, Ready

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapipe.workers.batcher import Batch

ONLINE, BULK = Priority.ONLINE, Priority.BULK


def model(name: str = "a", *, padded: bool = True) -> LoadedModel:
    task = Echo()
    task.padded = padded
    return LoadedModel(ModelSpec(name, name, task="echo"), "", torch.device("cpu"), torch.float32, task, {})


MODELS = {"a": model("a"), "b": model("b", padded=False)}


def ticket(lengths: Sequence[int], priority: Priority, *, name: str = "a", deadline: float | None = None) -> Ticket:
    call = Call([MODELS[name]], priority=priority, items=len(lengths), deadline=deadline)
    return Ticket(call, [Ready(EchoItem(length)) for length in lengths])


def batcher(**limits: Any) -> DynamicBatcher:
    return DynamicBatcher(BatchLimits(**({"token_budget": 32, "max_items": 4, "window_tokens": 64} | limits)))


def lengths_of(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [entry.lengths[place] for entry, place in batch.entries]


def take(queue: DynamicBatcher, priority: Priority) -> Batch | None:
    return queue.take(priority, timeout=0)


def test_online_items_of_several_callers_make_batches_by_length() -> None:
    queue = batcher()
    for lengths in ([5], [16, 4], [15]):
        queue.submit(ticket(lengths, ONLINE))
    assert [lengths_of(take(queue, ONLINE)) for _ in range(2)] == [[5, 4], [16, 15]]
    assert take(queue, ONLINE) is None


def test_a_bulk_ticket_is_cut_by_pack_and_never_mixed() -> None:
    queue = batcher()
    first, second = ticket([3, 30, 9, 9], BULK), ticket([2, 2], BULK)
    for each in (first, second):
        queue.submit(each)
    expected = [[each.lengths[i] for i in cut] for each in (first, second) for cut in cut_of(each)]
    assert [lengths_of(take(queue, BULK)) for _ in expected] == expected


def cut_of(each: Ticket) -> list[list[int]]:
    return pack(each.lengths, token_budget=32, max_items=4, padded=each.call.padded)


def test_models_do_not_share_batches_and_the_one_that_waits_longest_goes_first() -> None:
    queue = batcher()
    for name, lengths in (("b", [1]), ("a", [2]), ("b", [3])):
        queue.submit(ticket(lengths, ONLINE, name=name))
    assert lengths_of(take(queue, ONLINE)) == [3, 1]
    assert lengths_of(take(queue, ONLINE)) == [2]


def test_nothing_waits_longer_than_the_window_before_its_own() -> None:
    queue = batcher(window_tokens=40)
    queue.submit(ticket([8, 8, 30, 8, 8], ONLINE))
    seen = [lengths_of(take(queue, ONLINE))]
    for _ in range(5):  # short items keep coming, and would always pack better than the long one
        queue.submit(ticket([8, 8], ONLINE))
    seen += [lengths_of(take(queue, ONLINE)) for _ in range(2)]
    assert [30] in seen


def test_a_window_is_spread_over_the_lanes_but_not_into_crumbs() -> None:
    queue = batcher(token_budget=100, max_items=99, window_tokens=100, online_lanes=4, spread_tokens=10)
    queue.submit(ticket([10] * 8, ONLINE))
    assert [len(lengths_of(take(queue, ONLINE))) for _ in range(4)] == [2, 2, 2, 2]
    queue.submit(ticket([2] * 10, ONLINE))
    assert [len(lengths_of(take(queue, ONLINE))) for _ in range(2)] == [5, 5]


def test_bulk_waits_for_online_except_for_its_share() -> None:
    queue = batcher(token_budget=10, max_items=1, window_tokens=10, bulk_share=0.25)
    queue.submit(ticket([10] * 9, ONLINE))
    queue.submit(ticket([10] * 9, BULK))
    order = []
    while queue.waiting:
        batch = take(queue, BULK) or take(queue, ONLINE)
        assert batch is not None
        order.append(batch.priority.name[0])
    assert "".join(order) == "OOOBOOOBOOOBBBBBBB"


def test_without_online_traffic_bulk_runs_freely() -> None:
    queue = batcher()
    queue.submit(ticket([32] * 3, BULK))
    assert [lengths_of(take(queue, BULK)) for _ in range(3)] == [[32]] * 3


def test_a_call_is_refused_when_the_worker_is_full_but_never_by_an_empty_one() -> None:
    queue = batcher(online_items=3, bulk_items=2)
    queue.admit(ONLINE, 99)
    with pytest.raises(OverloadedError, match="holds 99 online items of at most 3, and 1 more do not fit"):
        queue.admit(ONLINE, 1)
    queue.admit(BULK, 2)
    with pytest.raises(OverloadedError, match="holds 2 bulk items of at most 2"):
        queue.admit(BULK, 1)
    queue.release(ONLINE, 99)
    queue.admit(ONLINE, 1)
    assert queue.admitted == 3


def test_once_stopped_whatever_waits_is_failed_and_everything_after_refused() -> None:
    queue = batcher()
    waiting = [ticket([1], ONLINE), ticket([40, 1], BULK), ticket([2], ONLINE, name="b")]
    for each in waiting:
        queue.submit(each)
    queue.stop(lambda: WorkerStoppedError("closed"))
    faults = [each.future.exception() for each in waiting]
    assert [str(fault) for fault in faults] == ["closed"] * 3
    assert len(set(map(id, faults))) == 3
    assert (queue.waiting, queue.take(ONLINE), queue.take(BULK)) == (0, None, None)
    calls: list[Callable[[], Any]] = [lambda: queue.admit(ONLINE, 1), lambda: queue.submit(ticket([1], BULK))]
    for refused in calls:
        with pytest.raises(WorkerStoppedError, match="closed"):
            refused()


class Traffic(RuleBasedStateMachine):
    """Calls come, are cancelled, expire, fail or are answered; each item is answered exactly once."""

    @initialize(share=floats(0.05, 0.5), budget=integers(8, 40), lanes=integers(1, 3))
    def start(self, share: float, budget: int, lanes: int) -> None:
        self.now = 0.0
        self.limits = BatchLimits(
            token_budget=budget,
            max_items=4,
            window_tokens=3 * budget,
            spread_tokens=4,
            online_lanes=lanes,
            online_items=40,
            bulk_share=share,
        )
        self.queue = DynamicBatcher(self.limits, clock=lambda: self.now)
        self.tickets: list[Ticket] = []
        self.numbers: dict[Ticket, int] = {}
        self.waiting: dict[tuple[int, int], Ticket] = {}
        self.taken: set[tuple[int, int]] = set()
        self.running: list[Batch] = []
        self.earned = self.spent = self.since = 0.0
        self.inside = 0

    def live(self, priority: Priority) -> list[tuple[int, int]]:
        return [
            key
            for key, each in self.waiting.items()
            if each.call.priority is priority and not each.call.over and not each.call.expired(self.now)
        ]

    @rule(
        lengths=lists(integers(1, 50), min_size=1, max_size=8),
        priority=sampled_from(Priority),
        name=sampled_from(sorted(MODELS)),
        deadline=sampled_from([None, 1.0, 3.0]),
    )
    def call(self, lengths: list[int], priority: Priority, name: str, deadline: float | None) -> None:
        each = ticket(lengths, priority, name=name)
        each.call.expires = None if deadline is None else self.now + deadline
        try:
            self.queue.admit(priority, len(lengths))
        except OverloadedError:
            assert priority is ONLINE
            assert self.inside + len(lengths) > self.limits.online_items
            return
        self.inside += len(lengths) if priority is ONLINE else 0
        self.queue.submit(each)
        self.tickets.append(each)
        self.numbers[each] = len(self.numbers)
        self.waiting |= {(self.numbers[each], place): each for place in range(len(lengths))}

    @precondition(lambda self: self.tickets)
    @rule(choice=data())
    def cancel(self, choice: Any) -> None:
        each = choice.draw(sampled_from(self.tickets))
        self.queue.drop(each.call)
        self.let_go(each)

    @rule(seconds=sampled_from([0.4, 1.0, 2.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(priority=sampled_from(Priority))
    def lane_is_free(self, priority: Priority) -> None:
        live, backlog = self.live(priority), bool(self.live(ONLINE))
        batch = self.queue.take(priority, timeout=0)
        if batch is None:
            assert not live or (priority is BULK and backlog)
            if live:
                largest = max(each.lengths[place] for (_, place), each in self.waiting.items())
                assert self.since < max(self.limits.token_budget, largest) * (1 + 1e-6)
            return
        keys = [(self.numbers[each], place) for each, place in batch.entries]
        assert set(keys) <= set(live)
        assert not set(keys) & self.taken
        assert len({each.call.key for each, _ in batch.entries}) == 1
        assert batch.cost <= self.limits.token_budget or len(keys) == 1
        assert len(keys) <= self.limits.max_items
        if priority is BULK:
            self.since = 0.0
            assert len({each for each, _ in batch.entries}) == 1
            if backlog:
                self.spent += batch.cost
                assert self.spent <= self.earned + 1e-6
            else:
                self.earned = self.spent = 0.0
        elif self.live(BULK):
            earned = batch.cost * self.limits.bulk_share / (1 - self.limits.bulk_share)
            self.earned, self.since = self.earned + earned, self.since + earned
        self.taken |= set(keys)
        for key in keys:
            del self.waiting[key]
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(fails=booleans(), choice=data())
    def batch_ends(self, fails: bool, choice: Any) -> None:  # noqa: FBT001 - drawn by name
        batch = self.running.pop(choice.draw(integers(0, len(self.running) - 1)))
        for each, positions in batch.tickets():
            places = [batch.entries[position][1] for position in positions]
            if fails:
                each.fail(ValueError("fault"))
            else:
                each.deliver(places, [each.lengths[place] for place in places])
            if each.done:
                self.let_go(each)

    def let_go(self, each: Ticket) -> None:
        if each in self.tickets:
            self.tickets.remove(each)
            self.queue.release(each.call.priority, len(each.lengths))
            self.inside -= len(each.lengths) if each.call.priority is ONLINE else 0
        if not each.done:
            return
        fault = each.future.exception(timeout=0)
        if fault is None:
            assert each.future.result(timeout=0) == each.lengths
        else:
            assert isinstance(fault, ValueError | DeadlineError)

    @invariant()
    def the_queue_counts_no_less_than_what_waits(self) -> None:
        assert self.queue.waiting >= len(self.live(ONLINE)) + len(self.live(BULK))

    def teardown(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.queue.stop(lambda: WorkerStoppedError("over"))
        assert self.queue.waiting == 0
        running = {each for batch in self.running for each, _ in batch.entries}
        for each in self.tickets:
            assert each.done or each in running


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
