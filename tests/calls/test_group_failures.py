"""`open_group`: failures, policies, cancellation and interrupts."""

import contextvars
import math
import pickle
import signal
from contextlib import nullcontext

import pytest
import trio
import trio.testing
from outcome import Error, Value
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    DO_POLICIES,
    GROUP_POLICIES,
    FrozenError,
    Gauge,
    busy,
    contexts_of,
    double,
    fail_when_cancelled,
    leaves,
    limit_of,
    notes_of,
    nothing_left,
)

INTERRUPTS = pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])


async def fail_after(seconds, exc=None):
    await trio.sleep(seconds)
    raise ValueError("failed") if exc is None else exc


# FailFast


async def test_fail_fast_cancels_the_jobs_and_the_block_and_raises_unwrapped(autojump_clock):
    error = ValueError("no")
    gauge = Gauge()

    async def job():
        with gauge.running():
            await trio.sleep_forever()

    with nothing_left(), pytest.raises(ValueError, match="no") as info:
        async with fanout.open_group(limit=3) as group:
            first, failed = group.start_soon(job), group.start_soon(fail_after, 1, error)
            queued = [group.start_soon(job) for _ in range(5)]
            await trio.sleep_forever()
    assert info.value is error
    assert error.__notes__ == ["job 1"]
    assert error.__context__ is None
    assert trio.current_time() == 1
    assert gauge.now == 0
    assert len(gauge.began) == 2
    assert isinstance(failed.outcome, Error)
    assert [handle.outcome for handle in (first, *queued)] == [None] * 6


async def test_fail_fast_cancels_jobs_after_the_block_too(autojump_clock):
    with pytest.raises(ValueError, match="failed") as info:
        async with fanout.open_group() as group:
            group.start_soon(trio.sleep_forever)
            group.start_soon(fail_after, 1)
    assert notes_of(info.value) == ["job 1"]
    assert trio.current_time() == 1


async def test_fail_fast_raises_the_primary_failure_and_tells_of_the_others(autojump_clock):
    with pytest.raises(ValueError, match="the cause") as info:
        async with fanout.open_group() as group:
            group.start_soon(fail_when_cancelled, KeyError("cleaned\nup"))
            group.start_soon(fail_after, 1, ValueError("the cause"))
            group.start_soon(fail_when_cancelled, OSError)
            await trio.sleep_forever()
    assert notes_of(info.value) == [
        "job 1",
        "job 0 also failed: KeyError: 'cleaned\\nup'",
        "job 2 also failed: OSError",
    ]


async def test_a_failure_of_a_job_that_a_job_found_cancels_all(autojump_clock):
    async def finder(group):
        group.start_soon(fail_after, 1)
        await trio.sleep_forever()

    with pytest.raises(ValueError, match="failed") as info:
        async with fanout.open_group() as group:
            group.start_soon(finder, group)
            await trio.sleep_forever()
    assert notes_of(info.value) == ["job 1"]


async def test_a_block_that_shields_itself_is_waited_for(autojump_clock):
    with pytest.raises(ValueError, match="failed"):
        async with fanout.open_group() as group:
            group.start_soon(fail_after, 1)
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
    assert trio.current_time() == 5


async def test_a_failure_while_the_block_never_waits_is_raised_at_its_end():
    with pytest.raises(ValueError, match="failed"):
        async with fanout.open_group() as group:
            group.start_soon(fail_after, 0)
            busy(0.001)


async def test_a_failure_raised_by_the_block_through_its_handle_keeps_its_note(autojump_clock):
    error = ValueError("no")
    with pytest.raises(ValueError, match="no") as info:
        async with fanout.open_group() as group:
            handle = group.start_soon(fail_after, 1, error)
            await handle.wait()
            _ = handle.value
    assert info.value is error
    assert error.__notes__ == ["job 0"]


async def test_a_group_of_errors_from_a_job_is_one_failure(autojump_clock):
    async def job():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_after, 1, ValueError)
            nursery.start_soon(fail_after, 1, KeyError)

    with pytest.raises(ExceptionGroup) as info:
        async with fanout.open_group() as group:
            group.start_soon(job)
    assert {type(leaf) for leaf in leaves(info.value)} <= {ValueError, KeyError}
    assert notes_of(info.value) == ["job 0"]


