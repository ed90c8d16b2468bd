"""What each policy does with failures, what it gives back and what it raises."""

import math
import pickle

import attrs
import outcome
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import ALL_POLICIES, POLICIES, FrozenError, Gauge, aiter_of, double, fail_when_cancelled, notes_of


async def quick_aiter_of(items):
    """An async iterable that never waits."""
    for item in items:
        yield item


class Boom(Exception):
    pass


async def odd_fails(x):
    await trio.sleep(x / 10)
    if x % 2:
        raise Boom(x)
    return x * 10


async def cleanup_fails(x):
    """Fails out of its cancellation."""
    await fail_when_cancelled(KeyError(f"cleanup of {x}"))


# The policies themselves


@pytest.mark.parametrize("policy", [*ALL_POLICIES, fanout.Collect(max_failures=3), fanout.Settle(move_on_after=2.5)])
def test_policies_are_frozen_values(policy):
    assert attrs.has(type(policy))
    with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
        policy.max_failures = 1
    assert policy == attrs.evolve(policy)
    assert hash(policy) == hash(attrs.evolve(policy))
    assert pickle.loads(pickle.dumps(policy)) == policy


async def test_a_policy_may_serve_any_number_of_runs(autojump_clock):
    policy = fanout.Collect(max_failures=2)
    for _ in range(2):
        with pytest.raises(fanout.FanOutError) as excinfo:
            await fanout.map(odd_fails, range(9), policy=policy)
        assert excinfo.value.indices == (1, 3)


# FailFast


async def test_fail_fast_is_the_default(autojump_clock):
    for call in (fanout.map, fanout.do):
        with pytest.raises(Boom):
            await call(odd_fails, range(4))

    async def fail(x):
        raise Boom

    with pytest.raises(Boom):
        await fanout.fan_out([fail], 1)


@pytest.mark.parametrize("policy", [fanout.FailFast(), fanout.Collect(), fanout.Settle(), fanout.FirstSuccess()])
async def test_no_failure_gives_back_the_results(policy):
    async def fn(x):
        return x

    results = await fanout.map(fn, range(3), policy=policy)
    fanned = await fanout.fan_out([fn] * 3, 7, policy=policy)
    match policy:
        case fanout.Settle():
            assert results == [outcome.Value(x) for x in range(3)]
            assert fanned == [outcome.Value(7)] * 3
        case fanout.FirstSuccess():
            assert results in range(3)
            assert fanned == 7
        case _:
            assert results == [0, 1, 2]
            assert fanned == [7, 7, 7]


@pytest.mark.parametrize("policy", [fanout.FailFast(), fanout.Collect(), fanout.Settle()])
async def test_no_items_give_back_an_empty_list(make, policy):
    assert await fanout.map(odd_fails, make([]), policy=policy) == []
    assert await fanout.fan_out([], 1, policy=policy) == []


async def test_fail_fast_raises_the_failure_itself_and_cancels_the_run(autojump_clock):
    error = Boom("the one")
    cancelled = []

    async def fn(x):
        try:
            await trio.sleep(x)
        except trio.Cancelled:
            cancelled.append(x)
            raise
        if x == 2:
            raise error

    with pytest.raises(Boom) as excinfo:
        await fanout.map(fn, [1, 2, 3, 4, 5], limit=4)
    assert excinfo.value is error
    assert trio.current_time() == 2
    assert sorted(cancelled) == [3, 4, 5]


async def test_fail_fast_starts_nothing_after_a_failure(make):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            if x == 2:
                raise Boom

    with pytest.raises(Boom):
        await fanout.map(fn, make(range(100)), limit=1)
    assert gauge.began == [0, 1, 2]


async def test_fail_fast_keeps_the_failures_cause_context_and_traceback():
    cause, context = ValueError("cause"), KeyError("context")

    async def fn(x):
        try:
            raise context
        except KeyError:
            raise Boom from cause

    with pytest.raises(Boom) as excinfo:
        await fanout.map(fn, [1])
    assert excinfo.value.__cause__ is cause
    assert excinfo.value.__context__ is context
    assert "fn" in [entry.name for entry in excinfo.traceback]


async def test_fail_fast_adds_no_context_to_a_failure_that_has_none():
    async def fn(x):
        raise Boom

    with pytest.raises(Boom) as excinfo:
        await fanout.map(fn, [1, 2])
    assert excinfo.value.__context__ is None
    assert excinfo.value.__cause__ is None


async def fail_together(count, policy, messages="failure {}".format):
    """Run `count` items that all fail in one turn of the event loop, none of them by a cancellation."""
    event = trio.Event()

    async def fn(x):
        if x == count - 1:
            await wait_all_tasks_blocked()
            event.set()  # the others are on their way from here on: no cancellation reaches them
        else:
            await event.wait()
        raise Boom(messages(x))

    await fanout.map(fn, range(count), limit=math.inf, policy=policy)


