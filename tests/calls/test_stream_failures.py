"""`stream`: failures, cancellation, interrupts, sources that raise; nothing lost, twice or left behind."""

import functools
import traceback
import weakref
from contextlib import nullcontext, suppress

import outcome
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    DO_POLICIES,
    GROUP_POLICIES,
    FrozenError,
    ItemError,
    SourceError,
    Thing,
    aiter_of,
    double_at_once,
    fail_when_cancelled,
    leaves,
    limit_of,
    no_cycles,
    notes_of,
    nothing_left,
    printed,
    rest_of,
)


def fails_at(failing, seconds=1):
    """A function that takes `seconds` (of the item, if that can be asked), and then gives back the item or fails."""

    async def fn(x):
        await trio.sleep(seconds(x) if callable(seconds) else seconds)
        if x in failing:
            raise failing[x]
        return x

    return fn


# FailFast


async def test_results_before_the_failure_come_first_then_the_failure_unwrapped(shared, make, autojump_clock):
    """Item 3 finishes before 2 fails, and is not handed over: 2 is missing in between."""
    error = ItemError("two")
    fn = fails_at({2: error}, lambda x: [1, 2, 3, 1, 9, 9][x])
    got = []
    limit = limit_of(6, shared)
    with nothing_left(), pytest.raises(ItemError) as excinfo:
        async with fanout.stream(fn, make(range(6)), limit=limit) as results:
            await trio.sleep(5)
            with pytest.raises(ItemError) as from_receive:
                while True:
                    got.append((await results.receive()).index)
            assert from_receive.value is error
            with pytest.raises(trio.EndOfChannel):
                await results.receive()
            raise error
    assert got == [0, 1]
    assert excinfo.value is error
    assert notes_of(error) == ["item 2"]
    assert error.__context__ is None
    assert trio.current_time() == 5


async def test_unordered_all_that_finished_come_before_the_failure(autojump_clock):
    got = []
    fn = fails_at({2: ItemError()}, lambda x: [1, 2, 3, 1.5, 9, 9][x])
    with pytest.raises(ItemError):
        async with fanout.stream(fn, range(6), ordered=False) as results:
            await trio.sleep(5)
            async for index, _, _ in results:
                got.append(index)
    assert got == [0, 3, 1]


async def test_a_result_that_finishes_during_the_cancellation_is_handed_over(autojump_clock):
    async def fn(x):
        if x == 1:
            await trio.sleep(1)
            raise ItemError
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        return x

    got = []
    with pytest.raises(ItemError):
        async with fanout.stream(fn, range(2)) as results:
            async for index, _, _ in results:
                got.append((trio.current_time(), index))
    assert got == [(2, 0)]


async def test_the_failure_is_raised_from_the_async_for_exactly_once(ordered, autojump_clock):
    """Who handles it in the block has handled it."""
    error = ItemError()
    async with fanout.stream(fails_at({0: error}), range(3), limit=1, ordered=ordered) as results:
        with pytest.raises(ItemError) as excinfo:
            async for _ in results:
                pass
        assert excinfo.value is error
        assert await rest_of(results) == []


async def test_the_reader_is_not_cancelled_by_a_failing_worker(autojump_clock):
    steps = []
    with pytest.raises(ItemError):
        async with fanout.stream(fails_at({1: ItemError()}, lambda x: x), range(3)) as results:
            async for index, _, _ in results:
                await trio.sleep(10)
                steps.append((index, trio.current_time()))
    assert steps == [(0, 10)]


async def test_the_reader_is_not_cancelled_by_a_source_that_raises(autojump_clock):
    async def source():
        yield 0
        await trio.sleep(1)
        raise SourceError

    steps = []
    with pytest.raises(SourceError):
        async with fanout.stream(fails_at({}, 0), source()) as results:
            async for index, _, _ in results:
                await trio.sleep(10)
                steps.append((index, trio.current_time()))
    assert steps == [(0, 10)]