@GROUP_POLICIES
async def test_a_job_that_mixes_a_failure_with_its_cancellation_fails(policy, autojump_clock):
    async def job():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_when_cancelled, KeyError)

    with trio.move_on_after(1) as scope:
        settle = policy == fanout.Settle()
        with nullcontext() if settle else pytest.RaisesGroup(KeyError, flatten_subgroups=True):
            async with fanout.open_group(policy=policy) as group:
                handle = group.start_soon(job)
    assert scope.cancelled_caught == settle
    assert isinstance(handle.outcome, Error)


async def test_an_exception_that_takes_no_note_is_raised_all_the_same():
    with pytest.raises(FrozenError):
        async with fanout.open_group() as group:
            group.start_soon(fail_after, 0, FrozenError(3))
            await trio.sleep_forever()


# Collect and Settle


async def test_collect_raises_all_failures_at_the_end(autojump_clock):
    ended = False
    with pytest.raises(fanout.FanOutError) as info:
        async with fanout.open_group(policy=fanout.Collect(), limit=2) as group:
            handles = [group.start_soon(fail_after, 2), group.start_soon(double, 1), group.start_soon(fail_after, 1)]
            await trio.sleep(10)
            handles.append(group.start_soon(double, 4))
            ended = True
    assert ended
    error = info.value
    assert error.indices == (0, 2)
    assert list(error.failures) == [0, 2]
    assert error.results == {}
    assert error.total == 4
    assert str(error).startswith("2 of 4 items failed: 0, 2")
    assert handles[1].value == 2
    assert handles[3].value == 8
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.indices, copy.results, copy.total) == ((0, 2), {}, 4)


async def test_collect_cancels_jobs_and_block_at_the_most_failures(autojump_clock):
    with nothing_left(), pytest.raises(fanout.FanOutError) as info:
        async with fanout.open_group(policy=fanout.Collect(max_failures=2), limit=3) as group:
            group.start_soon(fail_after, 1)
            group.start_soon(trio.sleep_forever)
            group.start_soon(fail_after, 1)
            group.start_soon(fail_when_cancelled, KeyError)
            for _ in range(5):
                group.start_soon(double, 2)
            group.start_soon(fail_when_cancelled, KeyError)
            group.start_soon(fail_after, 2)
            await trio.sleep_forever()
    assert trio.current_time() == 1
    assert info.value.indices[:2] == (0, 2)
    assert info.value.total <= 5


async def test_settle_raises_nothing(autojump_clock):
    async with fanout.open_group(policy=fanout.Settle()) as group:
        handles = [group.start_soon(fail_after, 1), group.start_soon(double, 1)]
        await trio.sleep(2)
    assert isinstance(handles[0].outcome, Error)
    assert handles[1].outcome == Value(2)


# An exception in the block


@GROUP_POLICIES
async def test_an_exception_in_the_block_cancels_the_jobs_and_is_unwrapped(shared, policy, autojump_clock):
    error = OSError("block")
    gauge = Gauge()

    async def job():
        with gauge.running():
            await trio.sleep_forever()

    with nothing_left(), pytest.raises(OSError, match="block") as info:
        async with fanout.open_group(policy=policy, limit=limit_of(2, shared)) as group:
            handles = [group.start_soon(job) for _ in range(5)]
            await wait_all_tasks_blocked()
            raise error
    assert info.value is error
    assert error.__context__ is None
    assert notes_of(error) == []
    assert len(gauge.began) == 2
    assert gauge.now == 0
    assert [handle.outcome for handle in handles] == [None] * 5


@GROUP_POLICIES
async def test_an_exception_in_the_block_before_any_job_began_starts_none(shared, policy):
    began = []

    async def job(x):
        began.append(x)

    with nothing_left(), pytest.raises(OSError, match="block"):
        async with fanout.open_group(policy=policy, limit=limit_of(10, shared)) as group:
            handles = [group.start_soon(job, x) for x in range(100)]
            raise OSError("block")
    assert began == []
    for handle in handles:
        assert handle.outcome is None
        await handle.wait()


@GROUP_POLICIES
async def test_failures_out_of_the_cancellation_by_the_block_are_chained_to_its_exception(policy, autojump_clock):
    error = OSError("block")
    with pytest.raises(OSError, match="block") as info:
        async with fanout.open_group(policy=policy) as group:
            group.start_soon(fail_when_cancelled, KeyError)
            await trio.sleep(1)
            raise error
    assert info.value is error
    if policy == fanout.Settle():
        assert error.__context__ is None  # the failure is the handle's alone
    else:
        assert [type(leaf) for leaf in leaves(error.__context__)] == [KeyError]