@pytest.mark.parametrize("attempt", range(5))
async def test_fail_fast_raises_the_lowest_index_of_those_that_failed_together(attempt):
    with pytest.raises(Boom, match="failure 0") as excinfo:
        await fail_together(4, fanout.FailFast())
    assert excinfo.value.__notes__ == [
        "item 0",
        "item 1 also failed: Boom: failure 1",
        "item 2 also failed: Boom: failure 2",
        "item 3 also failed: Boom: failure 3",
    ]


async def test_fail_fast_tells_of_ten_others_and_counts_the_rest():
    with pytest.raises(Boom) as excinfo:
        await fail_together(929, fanout.FailFast())
    assert excinfo.value.__notes__ == [
        "item 0",
        *(f"item {x} also failed: Boom: failure {x}" for x in range(1, 11)),
        "and 918 more",
    ]


@pytest.mark.parametrize(("count", "last"), [(11, "item 10 also failed: Boom: failure 10"), (12, "and 1 more")])
async def test_fail_fast_counts_the_rest_only_where_there_is_one(count, last):
    with pytest.raises(Boom) as excinfo:
        await fail_together(count, fanout.FailFast())
    assert excinfo.value.__notes__[-1] == last
    assert len(excinfo.value.__notes__) == count


async def test_fail_fast_notes_are_one_line_each_and_cut_at_80_characters():
    messages = ["first", "x" * 80, "y" * 81, "two\nlines", ""]
    with pytest.raises(Boom) as excinfo:
        await fail_together(5, fanout.FailFast(), messages.__getitem__)
    notes = excinfo.value.__notes__
    assert notes[1] == "item 1 also failed: Boom: " + "x" * 80
    assert notes[2] == "item 2 also failed: Boom: " + "y" * 79 + "…"
    assert notes[3] == "item 3 also failed: Boom: two lines"
    assert notes[4] == "item 4 also failed: Boom"


async def test_fail_fast_notes_survive_a_message_that_cannot_be_made():
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError

    event = trio.Event()

    async def fn(x):
        if x == 2:
            await wait_all_tasks_blocked()
            event.set()
        else:
            await event.wait()
        raise (Boom, Unprintable, Boom)[x]

    with pytest.raises(Boom) as excinfo:
        await fanout.map(fn, range(3))
    assert excinfo.value.__notes__[1].startswith("item 1 also failed: Unprintable")


async def test_no_note_holds_the_item_itself(autojump_clock):
    async def fn(x):
        try:
            await trio.sleep(1)
        finally:
            raise Boom

    with pytest.raises(Boom) as excinfo:
        await fanout.map(fn, ["secret one", "secret two"])
    assert "secret" not in "".join(excinfo.value.__notes__)
    assert len(excinfo.value.__notes__) == 2


async def test_a_failure_out_of_the_cancellation_is_secondary(autojump_clock):
    """It is raised only where there is no other, though its index is lower."""

    async def fn(x):
        if x == 2:
            await trio.sleep(1)
            raise Boom("the cause")
        await cleanup_fails(x)

    with pytest.raises(Boom, match="the cause") as excinfo:
        await fanout.map(fn, range(4))
    assert excinfo.value.__notes__ == [
        "item 2",
        "item 0 also failed: KeyError: 'cleanup of 0'",
        "item 1 also failed: KeyError: 'cleanup of 1'",
        "item 3 also failed: KeyError: 'cleanup of 3'",
    ]


@pytest.mark.parametrize("how", ["from None", "from other", "in a group", "two deep", "retried"])
async def test_a_secondary_failure_is_recognized_in_any_form(how, autojump_clock):
    async def fn(x):
        if x == 1:
            await trio.sleep(1)
            raise Boom("the cause")
        if how == "in a group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cleanup_fails, "a child")
                nursery.start_soon(cleanup_fails, "another child")
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if how == "from None":
                raise OSError("secondary") from None
            if how == "from other":
                raise OSError("secondary") from ValueError()
            if how == "two deep":
                try:
                    raise ValueError
                except ValueError:
                    raise OSError("secondary")  # noqa: B904
            try:
                await trio.sleep(1)
            finally:
                raise OSError("secondary")

    with pytest.raises(Boom, match="the cause") as excinfo:
        await fanout.map(fn, range(2))
    assert excinfo.value.__notes__[0] == "item 1"
    assert excinfo.value.__notes__[1].startswith("item 0 also failed: ")


async def test_a_failure_during_but_not_out_of_the_cancellation_is_primary(autojump_clock):
    async def fn(x):
        if x == 1:
            await trio.sleep(1)
            raise Boom
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        raise OSError("shielded")

    with pytest.raises(OSError, match="shielded") as excinfo:
        await fanout.map(fn, range(2))
    assert excinfo.value.__notes__ == ["item 0", "item 1 also failed: Boom"]


