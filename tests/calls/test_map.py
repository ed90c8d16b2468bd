"""What `map`, `do` and `fan_out` do when all goes well."""

import functools
import itertools
import math
import threading

import pytest
import trio
import trio.lowlevel
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    ALL_POLICIES,
    FUNCTIONS,
    Gauge,
    Sized,
    Things,
    aiter_of,
    all_tasks,
    double,
    double_at_once,
    limit_of,
    nothing_left,
    task_names,
    workers,
)

LIMITS = [1, 2, 3, 40, math.inf]


@pytest.mark.parametrize("limit", LIMITS)
@FUNCTIONS
@pytest.mark.parametrize("make", [list, tuple, iter, aiter_of, dict.fromkeys], ids=lambda make: make.__name__)
async def test_map_gives_results_in_the_order_of_the_items(limit, fn, make):
    assert await fanout.map(fn, make(range(10)), limit=limit) == [2 * x for x in range(10)]


@pytest.mark.parametrize("limit", LIMITS)
async def test_map_result_belongs_to_its_item_in_any_finishing_order(limit, autojump_clock):
    finished = []

    async def reverse(x):
        await trio.sleep(10 - x)
        finished.append(x)
        return f"result {x}"

    assert await fanout.map(reverse, range(10), limit=limit) == [f"result {x}" for x in range(10)]
    if limit >= 10:
        assert finished == list(range(9, -1, -1))


async def test_map_takes_the_limit_as_bound_and_reaches_it(autojump_clock):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(1)

    await fanout.map(fn, range(10), limit=3)
    assert gauge.peak == 3
    assert gauge.began == list(range(10))
    assert trio.current_time() == 4  # ceil(10 / 3) rounds of a second


@pytest.mark.parametrize("make", [list, aiter_of])
async def test_the_default_limit_is_forty(make, autojump_clock):
    assert fanout.DEFAULT_LIMIT == 40
    for call in (fanout.map, fanout.do):
        gauge = Gauge()

        async def fn(x, gauge=gauge):
            with gauge.running(x):
                await trio.sleep(1)

        await call(fn, make(range(100)))
        assert gauge.peak == 40


async def test_an_infinite_limit_runs_everything_at_once(make, autojump_clock):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep(1)

    await fanout.map(fn, make(range(300)), limit=math.inf)
    assert gauge.peak == 300
    assert gauge.began == list(range(300))


async def test_do_keeps_nothing_and_returns_none():
    seen = []

    async def fn(x):
        seen.append(x)
        return x

    assert await fanout.do(fn, range(5)) is None
    assert seen == list(range(5))


async def test_fan_out_calls_each_function_with_the_same_value():
    value = object()

    async def first(x):
        return "first", x

    async def second(x):
        await trio.lowlevel.checkpoint()
        return "second", x

    assert await fanout.fan_out([second, first], value) == [("second", value), ("first", value)]
    assert await fanout.fan_out(iter((first,)), value, limit=1) == [("first", value)]
    assert await fanout.fan_out((fn for fn in (first, second)), value) == [("first", value), ("second", value)]


async def test_fan_out_is_bound_by_its_limit(autojump_clock):
    gauge = Gauge()

    async def fn(x):
        with gauge.running():
            await trio.sleep(1)
            return x

    assert await fanout.fan_out([fn] * 5, 7, limit=2) == [7] * 5
    assert gauge.peak == 2
    assert trio.current_time() == 3


@pytest.mark.parametrize("value", [None, [], iter(()), object()], ids=type)
async def test_fan_out_hands_over_any_value_as_it_is(value):
    async def fn(x):
        return x

    (result,) = await fanout.fan_out([fn], value)
    assert result is value


# What counts as an async callable


class Callable:
    async def __call__(self, x):
        return x + 1

    async def method(self, x):
        return x + 2


class OwnAwaitable:
    def __init__(self, x):
        self.x = x

    def __await__(self):
        yield from trio.lowlevel.checkpoint().__await__()  # noqa: ASYNC105
        return self.x + 3


def sync_returning_coroutine(x):
    return Callable()(x)


CALLABLES = {
    "async function": double,
    "object": Callable(),
    "method": Callable().method,
    "class of awaitables": OwnAwaitable,
    "function that returns a coroutine": sync_returning_coroutine,
    "function that returns an awaitable": lambda x: OwnAwaitable(2 * x),
    "partial": functools.partial(double),
    "partial of a partial": functools.partial(functools.partial(lambda base, x: OwnAwaitable(base * x), 2)),
}