async def test_the_lowest_indexed_primary_failure_is_raised_with_the_others_in_notes(autojump_clock):
    async def fn(x):
        try:
            await trio.sleep(1 if x == 2 else 9)
        finally:
            if x < 2:
                raise ItemError("on the way out")
        raise ItemError("first")

    with pytest.raises(ItemError, match="first") as excinfo:
        async with fanout.stream(fn, range(3)) as results:
            await rest_of(results)
    assert notes_of(excinfo.value) == [
        "item 2",
        "item 0 also failed: ItemError: on the way out",
        "item 1 also failed: ItemError: on the way out",
    ]


async def test_an_items_own_group_and_a_frozen_exception_leave_unchanged(make):
    for error in (ExceptionGroup("own", [ItemError(), SourceError()]), FrozenError(3)):
        with pytest.raises(type(error)) as excinfo:
            async with fanout.stream(fails_at({1: error}, 0), make(range(3))) as results:
                await rest_of(results)
        assert excinfo.value is error


@pytest.mark.parametrize("cls", [trio.EndOfChannel, StopAsyncIteration])
@pytest.mark.parametrize("where", ["receive", "async for"])
async def test_a_failure_that_looks_like_the_end_is_not_lost(where, cls):
    """An item that reads another channel, and fails to handle its end."""
    error = cls("of something else")
    with pytest.raises(cls) as excinfo:
        async with fanout.stream(fails_at({1: error}, 0), range(3), limit=1) as results:
            if where == "async for":
                await rest_of(results)
            else:
                await results.receive()
                with pytest.raises(trio.EndOfChannel):
                    await results.receive()
    assert excinfo.value is error


async def test_a_source_that_raises_what_looks_like_the_end_is_not_taken_for_it():
    async def inner():
        async with fanout.stream(double_at_once, Source()) as results:
            await rest_of(results)

    class Source:
        def __aiter__(self):
            return self

        async def __anext__(self):
            raise trio.EndOfChannel

    with pytest.raises(trio.EndOfChannel):
        await inner()


# Collect


async def test_collect_hands_over_successes_and_raises_at_the_end(shared, make, autojump_clock):
    errors = {1: ItemError("one"), 4: ItemError("four")}
    limit = limit_of(2, shared)
    got = []
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.stream(
            fails_at(dict(errors)), make(range(6)), limit=limit, policy=fanout.Collect()
        ) as results:
            async for index, _, _ in results:
                got.append((index, trio.current_time()))
    assert got == [(0, 1), (2, 2), (3, 2), (5, 3)]
    assert excinfo.value.failures == errors
    assert excinfo.value.indices == (1, 4)
    assert excinfo.value.results == {}
    assert excinfo.value.total == 6
    assert [notes_of(error) for error in errors.values()] == [["item 1"], ["item 4"]]


async def test_collect_unordered(autojump_clock):
    got = []
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.stream(
            fails_at({0: ItemError()}, lambda x: 4 - x), range(4), policy=fanout.Collect(), ordered=False
        ) as results:
            async for index, _, _ in results:
                got.append(index)
    assert got == [3, 2, 1]
    assert excinfo.value.indices == (0,)


async def test_collect_at_max_failures_hands_over_what_finished_even_with_gaps(autojump_clock):
    """Item 0 is cancelled, and leaves a gap; 1 and 3 have succeeded, 2 and 4 failed."""
    fn = fails_at({2: ItemError(), 4: ItemError()}, lambda x: [99, 3, 2, 1, 4, 99][x])
    got = []
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.stream(fn, range(6), policy=fanout.Collect(max_failures=2)) as results:
            async for index, _, _ in results:
                got.append((index, trio.current_time()))
    assert got == [(1, 4), (3, 4)]
    assert excinfo.value.indices == (2, 4)
    assert excinfo.value.total == 6


async def test_collect_raises_the_group_once(autojump_clock):
    async with fanout.stream(fails_at({0: ItemError()}), range(2), policy=fanout.Collect()) as results:
        assert (await results.receive()).index == 1
        with pytest.raises(fanout.FanOutError):
            await results.receive()
        with pytest.raises(trio.EndOfChannel):
            await results.receive()