async def test_a_time_out_is_not_hidden_by_a_cleanup_with_a_lower_index(autojump_clock):
    async def source():
        yield "early"
        await trio.sleep(1)
        yield "late"

    async def fn(x):
        if x == "early":
            with trio.CancelScope(shield=True):  # its own time-out passes it by, until that of the other has come
                await trio.sleep(8)
        await cleanup_fails(x) if x == "early" else await trio.sleep_forever()

    with pytest.raises(trio.TooSlowError) as excinfo:
        await fanout.map(fn, source(), item_timeout=5)
    assert excinfo.value.__notes__ == ["item 1", "item 0 also failed: KeyError: 'cleanup of early'"]


async def test_a_time_out_inside_an_item_outranks_lower_cleanups(autojump_clock):
    async def fn(x):
        if x == 3:
            with trio.fail_after(2):
                await trio.sleep_forever()
        await cleanup_fails(x)

    with pytest.raises(trio.TooSlowError) as excinfo:
        await fanout.map(fn, range(5))
    notes = excinfo.value.__notes__
    assert notes[0] == "item 3"
    assert [note.split(" also")[0] for note in notes[1:]] == ["item 0", "item 1", "item 2", "item 4"]


async def test_secondary_failures_are_raised_where_there_is_no_other(autojump_clock):
    """The run is cancelled from outside, and two cleanups fail: the first of them is raised."""
    with pytest.raises(KeyError, match="cleanup of 0") as excinfo, trio.move_on_after(1):
        await fanout.map(cleanup_fails, range(2))
    assert excinfo.value.__notes__ == ["item 0", """item 1 also failed: KeyError: 'cleanup of 1'"""]


@pytest.mark.parametrize("item_timeout", [None, 5])
async def test_an_exception_that_takes_no_note_is_raised_as_it_is(item_timeout, autojump_clock):
    errors = [FrozenError(code) for code in range(3)]
    event = trio.Event()

    async def fn(x):
        await trio.sleep(x)
        if x == 2:
            event.set()
        else:
            await event.wait()
        raise errors[x]

    for kwargs in ({}, {"limit": trio.CapacityLimiter(3)}):
        event = trio.Event()
        with pytest.raises(FrozenError) as excinfo:
            await fanout.map(fn, range(3), item_timeout=item_timeout, **kwargs)
        assert excinfo.value is errors[0]
    with pytest.raises(fanout.FanOutError) as collected:
        await fanout.map(fn, range(3), item_timeout=item_timeout, policy=fanout.Collect())
    assert list(collected.value.failures.values()) == errors
    settled = await fanout.map(fn, range(3), item_timeout=item_timeout, policy=fanout.Settle())
    assert [one.error for one in settled] == errors
    with pytest.raises(fanout.FanOutError) as excinfo2:
        await fanout.fan_out([fn], 2, item_timeout=item_timeout, policy=fanout.FirstSuccess())
    assert excinfo2.value.exceptions == (errors[2],)


async def test_the_same_exception_object_from_two_items_is_two_failures(autojump_clock):
    error = Boom("shared")
    event = trio.Event()

    async def fn(x):
        if x == 2:
            await trio.sleep(1)
            event.set()
        elif x == 0:
            await event.wait()
        if x != 1:
            raise error

    with pytest.raises(Boom) as excinfo:
        await fanout.map(fn, range(3))
    assert excinfo.value is error
    assert error.__notes__ == ["item 0", "item 2 also failed: Boom: shared"]
    with pytest.raises(fanout.FanOutError) as collected:
        await fanout.map(fn, range(3), policy=fanout.Collect())
    assert collected.value.indices == (0, 2)
    assert collected.value.exceptions == (error, error)
    settled = await fanout.map(fn, range(3), policy=fanout.Settle())
    assert [type(one) for one in settled] == [outcome.Error, outcome.Value, outcome.Error]


# Collect


async def test_collect_goes_on_and_raises_every_failure(autojump_clock):
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(odd_fails, range(5), policy=fanout.Collect(), limit=2)
    error = excinfo.value
    assert error.indices == (1, 3)
    assert {index: exc.args for index, exc in error.failures.items()} == {1: (1,), 3: (3,)}
    assert tuple(error.failures.values()) == error.exceptions
    assert error.results == {0: 0, 2: 20, 4: 40}
    assert error.total == 5
    assert str(error).startswith("2 of 5 items failed: 1, 3")


async def test_collect_indices_ascend_in_any_order_of_failures(autojump_clock):
    async def fn(x):
        await trio.sleep(10 - x)
        raise Boom(x)

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(10), policy=fanout.Collect())
    assert excinfo.value.indices == tuple(range(10))
    assert [exc.args for exc in excinfo.value.exceptions] == [(x,) for x in range(10)]
    assert list(excinfo.value.failures) == list(range(10))


@pytest.mark.parametrize("limit", [1, 2, 40])
async def test_collect_cancels_the_run_at_max_failures(limit, autojump_clock):
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            return await odd_fails(x)

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(60), policy=fanout.Collect(max_failures=3), limit=limit)
    assert excinfo.value.indices == (1, 3, 5)
    assert excinfo.value.results == {0: 0, 2: 20, 4: 40}
    assert excinfo.value.total == len(gauge.began) <= 5 + limit


