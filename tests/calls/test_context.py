"""Items are isolated like tasks: what one sets in a context variable, no other item and no caller sees."""

import contextvars

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import aiter_of, limit_of

var = contextvars.ContextVar("var")
other = contextvars.ContextVar("other")

CASES = [
    pytest.param(make, limit, waits, id=f"{make.__name__}-{limit}-{'waits' if waits else 'at once'}")
    for make in (list, iter, aiter_of)
    for limit in (1, 3, "shared 2")
    for waits in (False, True)
]
EVERYWHERE = pytest.mark.parametrize(("make", "limit", "waits"), CASES)


class Odd:
    """A value whose `==` cannot be asked."""

    __hash__ = None

    def __eq__(self, other):
        raise RuntimeError("compared")


@EVERYWHERE
async def test_a_variable_set_by_an_item_is_seen_by_that_item_alone(make, limit, waits):
    async def fn(x):
        before = var.get(None)
        var.set(x)
        if waits:
            await trio.lowlevel.checkpoint()
        return before, var.get()

    assert await fanout.map(fn, make(range(20)), limit=limit_of(limit)) == [(None, x) for x in range(20)]
    assert var.get(None) is None


@EVERYWHERE
async def test_every_item_sees_the_variables_of_the_caller(make, limit, waits):
    var.set("the caller's")

    async def fn(x):
        before = var.get()
        if x % 2:
            var.set(x)
        if waits:
            await trio.lowlevel.checkpoint()
        return before

    assert await fanout.map(fn, make(range(20)), limit=limit_of(limit)) == ["the caller's"] * 20
    assert var.get() == "the caller's"


@EVERYWHERE
async def test_an_equal_value_that_is_another_object_is_a_change_too(make, limit, waits):
    original = []
    var.set(original)

    async def fn(x):
        mine = var.get() is original
        var.set([])
        if waits:
            await trio.lowlevel.checkpoint()
        return mine

    assert all(await fanout.map(fn, make(range(20)), limit=limit_of(limit)))
    assert var.get() is original


@EVERYWHERE
async def test_values_that_cannot_be_compared_do_no_harm(make, limit, waits):
    original = Odd()
    var.set(original)

    async def fn(x):
        mine = var.get() is original
        if x % 3 == 0:
            var.set(Odd())
        if x % 3 == 1:
            other.set(Odd())
        if waits:
            await trio.lowlevel.checkpoint()
        return mine and (x % 3 == 1 or other.get(None) is None)

    assert all(await fanout.map(fn, make(range(30)), limit=limit_of(limit)))


@EVERYWHERE
async def test_setting_the_same_object_is_no_change(make, limit, waits):
    original = object()
    var.set(original)

    async def fn(x):
        mine = var.get() is original
        var.set(original)
        if waits:
            await trio.lowlevel.checkpoint()
        return mine

    assert all(await fanout.map(fn, make(range(20)), limit=limit_of(limit)))


@EVERYWHERE
async def test_values_that_change_places_are_a_change(make, limit, waits):
    a, b = object(), object()
    var.set(a)
    other.set(b)

    async def fn(x):
        mine = var.get() is a and other.get() is b
        var.set(b)
        other.set(a)
        if waits:
            await trio.lowlevel.checkpoint()
        return mine

    assert all(await fanout.map(fn, make(range(20)), limit=limit_of(limit)))


@EVERYWHERE
async def test_one_variable_in_the_place_of_another_is_a_change(make, limit, waits):
    """As many variables as before, with the same objects, but not the same variables."""
    shared = object()

    async def fn(x):
        seen = [v.name for v in (var, other) if v.get(None) is not None]
        token = (var, other)[x % 2].set(shared)
        if x % 5 == 0:
            (var, other)[x % 2].reset(token)
        if waits:
            await trio.lowlevel.checkpoint()
        return seen

    assert await fanout.map(fn, make(range(20)), limit=limit_of(limit)) == [[]] * 20


@EVERYWHERE
async def test_a_variable_that_was_reset_is_as_before(make, limit, waits):
    var.set("the caller's")

    async def fn(x):
        before = var.get()
        token = var.set(x)
        if waits:
            await trio.lowlevel.checkpoint()
        during = var.get()
        var.reset(token)
        return before, during, var.get()

    expected = [("the caller's", x, "the caller's") for x in range(20)]
    assert await fanout.map(fn, make(range(20)), limit=limit_of(limit)) == expected


async def test_many_variables_are_looked_at(autojump_clock):
    variables = [contextvars.ContextVar[int](f"variable {number}") for number in range(50)]
    for number, variable in enumerate(variables):
        variable.set(number)

    async def fn(x):
        clean = [variable.get() for variable in variables] == list(range(50))
        variables[x % 50].set(-1)
        return clean

    assert all(await fanout.map(fn, range(100), limit=3))