# Settle


async def test_settle_hands_over_failures_and_raises_nothing(ordered, autojump_clock):
    errors = {x: ItemError(x) for x in (0, 3)}
    async with fanout.stream(
        fails_at(dict(errors)), range(5), limit=1, policy=fanout.Settle(), ordered=ordered
    ) as results:
        values = [value async for _, _, value in results]
    told = [value.error if isinstance(value, outcome.Error) else value.unwrap() for value in values]
    assert told == [errors[0], 1, 2, errors[3], 4]


async def test_settle_raises_nothing_on_leaving_early(autojump_clock):
    async with fanout.stream(fails_at({0: ItemError()}), range(5), policy=fanout.Settle()):
        await trio.sleep(5)


# Leaving the block early


@pytest.mark.parametrize(
    ("policy", "error"),
    [(fanout.FailFast(), ItemError), (fanout.Collect(), fanout.FanOutError)],
    ids=["fast", "collect"],
)
@pytest.mark.parametrize("how", ["break", "cancelled", "outside", "aclose", "deadline in block"])
async def test_a_failure_never_handed_over_is_raised_on_leaving(how, policy, error, autojump_clock):
    fn = fails_at({2: ItemError("two")}, lambda x: x)
    with nothing_left(), trio.CancelScope() as scope, pytest.raises(error) as excinfo:
        async with fanout.stream(fn, range(9), limit=9, policy=policy) as results:
            async for _ in results:
                await trio.sleep(2.5)
                break
            match how:
                case "cancelled":
                    scope.cancel()
                    await trio.sleep_forever()
                case "outside":
                    scope.deadline = trio.current_time() + 3
                    await trio.sleep_forever()
                case "aclose":
                    await results.aclose()
                case "deadline in block":
                    with trio.move_on_after(1):
                        await trio.sleep_forever()
    assert not scope.cancelled_caught
    assert [str(leaf) for leaf in leaves(excinfo.value)] == ["two"]
    assert not isinstance(excinfo.value.__context__, trio.Cancelled)


async def test_a_failure_that_comes_of_leaving_is_raised_too(autojump_clock):
    async def fn(x):
        await fail_when_cancelled(ItemError)

    with nothing_left(), pytest.raises(ItemError):
        async with fanout.stream(fn, range(3)):
            await trio.sleep(1)


@pytest.mark.parametrize("cls", [SourceError, KeyboardInterrupt, SystemExit, StopAsyncIteration])
@pytest.mark.parametrize("failed", [False, True])
async def test_the_blocks_own_exception_propagates_unwrapped_also_over_a_failure(make, failed, cls, autojump_clock):
    """The failure is not raised then, but the traceback prints it."""
    error = cls("of the block")
    failure = ItemError("of an item")
    with nothing_left(), pytest.raises(cls) as excinfo:
        async with fanout.stream(fails_at({0: failure} if failed else {}), make(range(9)), limit=3):
            await trio.sleep(5 if failed else 0.5)
            raise error
    assert excinfo.value is error
    assert ("of an item" in printed(error)) == failed


async def test_the_blocks_exception_keeps_its_context_and_cause(autojump_clock):
    cause = OSError()
    with pytest.raises(SourceError) as excinfo:
        async with fanout.stream(fails_at({}), range(9)):
            raise SourceError from cause
    assert excinfo.value.__cause__ is cause
    assert excinfo.value.__context__ is None
    assert len(traceback.extract_tb(excinfo.value.__traceback__)) == 1


async def test_the_blocks_own_group_propagates_as_it_is(autojump_clock):
    error = ExceptionGroup("block", [ItemError(), SourceError()])
    with pytest.RaisesGroup(ItemError, SourceError) as excinfo:
        async with fanout.stream(fails_at({}), range(9)):
            await trio.sleep(0.5)
            raise error
    assert excinfo.value is error