async def test_collect_with_fewer_failures_than_the_maximum_goes_on(autojump_clock):
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(odd_fails, range(5), policy=fanout.Collect(max_failures=3))
    assert excinfo.value.total == 5
    assert len(excinfo.value.results) == 3


async def test_collect_of_one_is_fail_fast_with_the_index_and_partial_results(autojump_clock):
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(odd_fails, [0, 2, 3, 8], policy=fanout.Collect(max_failures=1))
    assert excinfo.value.indices == (2,)
    assert excinfo.value.results == {0: 0, 1: 20}
    assert excinfo.value.total == 4
    assert trio.current_time() == pytest.approx(0.3)


async def test_collect_records_failures_of_the_cancellation_too(autojump_clock):
    async def fn(x):
        if x == 1:
            await trio.sleep(1)
            raise Boom
        await cleanup_fails(x)

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(3), policy=fanout.Collect(max_failures=1))
    assert excinfo.value.indices == (0, 1, 2)


async def test_collect_in_do_keeps_no_results(autojump_clock):
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.do(odd_fails, range(4), policy=fanout.Collect())
    assert excinfo.value.results == {}
    assert excinfo.value.indices == (1, 3)
    assert excinfo.value.total == 4
    assert await fanout.do(odd_fails, [0, 2], policy=fanout.Collect()) is None


async def test_collect_in_fan_out_is_keyed_by_the_place_of_the_function():
    async def good(x):
        return x

    async def bad(x):
        raise Boom

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.fan_out([good, bad, good], 3, policy=fanout.Collect())
    assert excinfo.value.indices == (1,)
    assert excinfo.value.results == {0: 3, 2: 3}


async def test_failures_can_be_retried_by_their_indices(autojump_clock):
    items = [1, 2, 3]
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(odd_fails, items, policy=fanout.Collect())
    assert [items[index] for index in excinfo.value.indices] == [1, 3]


# Collect(fatal=)


class WrongKey(Boom):
    pass


def deep(exc):
    return ExceptionGroup("outer", [OSError(), ExceptionGroup("inner", [ValueError(), exc])])


def fails_with(errors, cancelled=None):
    """An item that waits for as many seconds as its number, and then raises its error if it has one."""

    async def fn(x):
        try:
            await trio.sleep(x)
        except trio.Cancelled as exc:
            if cancelled is not None:
                cancelled.append((x, exc.reason))
            raise
        if x in errors:
            raise errors[x]
        return x * 10

    return fn


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (WrongKey(), WrongKey),
        (WrongKey(), Boom),
        (WrongKey(), (OSError, Boom)),
        (deep(WrongKey()), WrongKey),
        (deep(WrongKey()), ExceptionGroup),
        (fanout.FanOutError({0: WrongKey()}, {}, 1), WrongKey),
        (fanout.FanOutError({0: WrongKey()}, {}, 1), fanout.FanOutError),
    ],
)
async def test_a_fatal_failure_cancels_the_run(error, fatal, autojump_clock):
    cancelled = []
    errors = {1: KeyError(), 3: error, 5: KeyError()}
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fails_with(errors, cancelled), range(9), limit=4, policy=fanout.Collect(fatal=fatal))
    assert excinfo.value.failures == {1: errors[1], 3: error}
    assert excinfo.value.items == {1: 1, 3: 3}
    assert excinfo.value.results == {0: 0, 2: 20}
    assert excinfo.value.total == 7
    assert trio.current_time() == 3
    assert sorted(x for x, _ in cancelled) == [4, 5, 6]
    assert {reason for _, reason in cancelled} <= {
        f"item 3 failed with {kind.__name__}, which is fatal" for kind in (WrongKey, ExceptionGroup, fanout.FanOutError)
    }


def caused_by(cause):
    try:
        raise ValueError from cause
    except ValueError as exc:
        return exc


def in_the_context_of(context):
    exc = ValueError()
    exc.__context__ = context
    return exc


@pytest.mark.parametrize(
    "error",
    [
        Boom(),
        deep(Boom()),
        caused_by(WrongKey()),
        in_the_context_of(WrongKey()),
        deep(caused_by(WrongKey())),
        fanout.DependencyFailed("a", "b"),
    ],
)
async def test_other_failures_are_not_fatal(error, autojump_clock):
    fatal = (WrongKey, fanout.DependencyFailed)
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fails_with({1: error}), range(4), policy=fanout.Collect(fatal=fatal))
    assert excinfo.value.indices == (1,)
    assert excinfo.value.total == 4


