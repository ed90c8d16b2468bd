"""After any run nothing is left behind: no task, no token, no reference cycle."""

import functools
from contextlib import suppress

import pytest
import trio
import trio.testing

import trio_fanout as fanout
from helpers import (
    ALL_POLICIES,
    POLICIES,
    AsyncCountingSource,
    FrozenError,
    Thing,
    Things,
    check_no_cycles,
    double,
    fail_when_cancelled,
    limit_of,
    no_cycles,
    nothing_left,
)


async def ends(kind, x):
    """An item whose run ends in the way that `kind` says, with some work before."""
    if x < 4:
        return Thing()
    await trio.sleep(x % 3)
    match kind:
        case "failure":
            raise ValueError(x)
        case "group":
            raise ExceptionGroup("group", [ValueError(x), KeyError(x)])
        case "frozen":
            raise FrozenError(x)
        case "cleanup":
            await fail_when_cancelled(KeyError(x))
        case "mixed group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                nursery.start_soon(ends, "cleanup", x)
        case "interrupt":
            raise KeyboardInterrupt
        case "timeout" | "outside":
            await trio.sleep_forever()
        case "nested":
            await fanout.map(functools.partial(ends, "failure"), range(6), policy=fanout.Collect())
    return Thing()


KINDS = ["success", "failure", "group", "frozen", "cleanup", "mixed group", "interrupt", "timeout", "outside", "nested"]


async def attempt(kind, policy, make, limit):
    """One run, and nothing kept of it."""
    fn = functools.partial(ends, kind)
    timeout = 5 if kind == "timeout" else None
    with trio.move_on_after(5 if kind in ("outside", "cleanup", "mixed group") else 1000):
        with suppress(Exception, KeyboardInterrupt):
            items = make(range(4 if policy == fanout.FirstSuccess() else 0, 8))
            await fanout.map(fn, items, limit=limit, policy=policy, item_timeout=timeout)


@POLICIES
@pytest.mark.parametrize("kind", KINDS)
async def test_no_reference_cycle_is_left(kind, make, policy, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    await attempt(kind, policy, make, 3)  # what is made once and kept forever is no leak
    for limit in (3, limiter):
        with no_cycles(), nothing_left(limiter):
            await attempt(kind, policy, make, limit)


async def test_no_reference_cycle_is_left_by_do_and_fan_out(autojump_clock):
    async def once(kind):
        fn = functools.partial(ends, kind)
        for run in (
            functools.partial(fanout.do, fn, range(8), limit=3),
            functools.partial(fanout.do, fn, range(8), limit=3, policy=fanout.Collect(max_failures=2)),
            functools.partial(fanout.fan_out, [fn] * 3, 5),
        ):
            with suppress(Exception, KeyboardInterrupt):
                await run()

    for kind in ("success", "failure", "interrupt"):
        await check_no_cycles(once, kind)


async def test_no_reference_cycle_is_left_by_a_source_that_raises(autojump_clock):
    def source():
        yield from range(3)
        raise OSError

    async def async_source():
        yield 1
        await trio.sleep(1)
        raise OSError

    async def fail(x):
        raise ValueError

    async def once():
        for make in (source, async_source):
            for fn in (double, fail, trio.sleep):
                for policy in ALL_POLICIES:
                    try:
                        await fanout.map(fn, make(), policy=policy)
                    except (OSError, ValueError):
                        pass

    await check_no_cycles(once)


async def test_no_reference_cycle_is_left_by_wrong_use():
    limiter = trio.CapacityLimiter(1)

    async def once():
        for call in (
            functools.partial(fanout.map, 3, []),
            functools.partial(fanout.map, lambda x: 3, [1, 2]),
            functools.partial(fanout.map, double, [], limit=0),
        ):
            try:
                await call()
            except (TypeError, ValueError):
                pass
        async with limiter:
            try:
                await fanout.map(double, [1], limit=limiter)
            except RuntimeError:
                pass

    await check_no_cycles(once)


@pytest.mark.parametrize("where", ["block", "job"])
async def test_no_reference_cycle_is_left_by_several_interrupts(where):
    """The later ones come out of the cancellation that the first caused, and are chained to it."""

    async def stop():
        raise SystemExit

    async def once():
        try:
            async with fanout.open_group() as group:
                group.start_soon(fail_when_cancelled, KeyboardInterrupt)
                await trio.testing.wait_all_tasks_blocked()
                if where == "block":
                    raise SystemExit
                group.start_soon(stop)
        except SystemExit:
            pass

    await check_no_cycles(once)


async def test_do_keeps_no_value_alive(autojump_clock):
    things = Things()

    async def fn(x):
        value = things.make()
        await trio.lowlevel.checkpoint()
        return value

    await fanout.do(fn, range(1000), limit=5)
    assert things.alive == 0
    assert things.most <= 10


async def test_no_task_and_no_token_is_left(shared, make, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    for kind in KINDS:
        for policy in ALL_POLICIES:
            with nothing_left(limiter):
                await attempt(kind, policy, make, limiter if shared else 3)


@pytest.mark.parametrize("count", [2, 3])
async def test_items_that_have_ended_are_gone_while_the_last_one_runs(count, autojump_clock):
    """Also those that were taken as nobody held the one before."""
    things = Things()
    left = count

    async def fn(item):
        nonlocal left
        left -= 1
        last = not left
        del item
        await trio.sleep(2 if last else 1)
        if last:
            assert things.alive == 1

    await fanout.do(fn, (things.make() for _ in range(count)), limit=count)


@pytest.mark.parametrize("limit", [1, 3])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_only_the_items_that_run_are_alive(asynchronous, shared, limit):
    things = Things()
    seen = []

    async def fn(item):
        seen.append(things.alive)
        del item
        for _ in range(10):  # while this one lasts, items are read for all the others
            await trio.lowlevel.checkpoint()

    items = (things.make() for _ in range(20))
    if asynchronous:
        items = AsyncCountingSource(items)  # no async generator, which would keep the last item
    await fanout.do(fn, items, limit=limit_of(limit, shared))
    assert len(seen) == 20
    assert max(seen) == limit
    assert things.alive == 0