@pytest.mark.filterwarnings("ignore::trio.TrioDeprecationWarning")
@pytest.mark.parametrize("what", ["block", "job", "interrupt", "outside"])
def test_a_lenient_trio_run_changes_nothing(what):
    async def main():
        with trio.move_on_after(1) as scope:
            async with fanout.open_group() as group:
                group.start_soon(trio.sleep_forever)
                if what in ("job", "interrupt"):
                    group.start_soon(fail_after, 0.5, {"job": ValueError, "interrupt": KeyboardInterrupt}[what])
                if what != "block":
                    await trio.sleep_forever()
                raise OSError
        assert scope.cancelled_caught == (what == "outside")

    expected = {"block": OSError, "job": ValueError, "interrupt": KeyboardInterrupt}.get(what)
    with pytest.raises(expected) if expected else nullcontext():
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0), strict_exception_groups=False)


async def test_a_group_of_exceptions_in_the_block_propagates_as_it_is():
    error = ExceptionGroup("mine", [ValueError(), KeyError()])
    with pytest.RaisesGroup(ValueError, KeyError) as info:
        async with fanout.open_group() as group:
            group.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            raise error
    assert info.value is error


async def test_a_failure_before_the_exception_of_the_block_is_chained_to_it(autojump_clock):
    with pytest.raises(OSError, match="block") as info:
        async with fanout.open_group(policy=fanout.Collect()) as group:
            group.start_soon(fail_after, 1, ValueError("job"))
            await trio.sleep(2)
            raise OSError("block")
    chained = info.value.__context__
    assert isinstance(chained, fanout.FanOutError)
    assert chained.indices == (0,)


async def test_a_block_that_fails_out_of_the_cancellation_tells_of_the_cause(autojump_clock):
    with pytest.raises(OSError, match="block") as info:
        async with fanout.open_group() as group:
            group.start_soon(fail_after, 1, ValueError("job"))
            await fail_when_cancelled(OSError("block"))
    told = [type(leaf) for link in contexts_of(info.value) for leaf in leaves(link)]
    assert told == [OSError, trio.Cancelled, ValueError]


@GROUP_POLICIES
async def test_the_block_may_be_left_early_without_an_error(policy, autojump_clock):
    async def use():
        async with fanout.open_group(policy=policy) as group:
            return group.start_soon(trio.sleep, 3)

    handle = await use()
    assert trio.current_time() == 3
    assert handle.outcome == Value(None)


# Cancellation from outside


@GROUP_POLICIES
@pytest.mark.parametrize("where", ["block", "waiting", "end", "start", "early"])
async def test_cancellation_from_outside_is_prompt_and_propagates(where, shared, policy, autojump_clock):
    gauge = Gauge()
    reached = False

    async def job():
        with gauge.running():
            await trio.sleep_forever()

    with nothing_left(), trio.CancelScope() as scope:
        scope.deadline = math.inf if where in ("start", "early") else trio.current_time() + 5
        if where == "early":
            scope.cancel()
        async with fanout.open_group(policy=policy, limit=limit_of(3, shared)) as group:
            handles = [group.start_soon(job) for _ in range(7)]
            if where == "start":
                scope.cancel()
            elif where == "block":
                await trio.sleep_forever()
            elif where == "waiting":
                await handles[6].wait()
        reached = True
    assert scope.cancelled_caught
    assert not reached
    assert trio.current_time() == (0 if where in ("start", "early") else 5)
    assert gauge.now == 0
    assert len(gauge.began) <= 3
    assert [handle.outcome for handle in handles] == [None] * 7


@GROUP_POLICIES
async def test_cancellation_waits_for_the_clean_up_of_jobs(policy, autojump_clock):
    async def job(seconds):
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    with trio.move_on_after(5) as scope:
        async with fanout.open_group(policy=policy) as group:
            for seconds in (1, 2, 3):
                group.start_soon(job, seconds)
    assert scope.cancelled_caught
    assert trio.current_time() == 8


@DO_POLICIES
async def test_a_failure_outranks_a_cancellation_from_outside(policy, autojump_clock):
    with trio.move_on_after(5) as scope, pytest.raises((KeyError, fanout.FanOutError)) as info:
        async with fanout.open_group(policy=policy) as group:
            group.start_soon(fail_when_cancelled, KeyError)
            await trio.sleep_forever()
    assert not scope.cancelled_caught
    assert [type(leaf) for leaf in leaves(info.value)] == [KeyError]