@pytest.mark.parametrize(
    ("maximum", "indices", "reason"),
    [
        (1, (1,), "item 1 failed, the last that max_failures allows"),
        (2, (1, 2), "item 2 failed with WrongKey, which is fatal"),
        (3, (1, 2), "item 2 failed with WrongKey, which is fatal"),
    ],
)
async def test_whichever_limit_of_collect_is_reached_first_ends_the_run(maximum, indices, reason, autojump_clock):
    cancelled = []
    fn = fails_with({1: Boom(), 2: WrongKey(), 3: Boom()}, cancelled)
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(5), policy=fanout.Collect(max_failures=maximum, fatal=WrongKey))
    assert excinfo.value.indices == indices
    assert set(cancelled) == {(x, reason) for x in range(5) if x > indices[-1]}


async def test_a_fatal_failure_records_those_of_the_cancellation_too(autojump_clock):
    async def fn(x):
        if x == 1:
            await trio.sleep(1)
            raise WrongKey
        await cleanup_fails(x)

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(3), policy=fanout.Collect(fatal=WrongKey))
    assert excinfo.value.indices == (0, 1, 2)


async def test_a_fatal_failure_ends_do_and_fan_out(autojump_clock):
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.do(fails_with({1: WrongKey()}), range(4), policy=fanout.Collect(fatal=WrongKey))
    assert (excinfo.value.indices, excinfo.value.results, trio.current_time()) == ((1,), {}, 1)

    async def fatal(x):
        raise WrongKey

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.fan_out([fatal, trio.sleep], 5, policy=fanout.Collect(fatal=WrongKey))
    assert (excinfo.value.indices, trio.current_time()) == ((0,), 1)


async def test_a_fatal_failure_ends_a_stream(autojump_clock):
    seen = []
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.stream(
            fails_with({1: Boom(), 3: WrongKey()}), range(6), policy=fanout.Collect(fatal=WrongKey)
        ) as results:
            async for index, _, value in results:
                seen.append((index, value))
    assert seen == [(0, 0), (2, 20)]
    assert excinfo.value.indices == (1, 3)
    assert trio.current_time() == 3


async def test_a_fatal_failure_ends_a_group(autojump_clock):
    fn = fails_with({1: Boom(), 3: WrongKey()})
    with pytest.raises(fanout.FanOutError) as excinfo:
        async with fanout.open_group(policy=fanout.Collect(fatal=WrongKey)) as group:
            handles = [group.start_soon(fn, x) for x in range(6)]
            await trio.sleep_forever()
    assert excinfo.value.indices == (1, 3)
    assert [handle.outcome is None for handle in handles] == [False] * 4 + [True] * 2
    assert trio.current_time() == 3


async def test_a_fatal_failure_ends_a_graph(autojump_clock):
    async def fatal():
        await trio.sleep(1)
        raise WrongKey

    async def skipped(_):
        raise AssertionError

    async def slow():
        await trio.sleep(9)

    steps = {
        "fatal": fanout.Step(fatal),
        "needs it": fanout.Step(skipped, ["fatal"]),
        "slow": fanout.Step(slow),
        "needs slow": fanout.Step(skipped, ["slow"]),
    }
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.run_graph(steps, policy=fanout.Collect(fatal=WrongKey))
    assert {name: type(exc) for name, exc in excinfo.value.failures.items()} == {
        "fatal": WrongKey,
        "needs it": fanout.DependencyFailed,
    }
    assert trio.current_time() == 1


async def test_a_failed_dependency_is_never_fatal(autojump_clock):
    async def fail():
        raise ValueError

    async def slow():
        await trio.sleep(9)
        return "done"

    steps = {"a": fanout.Step(fail), "b": fanout.Step(fail, ["a"]), "c": fanout.Step(slow)}
    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.run_graph(steps, policy=fanout.Collect(fatal=fanout.DependencyFailed))
    assert excinfo.value.indices == ("a", "b")
    assert excinfo.value.results == {"c": "done"}


def test_a_single_fatal_class_is_the_same_as_a_tuple_of_it():
    assert fanout.Collect(fatal=Boom) == fanout.Collect(fatal=(Boom,))
    assert hash(fanout.Collect(fatal=Boom)) == hash(fanout.Collect(fatal=(Boom,)))
    assert fanout.Collect(fatal=Boom).fatal == (Boom,)
    assert fanout.Collect().fatal == ()
    assert fanout.Collect(2, Boom) == fanout.Collect(max_failures=2, fatal=Boom)
    assert pickle.loads(pickle.dumps(fanout.Collect(fatal=Boom))) == fanout.Collect(fatal=Boom)


@pytest.mark.parametrize(
    ("fatal", "got"),
    [
        (None, "None"),
        ([Boom], "a list"),
        ("Boom", "a str"),
        (Boom(), "a Boom"),
        (KeyboardInterrupt, "the class KeyboardInterrupt"),
        (trio.Cancelled, "the class Cancelled"),
        (BaseExceptionGroup, "the class BaseExceptionGroup"),
        (ExceptionGroup[Boom], "a GenericAlias"),
        ((Boom, (OSError,)), "a tuple in a tuple"),
        ((Boom, None), "None in a tuple"),
        ((int,), "the class int in a tuple"),
        (lambda exc: True, "a function"),
    ],
)
def test_fatal_takes_classes_of_exceptions(fatal, got):
    with pytest.raises(TypeError) as excinfo:
        fanout.Collect(fatal=fatal)
    assert str(excinfo.value) == f"fatal must be a subclass of Exception or a tuple of them, got {got}"


