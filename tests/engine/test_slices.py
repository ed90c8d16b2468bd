"""Slices: one for all runs of a Trio run, and no look at wall time under another clock than Trio's own."""

import itertools
import math
import random
import time
from contextlib import aclosing
from functools import partial

import pytest
import trio
from trio.testing import MockClock

import trio_fanout as fanout
from helpers import Steps, busy, rest_of
from trio_fanout._core import slices


async def at_once(x):
    return x


class Stopwatch:
    """The most items that ran in one turn of Trio's loop."""

    def __init__(self):
        self.items = self.most = 0

    async def item(self, x):
        self.items += 1
        busy(0.001)

    async def watch(self):
        while True:
            self.most = max(self.most, self.items)
            self.items = 0
            await trio.lowlevel.checkpoint()


async def side_by_side(fn):
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(fanout.do, fn, range(20))


async def nested(fn):
    async def inner(x):
        await fanout.do(fn, range(20))

    await fanout.do(inner, range(20))


async def in_streams(fn):
    async def read():
        async with fanout.stream(fn, range(20)) as results:
            await rest_of(results)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(read)


async def in_groups(fn):
    async def submit():
        async with fanout.open_group() as group:
            for x in range(20):
                group.start_soon(fn, x)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(submit)


async def in_graphs(fn):
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(fanout.run_graph, {x: fanout.Step(lambda x=x: fn(x)) for x in range(20)})


@pytest.mark.parametrize("runs", [side_by_side, nested, in_streams, in_groups, in_graphs])
async def test_all_runs_together_hold_up_other_tasks_for_one_slice(runs):
    """An item takes a millisecond at least, so these bounds hold on a slow machine, too."""
    stopwatch = Stopwatch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stopwatch.watch)
        await trio.lowlevel.checkpoint()
        await runs(stopwatch.item)
        nursery.cancel_scope.cancel()
    assert stopwatch.most <= 22  # a slice and an item, early in one turn and late in the next


async def run_of_workers(limit, fn):
    """All of them are there before any takes a second item."""
    all_there = trio.Event()

    async def item(x):
        if x == limit - 1:
            all_there.set()
        if x < limit:
            await all_there.wait()
        await fn(x)

    await fanout.do(item, itertools.count(), limit=limit)


run_of_one_worker = partial(run_of_workers, 1)
run_of_forty_workers = partial(run_of_workers, 40)
run_of_too_many_workers = partial(run_of_workers, slices.AT_ONCE + 50)  # to stay awake


async def runs_of_one_item(fn):
    while True:
        await fanout.map(fn, [1])


async def stream_that_is_read(fn):
    async with fanout.stream(fn, itertools.count(), limit=1) as results:
        async for _ in results:
            pass


async def reader_of_a_stream(fn):
    async with fanout.stream(at_once, itertools.count(), limit=1, buffer=10**6) as results:
        async for result in results:
            await fn(result)


@pytest.fixture
def trios_order(monkeypatch):
    """Trio's own order of tasks: that in which they were scheduled, or the opposite. Other tests shuffle them."""
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", False)


@pytest.mark.parametrize(
    "runs",
    [
        [run_of_one_worker] * 5,
        [run_of_forty_workers] * 5,
        [runs_of_one_item] * 5,
        [stream_that_is_read] * 5,
        [run_of_one_worker, run_of_forty_workers, run_of_too_many_workers],
        [run_of_one_worker, reader_of_a_stream],
    ],
)
def test_runs_side_by_side_share_the_slices(trios_order, runs):
    done = [0] * len(runs)

    async def main():
        async with trio.open_nursery() as nursery:
            for number, run in enumerate(runs):
                nursery.start_soon(run, partial(count, number))
            while min(done) == 0:  # until all of their workers are there
                await trio.lowlevel.checkpoint()
            done[:] = [0] * len(runs)
            while sum(done) < 20 * slices.AT_ONCE:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

    async def count(number, x):
        done[number] += 1

    trio.run(main, clock=MockClock())
    assert min(done) > max(done) / 2


@pytest.mark.parametrize("limit", [40, 2 * slices.AT_ONCE])
def test_a_small_run_does_not_wait_for_all_workers_of_another(trios_order, limit):
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async def main():
        nonlocal turns
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_of_workers, limit, at_once)
            nursery.start_soon(count_turns)
            while turns < 100:
                await trio.lowlevel.checkpoint()
            for _ in range(10):
                turns = 0
                await fanout.map(at_once, [1])
                assert turns < 10
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock())


async def test_of_thousands_that_wait_for_the_next_slice_few_are_woken_in_each_turn(autojump_clock):
    many = 8 * slices.AT_ONCE
    steps = Steps()

    async def count(x):
        if x == 2 * many:  # all are there, and wait
            trio.lowlevel.add_instrument(steps)
        elif x == 4 * many:
            trio.lowlevel.remove_instrument(steps)
            scope.cancel()

    with trio.CancelScope() as scope:
        await run_of_workers(many, count)
    turns = steps.turns[1:-1]
    assert 2 * many / len(turns) > 0.9 * slices.AT_ONCE
    assert 0.9 * slices.AT_ONCE < min(turns) <= max(turns) < 1.1 * slices.AT_ONCE
    assert slices.current_slice()._awake == 0