@pytest.mark.filterwarnings("ignore::trio.TrioDeprecationWarning")
@pytest.mark.parametrize("strict", [False, True])
def test_strict_exception_groups_change_nothing(strict):
    async def block_raises():
        async with fanout.stream(trio.sleep, [9, 9]):
            await wait_all_tasks_blocked()
            raise SourceError

    async def item_interrupts():
        async with fanout.stream(fails_at({0: KeyboardInterrupt()}, 0), range(3)) as results:
            await rest_of(results)

    with pytest.raises(SourceError):
        trio.run(block_raises, strict_exception_groups=strict)
    with pytest.raises(KeyboardInterrupt):
        trio.run(item_interrupts, strict_exception_groups=strict)


# Cancellation from outside


@GROUP_POLICIES
async def test_cancellation_from_outside_is_prompt_and_not_swallowed(shared, make, policy, autojump_clock):
    limit = limit_of(3, shared)
    with nothing_left(), trio.move_on_after(1.5) as scope:
        async with fanout.stream(fails_at({}), make(range(100)), limit=limit, policy=policy) as results:
            await rest_of(results)
    assert scope.cancelled_caught
    assert trio.current_time() == 1.5


@GROUP_POLICIES
async def test_cancellation_while_no_worker_ever_waits(ordered, policy):
    """An endless source, and functions that never wait."""
    with nothing_left(), trio.CancelScope() as scope:
        async with fanout.stream(
            double_at_once, iter(int, 1), limit=2, policy=policy, ordered=ordered, buffer=10**9
        ) as results:
            for _ in range(100):
                await results.receive()
            scope.cancel()
            await rest_of(results)
    assert scope.cancelled_caught


@GROUP_POLICIES
async def test_cancellation_of_a_block_that_never_reads_while_no_worker_ever_waits(policy):
    with nothing_left(), trio.CancelScope() as scope:
        async with fanout.stream(double_at_once, iter(int, 1), limit=2, policy=policy, buffer=10**9):
            await trio.lowlevel.checkpoint()
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_cancelled_before_it_is_entered():
    for make in (list, aiter_of):
        with nothing_left(), trio.CancelScope() as scope:
            scope.cancel()
            async with fanout.stream(double_at_once, make(range(9))) as results:
                await rest_of(results)
        assert scope.cancelled_caught


@GROUP_POLICIES
async def test_a_cancelled_block_that_reads_again_is_cancelled(policy, autojump_clock):
    """Not told that the channel is closed: it was not."""
    with trio.move_on_after(1.5) as scope:
        async with fanout.stream(trio.sleep, [1, 100], policy=policy) as results:
            async for _ in results:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
    assert scope.cancelled_caught


async def test_a_reader_outside_of_the_cancelled_scope_is_not_told_that_this_is_the_end(autojump_clock):
    """A partial result must not look like the whole."""
    told = []

    async def read(results):
        assert (await results.receive()).index == 0
        with pytest.raises(trio.ClosedResourceError):
            await results.receive()
        told.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1.5) as scope:
            async with fanout.stream(trio.sleep, [1, 100]) as results:
                nursery.start_soon(read, results)
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert told == [1.5]


@DO_POLICIES
async def test_a_reader_outside_of_the_cancelled_scope_gets_a_failure_once(policy, autojump_clock):
    raised = []

    async def read(results):
        try:
            await rest_of(results)
        except (ItemError, fanout.FanOutError):
            raised.append("reader")
        except trio.ClosedResourceError:
            pass

    async def fn(x):
        await fail_when_cancelled(ItemError)

    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            try:
                async with fanout.stream(fn, range(3), policy=policy) as results:
                    nursery.start_soon(read, results)
                    await trio.sleep_forever()
            except (ItemError, fanout.FanOutError):
                raised.append("block")
    assert len(raised) == 1