async def test_the_class_of_a_failure_is_not_asked_whether_it_is_fatal():
    class Pretends(Exception):
        __class__ = WrongKey

    class Denies(type):
        def __instancecheck__(cls, instance):
            return False

        __subclasscheck__ = __instancecheck__

    class Denied(Exception, metaclass=Denies):
        pass

    async def fn(x):
        raise (Pretends, Denied, Boom)[x]

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(3), limit=1, policy=fanout.Collect(fatal=(WrongKey, Denied)))
    assert excinfo.value.indices == (0, 1)


# Settle


async def test_settle_gives_back_the_outcome_of_each_item(autojump_clock):
    outcomes = await fanout.map(odd_fails, range(4), policy=fanout.Settle())
    assert [type(one) for one in outcomes] == [outcome.Value, outcome.Error] * 2
    assert [one.value for one in outcomes[::2]] == [0, 20]
    assert [one.error.args for one in outcomes[1::2]] == [(1,), (3,)]


async def test_settle_moves_on_when_its_time_has_passed(make, autojump_clock):
    """From a source with a length there is an outcome for each item; from another, for each that was taken."""

    async def fn(x):
        await trio.sleep(x)
        return x

    outcomes = await fanout.map(fn, make([1, 9, 3, 9, 5, 6]), limit=2, policy=fanout.Settle(move_on_after=5))
    # Item 0 ends at 1, item 2 at 4; items 1 and 3 run when the time is over.
    assert trio.current_time() == 5
    assert [isinstance(one, outcome.Value) for one in outcomes[:4]] == [True, False, True, False]
    assert [
        (type(one.error), one.error.index, one.error.started) for one in outcomes if type(one) is outcome.Error
    ] == [
        (fanout.Unfinished, 1, True),
        (fanout.Unfinished, 3, True),
        *([(fanout.Unfinished, 4, False), (fanout.Unfinished, 5, False)] if make is list else []),
    ]
    with pytest.raises(fanout.Unfinished):
        outcomes[1].unwrap()


async def test_settle_takes_the_length_of_an_async_source_that_has_one(autojump_clock):
    class Sized:
        def __len__(self):
            return 4

        def __aiter__(self):
            return aiter_of([1, 9, 9, 9])

    outcomes = await fanout.map(trio.sleep, Sized(), limit=2, policy=fanout.Settle(move_on_after=5))
    assert [type(one) for one in outcomes] == [outcome.Value] + [outcome.Error] * 3
    assert [one.error.started for one in outcomes[1:]] == [True, True, False]


class Promises:
    """A source with a wrong length, which ends after the items that it has."""

    def __init__(self, items, length, *, is_async=False):
        self.items, self.length = items, length
        if is_async:
            self.__class__ = AsyncPromises

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(self.items)


class AsyncPromises(Promises):
    def __aiter__(self):
        return aiter_of(self.items)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("length", [0, 2, 10])
@pytest.mark.parametrize("limit", [1, 3, 40])
@pytest.mark.parametrize("policy", [fanout.Settle(), fanout.Settle(move_on_after=5)], ids=str)
async def test_settle_has_one_outcome_for_each_item_it_was_given(policy, limit, length, is_async, autojump_clock):
    """Whatever its length said: a lazy data set may end before it."""
    source = Promises([0, 1, 1], length, is_async=is_async)
    outcomes = await fanout.map(trio.sleep, source, limit=limit, policy=policy)
    assert outcomes == [outcome.Value(None)] * 3


async def test_settle_has_no_outcome_for_items_that_others_took_from_the_list():
    items = list(range(10))

    async def take_another(x):
        items.pop()
        return x

    outcomes = await fanout.map(take_another, items, limit=1, policy=fanout.Settle())
    assert outcomes == [outcome.Value(x) for x in range(5)]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_time_limit_fills_up_no_list_whose_source_has_ended(is_async, autojump_clock):
    source = Promises([1, 9], 10, is_async=is_async)
    outcomes = await fanout.map(trio.sleep, source, policy=fanout.Settle(move_on_after=5))
    assert [type(one) for one in outcomes] == [outcome.Value, outcome.Error]


async def test_settle_tells_items_that_wait_for_a_token_from_those_that_run(make, autojump_clock):
    limiter = trio.CapacityLimiter(2)
    limiter.acquire_on_behalf_of_nowait("other")
    outcomes = await fanout.map(trio.sleep, make([9, 9, 9]), limit=limiter, policy=fanout.Settle(move_on_after=5))
    started = [one.error.started for one in outcomes]
    assert started[:1] == [True]
    assert not any(started[1:])
    if make is list:
        assert len(started) == 3