@pytest.mark.parametrize("item_timeout", [None, 5])
@pytest.mark.parametrize("fn", CALLABLES.values(), ids=CALLABLES)
async def test_any_callable_that_returns_an_awaitable_is_accepted(fn, item_timeout):
    expected = [await fn(x) for x in range(3)]
    assert await fanout.map(fn, range(3), item_timeout=item_timeout) == expected
    assert await fanout.fan_out([fn, fn], 2, item_timeout=item_timeout) == [expected[2]] * 2


# Item time-outs


async def test_item_timeout_fails_an_item_that_takes_too_long(autojump_clock):
    with pytest.raises(trio.TooSlowError) as excinfo:
        await fanout.map(trio.sleep, [1, 9, 2], item_timeout=5)
    assert trio.current_time() == 5
    assert excinfo.value.__notes__ == ["item 1"]


async def test_item_timeout_counts_from_the_call_of_the_function(autojump_clock):
    """Not from when the run began, nor from when the item was taken and began to wait for a token."""
    assert await fanout.map(trio.sleep, [4, 4, 4, 4], limit=1, item_timeout=5) == [None] * 4
    assert trio.current_time() == 16
    limiter = trio.CapacityLimiter(1)
    async with trio.open_nursery() as nursery:

        async def hold():
            async with limiter:
                await trio.sleep(100)

        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        assert await fanout.map(trio.sleep, [4, 4], limit=limiter, item_timeout=5) == [None, None]


async def test_item_timeout_leaves_alone_an_item_that_finishes_all_the_same(autojump_clock):
    async def shielded(x):
        with trio.CancelScope(shield=True):
            await trio.sleep(x)
        return x

    async def catching(x):
        try:
            await trio.sleep(x)
        except trio.Cancelled:
            return "caught"
        raise AssertionError

    assert await fanout.map(shielded, [9], item_timeout=5) == [9]
    assert await fanout.map(catching, [9], item_timeout=5) == ["caught"]


async def test_item_timeout_keeps_the_error_of_an_item_that_fails_when_timed_out(autojump_clock):
    async def fn(x):
        try:
            await trio.sleep(9)
        finally:
            raise KeyError("in the cleanup")

    with pytest.raises(KeyError, match="in the cleanup"):
        await fanout.map(fn, [1], item_timeout=5)


async def test_item_timeout_may_be_infinite(autojump_clock):
    assert await fanout.map(trio.sleep, [1000], item_timeout=math.inf) == [None]


async def test_item_timeout_is_for_each_item_of_do_and_fan_out(autojump_clock):
    async def slow(_):
        await trio.sleep(2)

    async def quick(_):
        return 1

    with pytest.raises(trio.TooSlowError):
        await fanout.do(trio.sleep, [2], item_timeout=1)
    one, two = await fanout.fan_out([quick, slow], None, policy=fanout.Settle(), item_timeout=1)
    assert one.unwrap() == 1
    with pytest.raises(trio.TooSlowError):
        two.unwrap()


async def test_item_timeout_covers_what_runs_before_the_first_wait(autojump_clock):
    """The deadline is set before the function is called, so that one that reads it sees it."""
    deadlines = []

    def fn(x):
        return inner(x)

    async def inner(x):
        deadlines.append(trio.current_effective_deadline())
        await trio.sleep(1)

    await fanout.map(fn, range(2), limit=1, item_timeout=5)
    assert deadlines == [5, 6]


# Laziness and order


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("call", [fanout.map, fanout.do])
async def test_never_more_than_the_limit_is_taken_and_unfinished(call, limit, shared, source_class, autojump_clock):
    source = source_class(range(20))

    async def fn(x):
        await trio.sleep((x * 7) % 5)
        source.unfinished -= 1

    await call(fn, source, limit=limit_of(limit, shared))
    assert source.peak == limit
    assert source.taken == 20


async def test_do_takes_an_endless_source(source_class, autojump_clock):
    source = source_class(itertools.count())

    async def fn(x):
        await trio.sleep(1)
        source.unfinished -= 1
        if x == 100:
            raise ValueError(x)

    with pytest.raises(ValueError, match="100"):
        await fanout.do(fn, source, limit=4)
    assert source.peak == 4
    assert source.taken <= 107  # item 100 may be the last of its four to be told that the second is over


@pytest.mark.slow
async def test_do_over_a_million_items_holds_few_of_them():
    things = Things()

    async def fn(item):
        pass

    await fanout.do(fn, (things.make() for _ in range(1_000_000)), limit=16)
    assert things.alive == 0
    assert things.most <= 17


