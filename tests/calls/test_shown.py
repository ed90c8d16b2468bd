"""What streams, groups and handles show of themselves, and what they refuse."""

import threading

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import nothing_left


async def sleep(seconds):
    await trio.sleep(seconds)
    return seconds


# Statistics


async def test_a_stream_tells_what_runs_and_what_is_ready(autojump_clock):
    async with fanout.stream(sleep, [3, 1, 2, 9, 9, 9], limit=3, buffer=1) as results:
        await wait_all_tasks_blocked()
        assert results.statistics() == fanout.ResultStatistics(running=3, ready=0, outstanding=3, stopped=False)
        await trio.sleep(2.5)  # those of 1 and 2 wait for the first
        assert results.statistics() == fanout.ResultStatistics(running=2, ready=0, outstanding=4, stopped=False)
        await trio.sleep(1)
        assert results.statistics() == fanout.ResultStatistics(running=1, ready=3, outstanding=4, stopped=False)
        await results.receive()
        results.stop()
        assert results.statistics().stopped
        assert results.statistics().outstanding == 3
    assert results.statistics() == fanout.ResultStatistics(running=0, ready=0, outstanding=3, stopped=True)


async def test_a_stream_that_has_come_to_its_end_was_not_stopped(autojump_clock):
    async with fanout.stream(sleep, [1, 2]) as results:
        async for _ in results:
            pass
        assert results.statistics() == fanout.ResultStatistics(running=0, ready=0, outstanding=0, stopped=False)


async def fail(n):
    raise ValueError(n)


async def fail_later(seconds):
    await trio.sleep(seconds)
    if seconds:
        raise ValueError(seconds)


@pytest.mark.parametrize(
    ("fn", "items"), [(fail, [1, 2]), (fail_later, [1, 0])], ids=["at once", "after the last item was taken"]
)
async def test_a_failure_stops_a_stream(fn, items, autojump_clock):
    async with fanout.stream(fn, items) as results:
        with pytest.raises(ValueError, match="1"):
            await results.receive()
        assert results.statistics().stopped


async def test_a_failure_that_is_collected_stops_nothing(autojump_clock):
    async def divide(n):
        return 1 // n

    with pytest.RaisesGroup(ZeroDivisionError):
        async with fanout.stream(divide, [0, 1], limit=1, policy=fanout.Collect()) as results:
            async for result in results:
                assert result == (1, 1, 1)
                assert not results.statistics().stopped


async def test_items_that_wait_for_a_token_are_not_at_work(autojump_clock):
    limiter = trio.CapacityLimiter(1)
    async with fanout.stream(sleep, [1, 1], limit=limiter) as results:
        async with limiter:
            await wait_all_tasks_blocked()
            assert results.statistics().running == 0
            assert results.statistics().outstanding == 1
        await wait_all_tasks_blocked()
        assert results.statistics().running == 1


async def test_a_group_tells_what_is_queued_and_what_runs(autojump_clock):
    async with fanout.open_group(limit=2) as group:
        assert group.statistics() == fanout.GroupStatistics(queued=0, running=0)
        for _ in range(5):
            group.start_soon(trio.sleep, 1)
        assert group.statistics() == fanout.GroupStatistics(queued=5, running=0)
        await wait_all_tasks_blocked()
        assert group.statistics() == fanout.GroupStatistics(queued=3, running=2)
        await trio.sleep(2.5)
        assert group.statistics() == fanout.GroupStatistics(queued=0, running=1)
    assert group.statistics() == fanout.GroupStatistics(queued=0, running=0)


async def test_statistics_are_frozen():
    async with fanout.open_group() as group, fanout.stream(sleep, []) as results:
        for statistics in (group.statistics(), results.statistics()):
            with pytest.raises(attrs.exceptions.FrozenInstanceError):
                statistics.running = 3


# What they look like


async def test_a_repr_tells_the_state(autojump_clock):
    async with fanout.open_group(limit=1) as group:
        handle = group.start_soon(sleep, 1)
        group.start_soon(sleep, 1)
        await wait_all_tasks_blocked()
        assert repr(group) == "<trio_fanout.Group, open: 1 queued, 1 running>"
        assert repr(handle) == "<trio_fanout.Handle of job 0: not finished>"
    assert repr(group) == "<trio_fanout.Group, ended: 0 queued, 0 running>"
    assert repr(handle) == "<trio_fanout.Handle of job 0: Value(1)>"
    async with fanout.stream(sleep, [0, 5], limit=2) as results:
        await trio.sleep(1)
        assert repr(results) == "<trio_fanout.ResultChannel, open: 1 running, 1 ready>"
        results.stop()
        assert repr(results) == "<trio_fanout.ResultChannel, stopped: 1 running, 1 ready>"
    assert repr(results) == "<trio_fanout.ResultChannel, closed: 0 running, 0 ready>"


# Constructors and entries


@pytest.mark.parametrize("cls", [fanout.Group, fanout.Handle, fanout.ResultChannel])
def test_what_a_call_gives_has_no_public_constructor(cls):
    with pytest.raises(TypeError, match=f"^{cls.__name__} has no public constructor$"):
        cls(1, 2, 3)