async def test_settle_returns_early_when_all_is_done(autojump_clock):
    outcomes = await fanout.map(trio.sleep, [1, 2], policy=fanout.Settle(move_on_after=5))
    assert outcomes == [outcome.Value(None)] * 2
    assert trio.current_time() == 2


@pytest.mark.parametrize("make", [list, iter, aiter_of, quick_aiter_of])
async def test_settle_that_moves_on_at_once_starts_nothing(make, autojump_clock):
    began = []

    async def fn(x):
        began.append(x)

    outcomes = await fanout.map(fn, make([1, 2]), policy=fanout.Settle(move_on_after=0))
    assert [type(one.error) for one in outcomes] == [fanout.Unfinished] * len(outcomes)
    assert [one.error.started for one in outcomes] == [False] * len(outcomes)
    assert began == []
    assert len(outcomes) == {list: 2, quick_aiter_of: 2}.get(make, 0)  # those that are known to exist
    assert trio.current_time() == 0


async def test_settle_keeps_what_items_make_of_their_cancellation(autojump_clock):
    async def fn(x):
        match x:
            case 0:
                await cleanup_fails(x)
            case 1:
                with trio.CancelScope(shield=True):
                    await trio.sleep(3)
                return "shielded"
            case 2:
                try:
                    await trio.sleep_forever()
                except trio.Cancelled:
                    return "caught"
        await trio.sleep_forever()
        raise AssertionError

    outcomes = await fanout.map(fn, range(4), policy=fanout.Settle(move_on_after=2))
    assert isinstance(outcomes[0].error, KeyError)
    assert outcomes[1:3] == [outcome.Value("shielded"), outcome.Value("caught")]
    assert outcomes[3].error.started is True
    assert trio.current_time() == 3


async def test_settle_in_fan_out_moves_on_too(autojump_clock):
    async def quick(x):
        return x

    outcomes = await fanout.fan_out([trio.sleep, quick], 7, policy=fanout.Settle(move_on_after=1))
    assert outcomes[1] == outcome.Value(7)
    assert outcomes[0].error.index == 0


async def test_settle_does_not_take_an_items_own_timeout_for_unfinished(autojump_clock):
    (one,) = await fanout.map(trio.sleep, [9], policy=fanout.Settle(move_on_after=5), item_timeout=2)
    assert type(one.error) is trio.TooSlowError


@pytest.mark.parametrize(("started", "words"), [(True, "started"), (False, "not started")])
def test_unfinished_says_which_item_it_stands_for(started, words):
    error = fanout.Unfinished(7, started)
    assert (error.index, error.started) == (7, started)
    assert "7" in str(error)
    assert words in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.index, again.started, str(again)) == (fanout.Unfinished, 7, started, str(error))


# FirstSuccess


async def test_first_success_gives_back_the_first_result_and_cancels_the_rest(autojump_clock):
    cancelled = []

    async def fn(x):
        if x == 1:
            raise Boom
        try:
            await trio.sleep(x)
        except trio.Cancelled:
            cancelled.append(x)
            raise
        return f"after {x}"

    assert await fanout.map(fn, [9, 1, 3, 5], policy=fanout.FirstSuccess()) == "after 3"
    assert trio.current_time() == 3
    assert sorted(cancelled) == [5, 9]


async def test_first_success_disregards_failures_of_the_items_it_cancels(autojump_clock):
    async def fn(x):
        if x == 2:
            await trio.sleep(1)
            return "two"
        await cleanup_fails(x)
        raise AssertionError

    assert await fanout.map(fn, range(4), policy=fanout.FirstSuccess()) == "two"


async def test_first_success_gives_back_the_first_of_several(autojump_clock):
    async def fn(x):
        if x == 1:
            await trio.sleep(1)
            return "first"
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        return "later, though its index is lower"

    assert await fanout.map(fn, range(2), policy=fanout.FirstSuccess()) == "first"
    assert trio.current_time() == 2


async def test_first_success_takes_nothing_more_than_it_needs():
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            if x < 3:
                raise Boom
            return x

    assert await fanout.map(fn, iter(range(100)), limit=1, policy=fanout.FirstSuccess()) == 3
    assert gauge.began == [0, 1, 2, 3]


@pytest.mark.parametrize("result", [None, 0, False, Boom()])
async def test_first_success_takes_any_value_for_a_success(result):
    async def fn(x):
        return result

    assert await fanout.map(fn, [1, 2], policy=fanout.FirstSuccess()) is result


async def test_first_success_raises_all_failures_if_none_succeeded(autojump_clock):
    async def fn(x):
        await trio.sleep(3 - x)
        raise Boom(x)

    with pytest.raises(fanout.FanOutError) as excinfo:
        await fanout.map(fn, range(3), policy=fanout.FirstSuccess())
    assert excinfo.value.indices == (0, 1, 2)
    assert excinfo.value.results == {}
    assert excinfo.value.total == 3
    with pytest.raises(fanout.FanOutError):
        await fanout.fan_out([fn, fn], 1, policy=fanout.FirstSuccess())