async def test_under_settle_the_cancellation_outranks_failures(autojump_clock):
    with trio.move_on_after(5) as scope:
        async with fanout.open_group(policy=fanout.Settle()) as group:
            handle = group.start_soon(fail_when_cancelled, KeyError)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert isinstance(handle.outcome, Error)


@GROUP_POLICIES
async def test_jobs_that_swallow_the_cancellation_do_not_hide_it(policy, autojump_clock):
    async def job():
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            return "swallowed"

    reached = False
    with trio.move_on_after(1) as scope:
        async with fanout.open_group(policy=policy) as group:
            handle = group.start_soon(job)
            await trio.sleep_forever()
        reached = True
    assert scope.cancelled_caught
    assert not reached
    assert handle.outcome == Value("swallowed")


@GROUP_POLICIES
async def test_jobs_that_fail_while_cancelled_are_followed_by_no_other(shared, policy, autojump_clock):
    began = []

    async def job(x):
        began.append(x)
        await fail_when_cancelled(ValueError)

    try:
        async with fanout.open_group(policy=policy, limit=limit_of(2, shared)) as group:
            for x in range(10):
                group.start_soon(job, x)
            await trio.sleep(1)
            group.cancel_scope.cancel()
    except (ValueError, fanout.FanOutError):
        assert policy != fanout.Settle()
    assert began == [0, 1]


@GROUP_POLICIES
async def test_a_nested_group_is_cancelled_with_the_outer_one(policy, autojump_clock):
    gauge = Gauge()

    async def inner():
        with gauge.running():
            await trio.sleep_forever()

    async def outer():
        async with fanout.open_group(policy=policy) as group:
            group.start_soon(inner)
            group.start_soon(inner)

    with nothing_left():
        async with fanout.open_group(policy=policy) as group:
            group.start_soon(outer)
            group.start_soon(outer)
            await trio.sleep(1)
            assert gauge.now == 4
            group.cancel_scope.cancel()
    assert gauge.now == 0


async def test_a_failure_in_a_nested_group_comes_through_all_of_them(autojump_clock):
    async def nested(depth):
        async with fanout.open_group() as group:
            group.start_soon(trio.sleep_forever)
            if depth:
                group.start_soon(nested, depth - 1)
            else:
                group.start_soon(fail_after, 1)

    with pytest.raises(ValueError, match="failed") as info:
        await nested(3)
    assert notes_of(info.value) == ["job 1"]


@GROUP_POLICIES
async def test_a_group_inside_a_map_item_that_is_cancelled(policy, autojump_clock):
    async def item(x):
        if x == 2:
            await fail_after(1)
        async with fanout.open_group(policy=policy, limit=1) as group:
            group.start_soon(trio.sleep_forever)
            group.start_soon(trio.sleep_forever)
            await trio.sleep_forever()

    with nothing_left(), pytest.raises(ValueError, match="failed") as info:
        await fanout.map(item, range(3))
    assert notes_of(info.value) == ["item 2"]
    assert trio.current_time() == 1


# The group's own cancel scope


@GROUP_POLICIES
@pytest.mark.parametrize("who", ["block", "job", "deadline", "beside", "at once"])
async def test_the_groups_own_scope_ends_it_without_an_error(who, shared, policy, autojump_clock):
    gauge = Gauge()

    async def job():
        with gauge.running():
            await trio.sleep_forever()

    async def cancel(group):
        await trio.sleep(1)
        group.cancel_scope.cancel()

    with nothing_left():
        async with trio.open_nursery() as nursery:
            async with fanout.open_group(policy=policy, limit=limit_of(2, shared)) as group:
                handles = [group.start_soon(cancel, group)] if who == "job" else []
                handles += [group.start_soon(job) for _ in range(5)]
                if who == "at once":
                    group.cancel_scope.cancel()
                elif who == "block":
                    await cancel(group)
                    await trio.sleep_forever()
                elif who == "deadline":
                    group.cancel_scope.deadline = trio.current_time() + 1
                elif who == "beside":
                    nursery.start_soon(cancel, group)
            assert trio.current_time() == (0 if who == "at once" else 1)
    assert group.cancel_scope.cancel_called
    assert gauge.now == 0
    assert len(gauge.began) <= 2
    assert all(handle.outcome is None for handle in handles[1:])


