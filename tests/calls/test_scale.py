"""What must not grow with the square of the workers or the failures, by counts of steps, calls and objects."""

import contextvars
import math
import tracemalloc

import pytest
import trio

import trio_fanout as fanout
from helpers import ALL_POLICIES, Steps, aiter_of, busy, notes_of

var = contextvars.ContextVar("var")


async def test_what_many_items_raise_is_chained_in_one_go(autojump_clock):
    """Not from the beginning of the chain for each of them: exceptions that are not an `Exception` are all kept."""
    reads = 0

    class Stop(BaseException):
        @property
        def __context__(self):
            nonlocal reads
            reads += 1
            return BaseException.__context__.__get__(self)

        @__context__.setter
        def __context__(self, context):
            BaseException.__context__.__set__(self, context)

    async def stop(n):
        try:
            await trio.sleep(1)
        finally:
            raise Stop(n)

    with pytest.raises(Stop) as info:
        await fanout.do(stop, range(500), limit=500)
    assert reads < 20_000
    chained, exc = set(), info.value
    while exc is not None:
        chained.add(exc)
        exc = BaseException.__context__.__get__(exc)
    assert len([exc for exc in chained if type(exc) is Stop]) == 500


# Thousands of workers


async def sleep_at_any_limit(count):
    await fanout.map(trio.sleep, [1] * count, limit=math.inf)


async def sleep_in_a_stream(count):
    async with fanout.stream(trio.sleep, iter([1] * count), limit=count) as results:
        async for _ in results:
            pass


async def wait_for_tokens(count):
    limiter = trio.CapacityLimiter(count)
    async with trio.open_nursery() as nursery:
        limiter.total_tokens = 0
        nursery.start_soon(lambda: fanout.map(trio.sleep, [1] * count, limit=limiter))
        await trio.sleep(1)
        limiter.total_tokens = count


async def wait_for_tokens_in_vain(count):
    limiter = trio.CapacityLimiter(count)
    for holder in range(count):
        limiter.acquire_on_behalf_of_nowait(holder)
    with trio.move_on_after(1):
        await fanout.map(trio.sleep, [1] * count, limit=limiter)


async def run_jobs_with_variables_of_their_own(count):
    async with fanout.open_group(limit=count) as group:
        for n in range(count):
            var.set(n)
            group.start_soon(trio.sleep, 1)


async def cancel_idle_workers(count):
    async with fanout.open_group(limit=count) as group:
        for _ in range(count):
            group.start_soon(trio.sleep, 1)
        await trio.sleep(2)
        group.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        sleep_at_any_limit,
        sleep_in_a_stream,
        wait_for_tokens,
        wait_for_tokens_in_vain,
        run_jobs_with_variables_of_their_own,
        cancel_idle_workers,
    ],
)
async def test_thousands_of_workers_take_a_few_steps_each(run, autojump_clock):
    """Together they take longer than a slice. If all of them woke for each slice, it would be hundreds of steps."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    await run(10_000)
    trio.lowlevel.remove_instrument(steps)
    assert steps.count < 25 * 10_000


@pytest.mark.slow
async def test_workers_that_wait_for_a_slice_wake_one_another(autojump_clock):
    """All end their first items together, and together they take longer than a slice."""

    async def work(n):
        if n < 1000:
            await trio.sleep(1)
        busy(0.0001)
        return n

    assert await fanout.map(work, range(2000), limit=1000) == list(range(2000))


# Failures that are large, or many


class HugeError(Exception):
    def __str__(self):
        return "many words " * 1_000_000


async def test_notes_of_huge_texts_are_cut_before_they_are_split_into_words():
    async def fail(n):
        raise HugeError

    tracemalloc.start()
    try:
        with pytest.raises(HugeError) as info:
            await fanout.map(fail, range(12), limit=12)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(len(note) < 150 for note in notes_of(info.value))
    assert peak < 50_000_000  # the text is 11 MB, its words are 120


class Thing:
    """It knows how many there are."""

    alive = 0

    def __init__(self):
        Thing.alive += 1

    def __del__(self):
        Thing.alive -= 1


async def fail_every_second(n):
    thing = Thing()  # in the traceback of the failure
    await trio.lowlevel.checkpoint()
    if n % 2:
        raise ValueError(n)
    del thing
    return n


MAKES = pytest.mark.parametrize("make", [range, lambda count: iter(range(count)), lambda count: aiter_of(range(count))])


@MAKES
@pytest.mark.parametrize("ordered", [False, True])
async def test_a_stream_keeps_no_failure_that_its_reader_has_had(ordered, make):
    most = 0
    async with fanout.stream(
        fail_every_second, make(500), limit=4, buffer=4, policy=fanout.Settle(), ordered=ordered
    ) as results:
        async for result in results:
            del result
            most = max(most, Thing.alive)
    assert Thing.alive == 0
    assert most <= 8


async def test_a_group_keeps_no_failure_under_settle():
    most = 0
    async with fanout.open_group(limit=4, policy=fanout.Settle()) as group:
        for n in range(500):
            handle = group.start_soon(fail_every_second, n)
            if n % 4 == 3:
                await handle.wait()
                most = max(most, Thing.alive)
        del handle
    assert Thing.alive == 0
    assert most <= 8


@pytest.mark.parametrize("policy", ALL_POLICIES)
async def test_when_a_call_is_over_only_what_it_gave_back_is_alive(policy):
    try:
        given = await fanout.map(fail_every_second, range(1, 101), limit=100, policy=policy)
    except (ValueError, fanout.FanOutError) as error:
        given = error
    assert Thing.alive == (1 if isinstance(given, ValueError) else 0 if isinstance(given, int) else 50)
    del given
    assert Thing.alive == 0


async def test_do_keeps_the_failures_that_it_raises_and_no_more():
    with pytest.raises(fanout.FanOutError) as info:
        await fanout.do(fail_every_second, range(100), policy=fanout.Collect())
    assert Thing.alive == 50
    del info
    assert Thing.alive == 0


async def test_a_failure_that_was_retried_in_an_item_is_not_kept():
    async def retry(n):
        for attempt in (1, 2):
            try:
                return await fail_every_second(n + 2 - attempt)
            except ValueError:
                pass
        raise AssertionError

    assert len(await fanout.map(retry, range(100))) == 100
    assert Thing.alive == 0