async def test_first_success_without_items_is_a_value_error(make):
    with pytest.raises(ValueError, match="FirstSuccess"):
        await fanout.map(odd_fails, make([]), policy=fanout.FirstSuccess())
    with pytest.raises(ValueError, match="FirstSuccess"):
        await fanout.fan_out([], 1, policy=fanout.FirstSuccess())


# What counts as a failure


async def test_an_items_own_group_is_one_failure_kept_whole():
    group = ExceptionGroup("mine", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])])

    async def fn(x):
        raise group

    with pytest.RaisesGroup(ValueError, pytest.RaisesGroup(KeyError)) as excinfo:
        await fanout.map(fn, [1])
    assert excinfo.value is group
    with pytest.raises(fanout.FanOutError) as collected:
        await fanout.map(fn, [1], policy=fanout.Collect())
    assert collected.value.exceptions == (group,)
    (one,) = await fanout.map(fn, [1], policy=fanout.Settle())
    assert one.error is group


@pytest.mark.parametrize("error", [StopAsyncIteration, GeneratorExit, TypeError, StopIteration, AssertionError])
async def test_control_flow_exceptions_of_other_things_are_failures(error):
    """None of them ends the run in silence."""

    def fn(x):
        raise error  # in the call itself, where no coroutine turns a StopIteration into something else

    if not issubclass(error, Exception):
        for policy in ALL_POLICIES:
            with pytest.raises(error):
                await fanout.map(fn, [1, 2], policy=policy)
        return
    outcomes = await fanout.map(fn, [1, 2], policy=fanout.Settle())
    assert [type(one.error) for one in outcomes] == [error] * 2
    with pytest.RaisesGroup(error, error) as excinfo:
        await fanout.map(fn, iter([1, 2]), policy=fanout.Collect())
    assert type(excinfo.value) is fanout.FanOutError


@POLICIES
async def test_a_group_of_cancelled_and_errors_is_split_between_trio_and_the_policy(policy, autojump_clock):
    async def fn(x):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(cleanup_fails, "child")

    with trio.move_on_after(1) as scope:
        if isinstance(policy, fanout.FailFast):
            with pytest.RaisesGroup(KeyError) as excinfo:
                await fanout.map(fn, [1], policy=policy)
            assert notes_of(excinfo.value) == ["item 0"]
        elif isinstance(policy, fanout.Collect):
            with pytest.raises(fanout.FanOutError) as collected:
                await fanout.map(fn, [1], policy=policy)
            assert pytest.RaisesGroup(KeyError).matches(collected.value.failures[0])
        else:
            await fanout.map(fn, [1], policy=policy)
    assert scope.cancelled_caught is not isinstance(policy, (fanout.FailFast, fanout.Collect))


async def test_a_mixed_group_under_settle_is_an_outcome(autojump_clock):
    async def fn(x):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(cleanup_fails, "child")

    (one,) = await fanout.map(fn, [1], policy=fanout.Settle(move_on_after=1))
    assert isinstance(one.error, ExceptionGroup)
    assert pytest.RaisesGroup(KeyError).matches(one.error)


async def test_the_part_of_a_mixed_group_is_a_secondary_failure(autojump_clock):
    async def fn(x):
        if x == 1:
            await trio.sleep(1)
            raise Boom
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(cleanup_fails, "child")

    with pytest.raises(Boom) as excinfo:
        await fanout.map(fn, range(2))
    assert excinfo.value.__notes__[0] == "item 1"
    assert excinfo.value.__notes__[1].startswith("item 0 also failed: ExceptionGroup")


# Subclasses


@pytest.mark.parametrize("cls", [fanout.FailFast, fanout.Collect, fanout.Settle, fanout.FirstSuccess])
async def test_a_subclass_of_a_policy_is_that_policy(cls):
    async def fail(x):
        if x:
            raise ValueError(x)
        return x

    class Own(cls):
        pass

    def outcome_of(given):
        return [type(one) for one in given] if isinstance(given, list) else given

    seen = []
    for policy in (cls(), Own()):
        try:
            seen.append(outcome_of(await fanout.map(fail, range(2), policy=policy)))
        except (ValueError, fanout.FanOutError) as exc:
            seen.append(type(exc))
    assert seen[0] == seen[1]


async def test_first_success_of_no_items_says_what_it_takes():
    with pytest.raises(ValueError, match=r"^FirstSuccess\(\) takes at least one item, got none"):
        await fanout.map(double, [], policy=fanout.FirstSuccess())


@pytest.mark.parametrize("policy", ALL_POLICIES)
async def test_a_subclass_of_a_policy_does_as_that_does(policy):
    mine = type("Mine", (type(policy),), {})()
    assert await fanout.map(double, [1], policy=mine) == await fanout.map(double, [1], policy=policy)