async def test_a_task_that_reads_an_async_source_has_slices_of_its_own(autojump_clock):
    steps = Steps()
    last_has_come = trio.Event()

    async def source():
        trio.lowlevel.add_instrument(steps)
        for x in range(10 * slices.AT_ONCE):
            yield x
        trio.lowlevel.remove_instrument(steps)
        last_has_come.set()

    async with aclosing(source()) as items:
        await fanout.do(lambda _: last_has_come.wait(), items, limit=math.inf)
    assert len(steps.turns) < 100  # not one for each item


async def test_tasks_that_wait_for_the_next_slice_are_woken_even_if_others_are_cancelled(autojump_clock):
    """More of them wait than stay awake, and they belong to two runs, of which one is cancelled."""
    many = 3 * slices.AT_ONCE
    started = trio.Event()
    done = []

    async def item(x):
        started.set()
        done.append(x)

    async def cancelled():
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel, scope)
            await fanout.do(item, range(10 * many), limit=many)

    async def cancel(scope):
        await started.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        await fanout.do(item, range(many), limit=many)
    assert len(done) >= many


def forbid(*_):
    raise AssertionError("wall time was read")


def run_virtually(main, seed=0, **options):
    """Run `main` on a virtual clock, with the order of tasks that `seed` gives."""
    from trio._core import _run  # noqa: PLC0415

    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r
    _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r = True, random.Random(seed)
    try:
        return trio.run(main, clock=MockClock(**({"autojump_threshold": 0} | options)))
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r = before


def test_under_a_virtual_clock_wall_time_is_not_read(monkeypatch):
    monkeypatch.setattr(slices, "perf_counter", forbid)

    async def main():
        await fanout.map(at_once, range(1000))
        async with fanout.stream(at_once, range(1000)) as results:
            return len(await rest_of(results))

    assert run_virtually(main) == 1000


async def test_on_trios_own_clock_slices_take_real_time(monkeypatch):
    monkeypatch.setattr(slices, "perf_counter", lambda: 42)
    slice_ = slices.Slice(trio.lowlevel.current_clock())
    assert slice_.end == 42 + slices.SLICE


@pytest.mark.parametrize("call", ["map", "stream", "group", "graph"])
def test_the_same_seed_gives_the_same_schedule_however_slow_the_machine_is(call):
    def schedule(delay):
        seen = []

        async def item(x):
            seen.append((x, trio.current_time()))
            if x % 7 == 0:
                time.sleep(delay)  # noqa: ASYNC251  # a slow machine
            if x % 3 == 0:
                await trio.sleep(x / 10)

        async def outsider():
            while True:
                seen.append(("outsider", trio.current_time()))
                await trio.sleep(0.3)

        async def main():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outsider)
                with trio.move_on_after(3):
                    if call == "map":
                        await fanout.map(item, range(50), limit=3)
                    elif call == "stream":
                        async with fanout.stream(item, range(50), limit=3, ordered=False) as results:
                            async for index, _, _ in results:
                                seen.append(("read", index))
                                if index == 20:
                                    results.stop()
                    elif call == "group":
                        async with fanout.open_group(limit=3) as group:
                            for x in range(50):
                                group.start_soon(item, x)
                    else:
                        await fanout.run_graph({x: fanout.Step(lambda x=x: item(x)) for x in range(50)}, limit=3)
                nursery.cancel_scope.cancel()

        run_virtually(main, seed=1)
        return seen

    assert schedule(0) == schedule(0.01)


async def sleep_in_map():
    await fanout.map(trio.sleep, [1])


async def sleep_in_stream():
    async with fanout.stream(trio.sleep, [1]) as results:
        async for _ in results:
            pass


async def sleep_in_group():
    async with fanout.open_group() as group:
        group.start_soon(trio.sleep, 1)


@pytest.mark.parametrize("sleep", [partial(trio.sleep, 1), sleep_in_map, sleep_in_stream, sleep_in_group])
def test_a_cancellation_is_noticed_between_items_that_shield_themselves(sleep):
    """Even if each begins a slice in which the next one starts."""
    started = []

    async def shielded(x):
        started.append(x)
        with trio.CancelScope(shield=True):
            await sleep()

    async def main():
        with trio.move_on_after(2.5):
            await fanout.do(shielded, range(10), limit=1)

    run_virtually(main)
    assert started == [0, 1, 2]


@pytest.mark.parametrize("options", [{}, {"autojump_threshold": float("inf")}])
def test_functions_that_never_wait_let_other_tasks_run_on_a_clock_that_stands_still(options):
    turns = []

    async def ticker():
        while True:
            turns.append(trio.current_time())
            await trio.lowlevel.checkpoint()

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticker)
            await fanout.do(at_once, range(20 * slices.AT_ONCE), limit=2)
            nursery.cancel_scope.cancel()

    run_virtually(main, **options)
    assert len(turns) >= 20
    assert set(turns) == {0}


def test_a_clock_that_has_jumped_far_does_not_swallow_the_looks():
    turns = []

    async def main():
        trio.lowlevel.current_clock().jump(1e18)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ticker)
            await fanout.do(at_once, range(20 * slices.AT_ONCE), limit=2)
            nursery.cancel_scope.cancel()

    async def ticker():
        while True:
            turns.append(1)
            await trio.lowlevel.checkpoint()

    run_virtually(main, autojump_threshold=float("inf"))
    assert len(turns) >= 20