async def test_failures_before_the_scope_was_cancelled_are_raised(autojump_clock):
    with pytest.raises(fanout.FanOutError) as info:
        async with fanout.open_group(policy=fanout.Collect()) as group:
            group.start_soon(fail_after, 1)
            group.start_soon(trio.sleep_forever)
            await trio.sleep(2)
            group.cancel_scope.cancel()
    assert info.value.indices == (0,)


@GROUP_POLICIES
async def test_jobs_that_never_wait_end_when_the_scope_is_cancelled(policy):
    ran = 0

    async def job(group):
        nonlocal ran
        ran += 1
        busy(0.001)
        group.start_soon(job, group)
        if ran == 3:
            group.cancel_scope.cancel()

    async with fanout.open_group(policy=policy) as group:
        group.start_soon(job, group)
    assert ran < 50


@GROUP_POLICIES
async def test_a_job_submitted_while_the_group_is_cancelled_never_gets_far(shared, policy, autojump_clock):
    late = []
    done = 0

    async def job():
        nonlocal done
        await trio.lowlevel.checkpoint()
        done += 1

    async def finder(group):
        try:
            await trio.sleep_forever()
        finally:
            late.append(group.start_soon(job))
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            late.append(group.start_soon(job))

    with nothing_left():
        async with fanout.open_group(policy=policy, limit=limit_of(2, shared)) as group:
            for _ in range(3):
                group.start_soon(finder, group)
            try:
                await trio.sleep(1)
                group.cancel_scope.cancel()
                await trio.sleep_forever()
            finally:
                late.append(group.start_soon(job))
    assert done == 0
    assert len(late) == 5
    for handle in late:
        assert handle.outcome is None
        await handle.wait()
        with pytest.raises(RuntimeError, match="cancelled"):
            _ = handle.value


@pytest.mark.parametrize("which", ["running", "queued", "late"])
@pytest.mark.parametrize("who", ["block", "job"])
async def test_a_shielded_wait_for_a_cancelled_job_ends(who, which, shared, autojump_clock):
    """A wait returns when the job is done, also in the clean-up of what the group itself still waits for."""
    returned = []

    async def wait_in_clean_up(group, handles):
        try:
            await trio.sleep_forever()
        finally:
            handles["late"] = group.start_soon(trio.sleep_forever)
            with trio.move_on_after(100, shield=True):
                await handles[which].wait()
                returned.append(trio.current_time())

    async with fanout.open_group(limit=limit_of(2, shared)) as group:
        handles = {}
        if who == "job":
            group.start_soon(wait_in_clean_up, group, handles)
        else:
            group.start_soon(trio.sleep_forever)
        handles["running"] = group.start_soon(trio.sleep_forever)
        handles["queued"] = group.start_soon(trio.sleep_forever)
        group.cancel_scope.deadline = trio.current_time() + 1
        if who == "block":
            await wait_in_clean_up(group, handles)
    assert returned == [1]
    assert trio.current_time() == 1


# KeyboardInterrupt and its like


@GROUP_POLICIES
@INTERRUPTS
async def test_an_interrupt_in_a_job_cancels_all_and_propagates_unwrapped(interrupt, shared, policy, autojump_clock):
    error = interrupt("stop")
    handles = []

    async def use():
        async with fanout.open_group(policy=policy, limit=limit_of(3, shared)) as group:
            handles.append(group.start_soon(fail_after, 1, error))
            handles.extend(group.start_soon(trio.sleep_forever) for _ in range(5))
            await trio.sleep_forever()

    with nothing_left():
        with pytest.raises(interrupt) as info:
            await use()
        assert info.value is error
    assert trio.current_time() == 1
    assert [handle.outcome for handle in handles] == [None] * 6


@GROUP_POLICIES
@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
async def test_a_job_that_waits_for_the_token_of_the_one_that_ends_the_group_never_begins(
    end, shared, policy, autojump_clock
):
    """Its token comes, at the latest, with the cancellation."""
    if end is ValueError and policy == fanout.Settle():
        return
    if end is ValueError and policy == fanout.Collect():
        policy = fanout.Collect(max_failures=1)
    gauge = Gauge()

    async def job():
        with gauge.running():
            await trio.sleep(1)

    limit = trio.CapacityLimiter(2) if shared else 1
    if isinstance(limit, trio.CapacityLimiter):
        limit.acquire_on_behalf_of_nowait("other")
    with pytest.raises((KeyboardInterrupt, ValueError, fanout.FanOutError)):
        async with fanout.open_group(policy=policy, limit=limit) as group:
            group.start_soon(fail_after, 1, end)
            handles = [group.start_soon(job) for _ in range(3)]
    assert gauge.began == []
    assert [handle.outcome for handle in handles] == [None] * 3
    if isinstance(limit, trio.CapacityLimiter):
        assert limit.borrowed_tokens == 1