async def test_an_idle_run_holds_no_item_and_no_value():
    """A worker that waits for the source keeps nothing of its last item alive."""

    things = Things()
    send, receive = trio.open_memory_channel(0)

    async def fn(item):
        return things.make()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.do, fn, receive)
        for _ in range(3):
            await send.send(things.make())
        await wait_all_tasks_blocked()
        assert things.alive == 0
        await send.aclose()


@pytest.mark.parametrize("waits", [False, True])
async def test_items_start_in_the_order_of_the_source(waits, shared, make, autojump_clock):
    began = []

    async def fn(x):
        began.append(x)
        if waits:
            await trio.sleep((x * 11) % 7)

    await fanout.do(fn, make(range(200)), limit=limit_of(9, shared))
    assert began == list(range(200))


async def test_what_is_iterable_in_both_ways_is_used_as_async():
    class Both:
        def __iter__(self):
            return iter(["sync"])

        def __aiter__(self):
            return aiter_of(["async"])

    assert await fanout.map(double, Both()) == ["asyncasync"]


async def test_an_iterable_by_getitem_alone_is_accepted():
    class Old:
        def __getitem__(self, index):
            if index == 3:
                raise IndexError
            return index

    assert await fanout.map(double, Old()) == [0, 2, 4]


@pytest.mark.parametrize("length", [0, 1, 7])
async def test_a_length_that_is_wrong_changes_nothing(length, autojump_clock):
    assert await fanout.map(double, Sized(range(4), length), limit=2) == [0, 2, 4, 6]


@pytest.mark.parametrize("error", [TypeError, NotImplementedError, AttributeError])
async def test_a_length_that_raises_is_taken_as_unknown(error):
    class Lazy:
        def __len__(self):
            raise error

        def __iter__(self):
            return iter(range(4))

    assert await fanout.map(double, Lazy()) == [0, 2, 4, 6]


# Checkpoints


@pytest.mark.parametrize("policy", ALL_POLICIES[:3])
@FUNCTIONS
@pytest.mark.parametrize("count", [0, 1, 5])
async def test_every_call_is_a_checkpoint(make, count, fn, policy):
    for limit in (2, trio.CapacityLimiter(2)):
        with assert_checkpoints():
            await fanout.map(fn, make(range(count)), limit=limit, policy=policy)
        if policy != fanout.Settle():
            with assert_checkpoints():
                await fanout.do(fn, make(range(count)), limit=limit, policy=policy)
        with assert_checkpoints():
            await fanout.fan_out([fn] * count, 1, limit=limit, policy=policy)


async def test_first_success_is_a_checkpoint_with_and_without_items():
    with assert_checkpoints():
        await fanout.map(double_at_once, [1], policy=fanout.FirstSuccess())
    with assert_checkpoints(), pytest.raises(ValueError, match="FirstSuccess"):
        await fanout.map(double_at_once, [], policy=fanout.FirstSuccess())


class EmptyAsync:
    """An async iterable that has nothing, and does not wait to say so."""

    def __aiter__(self):
        return self

    async def __anext__(self):
        raise StopAsyncIteration


@pytest.mark.parametrize("items", [(), EmptyAsync()], ids=["sync", "async"])
async def test_no_items_on_a_limiter_without_tokens_return_at_once(items, autojump_clock):
    empty = trio.CapacityLimiter(1)
    empty.total_tokens = 0
    taken = trio.CapacityLimiter(1)
    taken.acquire_on_behalf_of_nowait("other")
    for limiter in (empty, taken):
        with nothing_left(limiter), assert_checkpoints():
            assert await fanout.map(double, items, limit=limiter) == []
        with nothing_left(limiter), assert_checkpoints():
            assert await fanout.do(double, items, limit=limiter) is None
        assert await fanout.fan_out([], 1, limit=limiter) == []
    assert trio.current_time() == 0


async def test_a_call_in_a_cancelled_scope_is_cancelled_and_starts_nothing(make):
    began = []

    async def fn(x):
        began.append(x)

    for items in ([], range(5)):
        for policy in ALL_POLICIES:
            with nothing_left(), trio.CancelScope() as scope:
                scope.cancel()
                await fanout.map(fn, make(items), policy=policy)
            assert scope.cancelled_caught
    assert began == []


# Workers and their names


@pytest.mark.parametrize("limit", [10_000, math.inf, "shared 10000"])
@pytest.mark.parametrize(("make", "most"), [(list, 3), (iter, 4), (aiter_of, 4)])
async def test_workers_are_started_as_they_are_needed(make, most, limit):
    async with trio.open_nursery() as nursery:
        limiter = limit_of(limit)
        nursery.start_soon(functools.partial(fanout.map, trio.sleep, make([100, 200, 300]), limit=limiter))
        await wait_all_tasks_blocked()
        assert 3 <= workers() <= most
        nursery.cancel_scope.cancel()