OPENERS = pytest.mark.parametrize(
    ("open_it", "name"),
    [(fanout.open_group, "open_group"), (lambda: fanout.stream(sleep, [1]), "stream")],
)


@OPENERS
async def test_it_is_entered_once(open_it, name, autojump_clock):
    manager = open_it()
    again = rf"^what {name}\(\) returns can be entered once, and this was; call {name}\(\) again$"
    async with manager:
        with nothing_left(), pytest.raises(RuntimeError, match=again):
            await manager.__aenter__()
    with pytest.raises(RuntimeError, match=again):
        async with manager:
            pass


@OPENERS
async def test_other_uses_say_what_to_write(open_it, name):
    says = rf"^use 'async with {name}\(\.\.\.\) as \.\.\.', not '"
    with pytest.raises(RuntimeError, match=says + "with"), open_it():
        pass
    with pytest.raises(RuntimeError, match=says + "async for"):
        async for _ in open_it():
            pass
    with pytest.raises(RuntimeError, match=says + "await"):
        await open_it()


# Other threads


async def in_thread(fn):
    """What `fn` raises in a thread that knows nothing of Trio."""
    raised = []

    def run():
        try:
            fn()
        except BaseException as exc:  # noqa: BLE001
            raised.append(exc)
        else:
            raised.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0]


def in_another_run(fn):
    async def main():
        fn()

    return lambda: trio.run(main)


@pytest.mark.parametrize("wrap", [lambda fn: fn, in_another_run], ids=["no run", "another run"])
async def test_start_soon_from_a_foreign_thread_is_refused_and_changes_nothing(wrap, autojump_clock):
    with nothing_left():
        async with fanout.open_group(limit=2) as group:
            await wait_all_tasks_blocked()
            for _ in range(3):
                error = await in_thread(wrap(lambda: group.start_soon(sleep, 1)))
                assert type(error) is RuntimeError
                assert str(error) == (
                    "start_soon() must be called from a task of its own Trio run; from another thread, use "
                    "trio.from_thread.run_sync"
                )
            assert group.statistics() == fanout.GroupStatistics(queued=0, running=0)
            handle = group.start_soon(sleep, 1)
            assert handle.index == 0
            await wait_all_tasks_blocked()
            error = await in_thread(wrap(lambda: group.start_soon(sleep, 1)))
            assert type(error) is RuntimeError
        assert handle.value == 1


@pytest.mark.parametrize("wrap", [lambda fn: fn, in_another_run], ids=["no run", "another run"])
async def test_stop_from_a_foreign_thread_is_refused_and_changes_nothing(wrap, autojump_clock):
    async with fanout.stream(sleep, [1, 2, 3], limit=1) as results:
        await wait_all_tasks_blocked()
        error = await in_thread(wrap(results.stop))
        assert type(error) is RuntimeError
        assert not results.statistics().stopped
        assert [value async for _, _, value in results] == [1, 2, 3]


async def test_from_a_thread_of_trio_both_work_through_it(autojump_clock):
    def work(group):
        return trio.from_thread.run_sync(group.start_soon, sleep, 1)

    async with fanout.open_group() as group:
        handle = await trio.to_thread.run_sync(work, group)
    assert handle.value == 1


# Reasons


async def reason_of_cancellation(reasons):
    try:
        await trio.sleep_forever()
    except trio.Cancelled as exc:
        reasons.append(str(exc))
        raise


async def test_what_cancels_says_why(autojump_clock):
    reasons = []

    async def work(item):
        if item == "secret":
            raise ValueError(item)
        await reason_of_cancellation(reasons)

    with pytest.raises(ValueError, match="secret"):
        await fanout.map(work, ["a", "secret"])
    with pytest.raises(ValueError, match="secret"):
        async with fanout.open_group() as group:
            group.start_soon(work, "a")
            group.start_soon(work, "secret")
    steps = {"a": lambda: work("a"), "b": lambda: work("secret")}
    with pytest.raises(ValueError, match="secret"):
        await fanout.run_graph({name: fanout.Step(fn) for name, fn in steps.items()})
    assert ["item 1 failed" in reasons[0], "job 1 failed" in reasons[1], "step 'b' failed" in reasons[2]] == [True] * 3
    assert not any("secret" in reason for reason in reasons)


async def test_so_do_the_first_success_and_the_end_of_a_block(autojump_clock):
    reasons = []

    async def work(n):
        if n == 2:
            return n
        await reason_of_cancellation(reasons)
        return n

    assert await fanout.map(work, range(3), policy=fanout.FirstSuccess()) == 2
    assert "item 2 succeeded" in reasons.pop()
    async with fanout.stream(work, [1]):
        await wait_all_tasks_blocked()
    assert "the block of the stream was left" in reasons.pop()
    async with fanout.stream(work, [1]) as results:
        await wait_all_tasks_blocked()
        await results.aclose()
        await wait_all_tasks_blocked()
        assert "the channel was closed" in reasons.pop()
    with pytest.raises(KeyError):
        async with fanout.open_group() as group:
            group.start_soon(work, 1)
            await wait_all_tasks_blocked()
            raise KeyError
    assert "the block raised KeyError" in reasons.pop()