@GROUP_POLICIES
@INTERRUPTS
async def test_an_interrupt_in_the_block_cancels_all_and_propagates_unwrapped(interrupt, policy, autojump_clock):
    error = interrupt("stop")
    with nothing_left(), pytest.raises(interrupt) as info:
        async with fanout.open_group(policy=policy) as group:
            handle = group.start_soon(trio.sleep_forever)
            await wait_all_tasks_blocked()
            raise error
    assert info.value is error
    assert handle.outcome is None


@GROUP_POLICIES
@pytest.mark.parametrize("where", ["job", "block"])
@pytest.mark.parametrize("scope_of", ["outside", "group"])
async def test_an_interrupt_together_with_a_cancellation_is_not_lost(scope_of, where, policy, autojump_clock):
    error = KeyboardInterrupt("stop")
    with nothing_left(), pytest.raises(KeyboardInterrupt) as info, trio.move_on_after(1) as scope:
        async with fanout.open_group(policy=policy) as group:
            if scope_of == "group":
                group.cancel_scope.deadline, scope.deadline = trio.current_time() + 1, math.inf
            group.start_soon(trio.sleep_forever)
            if where == "job":
                group.start_soon(fail_when_cancelled, error)
                await trio.sleep_forever()
            await fail_when_cancelled(error)
    assert info.value is error


@GROUP_POLICIES
@INTERRUPTS
async def test_an_interrupt_outranks_failures_and_the_exception_of_the_block(interrupt, policy, autojump_clock):
    error = interrupt("stop")
    with pytest.raises(interrupt) as info:
        async with fanout.open_group(policy=policy) as group:
            group.start_soon(fail_when_cancelled, error)
            group.start_soon(fail_when_cancelled, KeyError("clean-up"))
            await trio.sleep(1)
            raise OSError("block")
    assert info.value is error
    told = [type(leaf) for link in contexts_of(info.value) for leaf in leaves(link)]
    assert OSError in told
    assert (KeyError in told) == (policy != fanout.Settle())  # under which it is the handle's alone


async def test_an_interrupt_from_a_job_that_is_in_a_group_with_its_cancellation(autojump_clock):
    async def job():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(fail_when_cancelled, KeyboardInterrupt)

    with pytest.RaisesGroup(KeyboardInterrupt), trio.move_on_after(1):
        async with fanout.open_group(policy=fanout.Settle()) as group:
            group.start_soon(job)
            await trio.sleep_forever()


@pytest.mark.parametrize("where", ["job", "block"])
def test_ctrl_c_while_a_group_runs(where):
    """The signal itself, as Trio delivers it."""
    done = []

    async def job():
        await trio.lowlevel.checkpoint()
        if where == "job":
            signal.raise_signal(signal.SIGINT)
        try:
            await trio.sleep_forever()
        finally:
            done.append("job")

    async def main():
        async with fanout.open_group(policy=fanout.Settle()) as group:
            group.start_soon(job)
            await wait_all_tasks_blocked()
            if where == "block":
                signal.raise_signal(signal.SIGINT)
            try:
                await trio.sleep_forever()
            finally:
                done.append("block")

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)
    assert "job" in done or where == "job"


async def test_ctrl_c_between_taking_a_job_and_starting_it_leaves_its_handle_with_an_end(monkeypatch):
    """Here it comes as the worker takes on the context of the job."""
    var = contextvars.ContextVar("var")

    def interrupted(task, context):
        raise KeyboardInterrupt

    monkeypatch.setattr("trio_fanout._core.loop.switch_context", interrupted)
    async with trio.open_nursery() as waiters:
        with pytest.raises(KeyboardInterrupt):
            async with fanout.open_group(limit=2) as group:
                var.set("of the job")
                handle = group.start_soon(trio.sleep, 0)
                waiters.start_soon(handle.wait)
                await trio.sleep_forever()
    assert handle.outcome is None
    assert "cancelled" in repr(handle)