async def test_workers_are_never_more_than_the_tokens(shared):
    most = 0

    async def fn(x):
        nonlocal most
        await trio.lowlevel.checkpoint()
        most = max(most, workers("do("))

    await fanout.do(fn, range(100), limit=limit_of(4, shared))
    assert most == 4


async def test_quick_items_need_few_workers():
    """Items that never wait do not start a worker each, with any limit."""
    tasks = set()

    async def fn(x):
        tasks.add(trio.lowlevel.current_task())

    await fanout.do(fn, range(100_000), limit=math.inf)
    assert len(tasks) <= 200


async def fetch(x):
    await wait_all_tasks_blocked()
    return task_names()


async def test_worker_tasks_are_named_after_what_they_run():
    names = [set(found) for found in await fanout.map(fetch, range(2))]
    assert all("map(fetch)" in found for found in names)
    (names_of_partial,) = await fanout.map(functools.partial(fetch), [1])
    assert "map(fetch)" in names_of_partial
    seen = []

    async def save(x):
        seen.append(trio.lowlevel.current_task().name)

    await fanout.do(save, [1])
    assert seen == ["do(save)"]
    seen.clear()
    await fanout.do(Callable(), [1])  # has no __name__ of its own
    (names_of_object,) = await fanout.map(NameTeller(), [1])
    assert names_of_object == "map(NameTeller)"


class NameTeller:
    async def __call__(self, x):
        return trio.lowlevel.current_task().name


async def test_fan_out_workers_are_named_after_the_function_they_run():
    async def first(x):
        return trio.lowlevel.current_task().name

    async def second(x):
        return trio.lowlevel.current_task().name

    assert await fanout.fan_out([first, second], 1, limit=1) == ["fan_out(first)", "fan_out(second)"]


@pytest.mark.parametrize("item_timeout", [None, 5])
async def test_frames_of_an_item_are_visible_from_its_task(item_timeout, autojump_clock):
    async def innermost():
        await trio.sleep(1)

    async def fn(x):
        await innermost()

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as inner:
            inner.start_soon(functools.partial(fanout.do, fn, [1], item_timeout=item_timeout))
            await wait_all_tasks_blocked()
            (task,) = [task for task in all_tasks() if task.name == "do(fn)"]
            frames = [frame.f_code.co_name for frame, _ in task.iter_await_frames()]
            assert frames.index("fn") < frames.index("innermost") < frames.index("sleep")
        nursery.cancel_scope.cancel()


# Runs within and beside runs


async def test_runs_nest(autojump_clock):
    async def outer(x):
        return await fanout.map(double, range(x), limit=2)

    assert await fanout.map(outer, range(4), limit=2) == [[], [0], [0, 2], [0, 2, 4]]


def test_two_trio_runs_in_two_threads_at_once():
    barrier = threading.Barrier(2)
    policy = fanout.Collect()
    found = {}

    async def fn(x):
        await trio.lowlevel.checkpoint()
        if x == 50:
            barrier.wait(timeout=10)  # both runs are in the middle now
        if x % 10 == 9:
            raise ValueError(x)
        return x

    async def main(name):
        try:
            await fanout.map(fn, range(100), limit=3, policy=policy)
        except fanout.FanOutError as error:
            found[name] = error

    threads = [threading.Thread(target=trio.run, args=(main, name)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["a"] is not found["b"]
    for error in found.values():
        assert error.indices == tuple(range(9, 100, 10))
        assert error.results == {x: x for x in range(100) if x % 10 != 9}
        assert error.total == 100


@pytest.mark.filterwarnings("ignore:.*strict_exception_groups")
@pytest.mark.parametrize("strict", [False, True])
def test_strictness_of_the_callers_nurseries_makes_no_difference(strict):
    async def fail(x):
        raise KeyError(x)

    async def main():
        assert await fanout.map(double, range(3)) == [0, 2, 4]
        with pytest.raises(KeyError):
            await fanout.map(fail, range(3))
        with pytest.raises(fanout.FanOutError) as excinfo:
            await fanout.map(fail, [1], policy=fanout.Collect())
        assert excinfo.value.indices == (0,)
        with trio.CancelScope() as scope:
            scope.cancel()
            await fanout.map(double, range(3))
        assert scope.cancelled_caught

    trio.run(main, strict_exception_groups=strict)