@pytest.mark.parametrize("how", ["failure", "timeout"])
@pytest.mark.parametrize("limit", [1, "shared 2"])
async def test_a_failed_item_leaves_no_mark_either(limit, how, autojump_clock):
    async def fn(x):
        before = var.get(None)
        var.set(x)
        if x % 2:
            if how == "failure":
                raise ValueError
            await trio.sleep(5)
        return before

    outcomes = await fanout.map(fn, range(10), limit=limit_of(limit), policy=fanout.Settle(), item_timeout=1)
    assert [one.unwrap() for one in outcomes[::2]] == [None] * 5
    assert [hasattr(one, "error") for one in outcomes] == [False, True] * 5


async def test_a_variable_is_seen_by_the_tasks_that_the_item_starts():
    seen = []

    async def child():
        seen.append(var.get())

    async def fn(x):
        var.set(x)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)

    await fanout.do(fn, range(5), limit=1)
    assert seen == list(range(5))


async def test_a_variable_is_seen_by_a_nested_run():
    async def inner(x):
        mine = var.get()
        var.set("inner")
        return mine

    async def outer(x):
        var.set(x)
        return await fanout.map(inner, range(3), limit=1)

    assert await fanout.map(outer, range(3), limit=1) == [[x] * 3 for x in range(3)]


async def test_fan_out_isolates_its_functions_too():
    async def fn(x):
        before = var.get(None)
        var.set(object())
        return before

    assert await fanout.fan_out([fn] * 10, 1, limit=1) == [None] * 10


async def test_a_function_that_sets_a_variable_before_its_coroutine_runs():
    """The call itself belongs to the item as much as the coroutine does."""

    async def get():
        return var.get()

    def fn(x):
        before = var.get(None)
        var.set((before, x))
        return get()

    assert await fanout.map(fn, range(6), limit=2) == [(None, x) for x in range(6)]


async def test_items_of_a_generator_are_isolated_too():
    """The workers themselves run it, each in its own context."""

    def source():
        yield from range(10)

    async def fn(x):
        before = var.get(None)
        var.set(x)
        return before

    assert await fanout.map(fn, source(), limit=2) == [None] * 10


async def test_a_change_by_the_caller_during_the_run_is_not_seen(autojump_clock):
    """As with `start_soon`: the context is that of the time of the call."""
    var.set("before")
    seen = []

    async def fn(x):
        await trio.sleep(1)
        seen.append(var.get())

    async def source():
        for x in range(4):
            yield x
            await trio.sleep(2)

    async def run():
        await fanout.do(fn, source())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await wait_all_tasks_blocked()
        var.set("after")
    assert seen == ["before"] * 4


async def test_an_instrument_may_set_a_variable_at_each_step_of_a_task():
    class Tracer(trio.abc.Instrument):
        def before_task_step(self, task):
            task.context.run(var.set, object())

    async def fn(x=0):
        var.get()
        await trio.lowlevel.checkpoint()
        return x

    tracer = Tracer()
    trio.lowlevel.add_instrument(tracer)
    try:
        for limit in (1, 3, trio.CapacityLimiter(2)):
            assert await fanout.map(fn, range(10), limit=limit) == list(range(10))
            assert await fanout.map(fn, aiter_of(range(10)), limit=limit) == list(range(10))
            async with fanout.stream(fn, range(10), limit=limit) as results:
                assert [value async for _, _, value in results] == list(range(10))
            async with fanout.open_group(limit=limit) as group:
                handles = [group.start_soon(fn, x) for x in range(10)]
            assert [handle.value for handle in handles] == list(range(10))
            assert await fanout.run_graph({"a": fanout.Step(fn), "b": fanout.Step(fn, needs=("a",))}) == {
                "a": 0,
                "b": 0,
            }
    finally:
        trio.lowlevel.remove_instrument(tracer)


@pytest.mark.parametrize("shared", [False, True])
async def test_jobs_keep_contexts_of_their_own_when_the_limit_changes(shared, autojump_clock):
    seen = []

    async def job(n):
        seen.append(var.get() == n)
        await trio.sleep(1)

    async with fanout.open_group(limit=limit_of(2, shared)) as group:
        for total in (4, 1, 3):
            for n in range(12):
                var.set(n)
                group.start_soon(job, n)
            await trio.sleep(0.5)
            group.limiter.total_tokens = total  # and nothing else tells the workers
            await trio.sleep(20)
    assert seen == [True] * 36


def test_where_the_caller_has_set_nothing_an_item_is_isolated_too():
    seen = []

    async def mark(n):
        seen.append(var.get(None))
        var.set(n)

    contextvars.Context().run(trio.run, lambda: fanout.do(mark, range(5), limit=1))
    assert seen == [None] * 5


async def test_a_job_that_is_submitted_where_nothing_is_set_sees_nothing():
    seen = []

    async def look():
        seen.append(var.get(None))

    var.set(1)
    async with fanout.open_group(limit=1) as group:
        group.start_soon(look)
        contextvars.Context().run(group.start_soon, look)
        group.start_soon(look)
    assert seen == [1, None, 1]