@GROUP_POLICIES
async def test_a_mixed_group_gives_trio_the_cancelled_and_the_policy_the_rest(policy, autojump_clock):
    async def fn(x):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled, ItemError)
            nursery.start_soon(trio.sleep_forever)

    settle = isinstance(policy, fanout.Settle)
    with trio.move_on_after(1) as scope:
        with nullcontext() if settle else pytest.RaisesGroup(ItemError, flatten_subgroups=True):
            async with fanout.stream(fn, [1], policy=policy) as results:
                await rest_of(results)
    assert scope.cancelled_caught == settle


# What is no Exception


@GROUP_POLICIES
@pytest.mark.parametrize("cls", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("block", ["waits", "reads", "is cancelled", "fails"])
async def test_an_interrupt_of_an_item_cancels_the_block_and_is_unwrapped(block, cls, make, policy, autojump_clock):
    error = cls()
    block_saw = []

    async def fn(x):
        try:
            await trio.sleep(x)
        finally:
            if x == 2:
                raise error

    with nothing_left(), pytest.raises(cls) as excinfo, trio.move_on_after(1 if block == "is cancelled" else 99):
        async with fanout.stream(fn, make(range(5)), limit=3, policy=policy) as results:
            try:
                if block == "reads":
                    await rest_of(results)
                try:
                    await trio.sleep_forever()
                finally:
                    if block == "fails":
                        raise SourceError
            except BaseException as exc:
                block_saw.append(type(exc))
                raise
    assert excinfo.value is error
    assert block_saw == [SourceError if block == "fails" else trio.Cancelled]


async def test_an_interrupt_is_not_taken_for_the_end_of_the_iteration(autojump_clock):
    """What comes after the loop must not happen: it would commit half of the work."""
    steps = []
    with pytest.raises(KeyboardInterrupt):
        async with fanout.stream(fails_at({1: KeyboardInterrupt()}, lambda x: x), range(3)) as results:
            async for index, _, _ in results:
                steps.append(index)
            steps.append("commit")
    assert steps == [0]


async def test_a_reader_outside_is_not_told_that_an_interrupt_is_the_end(autojump_clock):
    async def read(results):
        with pytest.raises(trio.ClosedResourceError):
            await results.receive()

    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyboardInterrupt):
            async with fanout.stream(fails_at({0: KeyboardInterrupt()}), range(3), limit=1) as results:
                nursery.start_soon(read, results)
                await trio.sleep_forever()


async def test_an_interrupt_on_leaving_is_not_swallowed(autojump_clock):
    async def fn(x):
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt

    for block_error in (None, SourceError()):
        with nothing_left(), pytest.raises(KeyboardInterrupt) as excinfo:
            async with fanout.stream(fn, range(1)):
                await trio.sleep(1)
                if block_error:
                    raise block_error
        assert ("SourceError" in printed(excinfo.value)) == bool(block_error)


# Sources that raise


@GROUP_POLICIES
async def test_what_a_source_raises_comes_after_the_results_and_unwrapped(shared, make, policy, autojump_clock):
    error = SourceError()

    def items():
        yield from range(3)
        raise error

    limit = limit_of(1, shared)
    source = iter(items()) if make is list else make(items())
    got = []
    with nothing_left(), pytest.raises(SourceError) as excinfo:
        async with fanout.stream(fails_at({}), source, limit=limit, policy=policy) as results:
            async for index, _, _ in results:
                got.append(index)
    assert excinfo.value is error
    assert got == [0, 1, 2]


@GROUP_POLICIES
async def test_what_a_source_raised_is_raised_on_leaving_if_it_was_not_read(policy, autojump_clock):
    error = SourceError()

    async def source():
        yield 0
        raise error

    with nothing_left(), pytest.raises(SourceError) as excinfo:
        async with fanout.stream(fails_at({}), source(), policy=policy):
            await trio.sleep(5)
    assert excinfo.value is error


async def test_failures_so_far_are_chained_to_what_the_source_raises(autojump_clock):
    async def source():
        yield 0
        await trio.sleep(2)
        raise SourceError

    with pytest.raises(SourceError) as excinfo:
        async with fanout.stream(fails_at({0: ItemError("shown")}), source(), policy=fanout.Collect()) as results:
            await rest_of(results)
    assert "ItemError: shown" in printed(excinfo.value)


async def test_a_source_that_cannot_be_iterated_after_all(make):
    class Broken:
        def __iter__(self):
            raise SourceError

    class AsyncBroken:
        def __aiter__(self):
            raise SourceError

    with nothing_left(), pytest.raises(SourceError):
        async with fanout.stream(double_at_once, AsyncBroken() if make is aiter_of else Broken()) as results:
            await rest_of(results)


async def test_an_error_in_closing_the_source_is_raised_on_leaving(autojump_clock):
    async def source():
        try:
            while True:
                yield 1
        finally:
            raise SourceError

    with nothing_left(), pytest.raises(SourceError):
        async with fanout.stream(fails_at({}), source(), limit=2):
            await trio.sleep(0.5)


# Nothing is left behind


@GROUP_POLICIES
@pytest.mark.parametrize("aclose", [False, True])
async def test_a_channel_that_is_kept_keeps_no_results_and_no_failures(aclose, ordered, policy, autojump_clock):
    alive = weakref.WeakSet()

    class OwnError(Exception):
        def __init__(self):
            alive.add(self)

    async def fn(x):
        await trio.sleep(1 if x else 2)
        if x in (0, 4):
            raise OwnError
        thing = Thing()
        alive.add(thing)
        return thing

    try:
        async with fanout.stream(fn, range(5), policy=policy, ordered=ordered) as results:
            await trio.sleep(1.5 if aclose else 5)
            if aclose:
                await results.aclose()
                await wait_all_tasks_blocked()
                assert not any(isinstance(thing, Thing) for thing in alive)
    except (OwnError, fanout.FanOutError):
        pass
    assert results
    assert list(alive) == []


async def ends(kind, x):
    """An item whose stream ends in the way that `kind` says, with some work before."""
    if x < 4:
        return Thing()
    await trio.sleep(x % 3 + 1)
    match kind:
        case "failure" | "block fails over failure":
            raise ValueError(x)
        case "group":
            raise ExceptionGroup("group", [ValueError(x), KeyError(x)])
        case "frozen":
            raise FrozenError(x)
        case "cleanup" | "block fails over cleanup":
            await fail_when_cancelled(KeyError(x))
        case "interrupt":
            raise KeyboardInterrupt
        case "outside" | "block fails" | "break":
            await trio.sleep_forever()
        case "end":
            raise trio.EndOfChannel
    return Thing()


KINDS = [
    *("success", "failure", "group", "frozen", "cleanup", "interrupt", "outside", "break", "end", "stop", "aclose"),
    *("block fails", "block fails over failure", "block fails over cleanup", "source"),
]


def broken_after(items):
    yield from items
    raise OSError


async def attempt(kind, policy, make, limit, ordered):
    items = broken_after(range(8)) if kind == "source" else range(8)
    with trio.move_on_after(8 if kind in ("outside", "cleanup") else 1000):
        with suppress(Exception, KeyboardInterrupt):
            async with fanout.stream(
                functools.partial(ends, kind), make(items), limit=limit, policy=policy, ordered=ordered
            ) as results:
                if kind == "stop":
                    results.stop()
                if kind.startswith("block fails"):
                    await trio.sleep(5)
                    raise OSError
                async for index, _, _ in results:
                    if kind == "break" and index == 3:
                        break
                    if kind == "aclose" and index == 3:
                        await results.aclose()


@GROUP_POLICIES
@pytest.mark.parametrize("make", [iter, aiter_of])
@pytest.mark.parametrize("kind", KINDS)
async def test_no_task_no_token_and_no_reference_cycle_is_left(kind, make, policy, autojump_clock):
    limiter = trio.CapacityLimiter(3)
    await attempt(kind, policy, make, 3, ordered=True)  # what is made once and kept forever is no leak
    for limit in (3, limiter):
        for ordered in (True, False):
            with no_cycles(), nothing_left(limiter):
                await attempt(kind, policy, make, limit, ordered)
