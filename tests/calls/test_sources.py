"""Where items come from: sources that raise, that are closed, that hold scopes open, and that are not ours to close."""

import contextlib
import contextvars
import gc
import random
import weakref
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import (
    POLICIES,
    AsyncCountingSource,
    CountingSource,
    FrozenError,
    Gauge,
    SourceError,
    check_no_cycles,
    double,
    fail_when_cancelled,
    limit_of,
    nothing_left,
    printed,
)

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


def raising(kind, count, error, *, after=0):
    """A source of `count` items that then raises."""

    def sync_source():
        yield from range(count)
        raise error

    async def async_source():
        for x in range(count):
            yield x
        await trio.sleep(after)
        raise error

    return sync_source() if kind == "sync" else async_source()


# Sources that raise


@POLICIES
@KINDS
@pytest.mark.parametrize("count", [0, 1, 3])
async def test_what_a_source_raises_is_unwrapped_and_cancels_the_items(count, shared, kind, policy, autojump_clock):
    error = SourceError()
    gauge = Gauge()

    async def fn(x):
        with gauge.running(x):
            await trio.sleep_forever()

    limiter = limit_of(5, shared)
    with nothing_left(), pytest.raises(SourceError) as excinfo:
        await fanout.map(fn, raising(kind, count, error), limit=limiter, policy=policy)
    assert excinfo.value is error
    assert gauge.now == 0
    assert gauge.began == list(range(len(gauge.began)))


@KINDS
@pytest.mark.parametrize("policy", [fanout.Collect(), fanout.Settle(), fanout.FirstSuccess()], ids=str)
@pytest.mark.parametrize("suppressed", [False, True])
async def test_failures_so_far_are_chained_to_what_the_source_raises(suppressed, policy, kind, autojump_clock):
    """Also where the source said `from None`, and where one failure came of the cancellation."""
    cause = OSError("the source's own context")

    async def fn(x):
        if x == 0:
            raise ValueError("recorded before")
        await fail_when_cancelled(ValueError("recorded in the cleanup"))

    class Source:
        def __init__(self):
            self.items = iter([0, 1])

        def __iter__(self):
            return self

        def __next__(self):
            for item in self.items:
                return item
            if gate.is_set():
                self.fail()
            raise AssertionError

        def fail(self):
            try:
                raise cause
            except OSError:
                if suppressed:
                    raise SourceError from None
                raise SourceError  # noqa: B904

        def __aiter__(self):
            return self

        async def __anext__(self):
            for item in self.items:
                return item
            await trio.sleep(1)
            return self.__next__()

    gate = trio.Event()
    gate.set()
    source = Source() if kind == "async" else iter(Source().__next__, None)
    with pytest.raises(SourceError) as excinfo:
        await fanout.map(fn, source, policy=policy, limit=3)
    text = printed(excinfo.value)
    assert "recorded before" in text
    if kind == "async":
        assert "recorded in the cleanup" in text


async def test_failures_are_chained_to_a_source_error_that_is_frozen(autojump_clock):
    async def fn(x):
        raise ValueError("recorded before")

    for kind in ("sync", "async"):
        with pytest.raises(FrozenError) as excinfo:
            await fanout.map(fn, raising(kind, 2, FrozenError(1), after=1), policy=fanout.Collect())
        assert "recorded before" in printed(excinfo.value)


async def test_a_failure_that_the_source_raises_again_is_printed_once(autojump_clock):
    """The source may have heard of it, from the item."""
    failure = ValueError("the failure")

    async def fn(x):
        raise failure

    async def source(error):
        yield 1
        await trio.sleep(1)
        raise error from (None if error is failure else failure)

    for error in (failure, SourceError()):
        with pytest.raises((ValueError, SourceError)) as excinfo:
            await fanout.map(fn, source(error), policy=fanout.Collect())
        assert excinfo.value is error
        assert printed(error).count("ValueError: the failure") == 1


async def test_an_interrupt_out_of_a_source_error_keeps_its_chain(autojump_clock):
    error = SourceError("the source")

    async def fn(x):
        try:
            await trio.sleep_forever()
        finally:
            raise KeyboardInterrupt from error

    async def source():
        yield 1
        await trio.sleep(1)
        raise error

    with pytest.raises(KeyboardInterrupt) as excinfo:
        await fanout.map(fn, source())
    assert excinfo.value.__cause__ is error
    assert printed(excinfo.value).count("SourceError: the source") == 1


async def test_a_source_error_without_failures_has_nothing_chained_to_it():
    for kind in ("sync", "async"):
        with pytest.raises(SourceError) as excinfo:
            await fanout.map(double, raising(kind, 3, SourceError()), policy=fanout.Collect(), limit=1)
        assert excinfo.value.__context__ is None
        assert excinfo.value.__cause__ is None


async def test_a_source_that_raises_when_it_is_cancelled_by_a_failure(autojump_clock):
    async def source():
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            raise SourceError

    async def fn(x):
        await trio.sleep(1)
        raise ValueError("the failure")

    with pytest.raises(SourceError) as excinfo:
        await fanout.map(fn, source())
    assert "the failure" in printed(excinfo.value)


@POLICIES
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@KINDS
async def test_a_source_may_raise_a_base_exception(kind, error, policy, autojump_clock):
    async def fn(x):
        if x == 0 and not isinstance(policy, fanout.FailFast):
            raise ValueError
        await trio.sleep_forever()

    with pytest.raises(error):
        await fanout.map(fn, raising(kind, 2, error(), after=1), policy=policy)


@POLICIES
async def test_an_iterable_whose_iter_raises(policy):
    class Bad:
        def __iter__(self):
            raise SourceError

    class BadAsync:
        def __aiter__(self):
            raise SourceError

    for items in (Bad(), BadAsync()):
        with nothing_left(), pytest.raises(SourceError):
            await fanout.map(double, items, policy=policy)


async def test_exceptions_of_fns_propagate_unwrapped():
    def fns():
        yield double
        raise SourceError

    with pytest.raises(SourceError):
        await fanout.fan_out(fns(), 1)


async def test_a_source_that_raises_is_not_asked_again(autojump_clock):
    asked = 0

    class Source:
        def __iter__(self):
            return self

        def __next__(self):
            nonlocal asked
            asked += 1
            if asked > 3:
                raise SourceError
            return asked

    with pytest.raises(SourceError):
        await fanout.map(double, Source(), limit=5)
    assert asked == 4


@KINDS
async def test_a_source_that_ended_is_not_asked_again(kind):
    asked_after = 0
    ended = False

    class Source:
        def __init__(self):
            self.left = 3

        def __iter__(self):
            return self

        def __next__(self):
            nonlocal asked_after, ended
            asked_after += ended
            if self.left == 0:
                ended = True
                raise StopIteration
            self.left -= 1
            return self.left

    class AsyncSource(Source):
        __iter__ = None

        def __aiter__(self):
            return self

        async def __anext__(self):
            try:
                return self.__next__()
            except StopIteration:
                raise StopAsyncIteration from None

    await fanout.map(double, Source() if kind == "sync" else AsyncSource(), limit=2)
    if kind == "async":
        assert asked_after == 0


# Async generators are closed, in the task that iterates them


class Watched:
    """An async generator that knows which tasks ran it, and whether it was closed."""

    def __init__(self, count):
        self.tasks = set()
        self.closed = False
        self.generator = self._generate(count)

    async def _generate(self, count):
        try:
            for x in range(count):
                self.tasks.add(trio.lowlevel.current_task())
                await trio.lowlevel.checkpoint()
                self.tasks.add(trio.lowlevel.current_task())
                yield x
        finally:
            self.tasks.add(trio.lowlevel.current_task())
            self.closed = True


async def test_an_async_source_is_iterated_in_one_task():
    source = Watched(50)
    await fanout.map(double, source.generator, limit=5)
    assert len(source.tasks) == 1
    assert source.closed


@POLICIES
@pytest.mark.parametrize("end", ["failure", "cancelled", "interrupt", "success", "not awaitable"])
async def test_an_async_generator_is_closed_in_its_task_when_the_run_ends_early(end, policy, autojump_clock):
    source = Watched(1000)

    async def fn(x):
        await trio.sleep(1)
        if x == 3:
            if end == "failure":
                raise ValueError
            if end == "interrupt":
                raise KeyboardInterrupt
            if end == "cancelled":
                scope.cancel()
        if isinstance(policy, fanout.FirstSuccess) and end != "success":
            raise ValueError
        return x

    def call(x):
        return 7 if x == 3 and end == "not awaitable" else fn(x)

    with trio.CancelScope() as scope:
        with suppress(Exception, KeyboardInterrupt):
            await fanout.map(call, source.generator, limit=3, policy=policy)
        assert source.closed
    assert len(source.tasks) == 1


async def test_a_generator_may_hold_a_scope_or_a_nursery_open_across_its_yields(autojump_clock):
    async def source():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            with trio.CancelScope():
                for x in range(10):
                    await trio.lowlevel.checkpoint()
                    yield x
            nursery.cancel_scope.cancel()

    assert await fanout.map(double, source(), limit=2) == [2 * x for x in range(10)]


@POLICIES
@pytest.mark.parametrize("where", ["failure", "outside", "both ways"])
async def test_a_nursery_held_open_by_a_generator_is_closed_when_the_run_ends_early(where, policy, autojump_clock):
    async def source():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            try:
                for x in range(100):
                    yield x
            except GeneratorExit:  # or the nursery would wrap it in a group
                pass
            finally:
                nursery.cancel_scope.cancel()

    async def fn(x):
        await trio.sleep(1)
        if x >= 2 and where != "outside":
            raise ValueError
        return x

    with nothing_left(), trio.move_on_after(3.5 if where != "failure" else 1000):
        try:
            await fanout.map(fn, source(), limit=2, policy=policy)
        except* ValueError:
            pass


async def test_a_scope_of_the_source_that_expires_while_the_run_is_at_its_limit(autojump_clock):
    """Its Cancelled is raised inside of the source, which catches it; the run goes on with what there is."""
    log = []

    async def source():
        with trio.move_on_after(5) as scope:
            for x in range(100):
                yield x
                await trio.lowlevel.checkpoint()
        log.append(scope.cancelled_caught)
        yield 1000

    async def fn(x):
        await trio.sleep(4)
        return x

    # At 5 two items run, and the feeder waits for room; the scope's Cancelled waits until 8.
    results = await fanout.map(fn, source(), limit=2)
    assert results == [0, 1, 2, 3, 1000]
    assert log == [True]
    assert trio.current_time() == 12


async def test_a_scope_of_the_source_that_expires_while_the_source_waits(autojump_clock):
    async def source():
        with trio.move_on_after(5):
            yield 1
            yield 2
            await trio.sleep_forever()
        yield 3

    assert await fanout.map(double, source(), limit=5) == [2, 4, 6]
    assert trio.current_time() == 5


async def test_cancellation_from_outside_is_prompt_while_a_source_holds_a_scope(autojump_clock):
    async def source():
        with trio.CancelScope():
            while True:
                yield 1

    with trio.move_on_after(5) as scope:
        await fanout.map(trio.sleep_until, always(100), limit=2)
    assert scope.cancelled_caught
    with trio.move_on_after(5) as scope:
        await fanout.do(slow, source(), limit=2)
    assert scope.cancelled_caught
    assert trio.current_time() == 10


async def always(value):
    while True:
        yield value


async def slow(x):
    await trio.sleep(100)


async def test_a_failure_is_prompt_while_a_source_holds_a_scope_and_the_run_is_full(autojump_clock):
    async def source():
        with trio.CancelScope():
            while True:
                yield 1

    async def fn(x):
        await trio.sleep(2)
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        await fanout.do(fn, source(), limit=2)
    assert trio.current_time() == 2


async def test_the_close_of_a_generator_may_wait_with_a_shield(autojump_clock):
    async def source():
        try:
            yield 1
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async def fn(x):
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        await fanout.map(fn, source())
    assert trio.current_time() == 3


async def test_an_async_iterable_that_is_not_a_generator_is_left_open(autojump_clock):
    send, receive = trio.open_memory_channel[int](10)
    for x in range(10):
        send.send_nowait(x)

    async def fn(x):
        if x == 3:
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        await fanout.do(fn, receive, limit=1)
    assert await receive.receive() == 4  # the run took no more than it needed
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(1):
            await fanout.do(double, receive)
    send.send_nowait(99)
    assert await receive.receive() == 99


async def test_an_iterable_that_makes_a_generator_has_that_generator_closed(autojump_clock):
    """The run iterates it, so nothing else can close it."""
    watched = Watched(100)

    class Iterable:
        def __aiter__(self):
            return watched.generator

    async def fn(x):
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        await fanout.do(fn, Iterable(), limit=1)
    assert watched.closed


async def test_a_channel_as_the_source_hands_items_over_as_they_come(autojump_clock):
    send, receive = trio.open_memory_channel[int](0)
    seen = []

    async def fn(x):
        seen.append((x, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.do, fn, receive)
        async with send:
            for x in range(3):
                await trio.sleep(1)
                await send.send(x)
                await wait_all_tasks_blocked()
    assert seen == [(0, 1), (1, 2), (2, 3)]


async def test_a_source_within_a_context_manager(autojump_clock):
    @asynccontextmanager
    async def opened():
        yield Watched(5)

    async with opened() as source:
        assert await fanout.map(double, source.generator) == [0, 2, 4, 6, 8]


class Rows:
    """Numbers from a plain generator, which notes when it is closed."""

    def __init__(self, events, error=None):
        self.events = events
        self.error = error

    def __iter__(self):
        try:
            yield from range(100)
        finally:
            self.events.append("closed")
            if self.error is not None:
                raise self.error


async def fail_at_3(x):
    if x == 3:
        raise ValueError("failed")


@pytest.mark.parametrize("make", [iter, lambda rows: rows, lambda rows: (row for row in rows)])
async def test_a_plain_generator_is_closed_before_the_failure_is_raised(make):
    """As under `for`, also where the call has made it from an iterable."""
    events = []
    items = make(Rows(events))
    try:
        await fanout.map(fail_at_3, items, limit=1)
    except ValueError as exc:
        kept = exc
        events.append("failed")
    assert events == ["closed", "failed"]
    assert kept.args == ("failed",)


async def test_a_plain_generator_is_closed_when_there_are_too_many_failures():
    events = []
    with pytest.raises(fanout.FanOutError):
        await fanout.map(fail_at_3, iter(Rows(events)), limit=1, policy=fanout.Collect(max_failures=1))
    assert events == ["closed"]


async def test_a_plain_generator_is_closed_when_the_first_success_ends_the_call():
    events = []
    assert await fanout.map(double, iter(Rows(events)), limit=2, policy=fanout.FirstSuccess()) == 0
    assert events == ["closed"]


async def test_a_plain_generator_is_closed_by_a_cancellation_and_by_a_time_limit(autojump_clock):
    events = []
    with trio.move_on_after(1):
        await fanout.do(sleep_and_return, iter(Rows(events)), limit=1)
    assert events == ["closed"]
    await fanout.map(sleep_and_return, iter(Rows(events)), limit=1, policy=fanout.Settle(move_on_after=1))
    assert events == ["closed"] * 2


async def sleep_and_return(x):
    await trio.sleep(1)
    return x


async def test_a_plain_generator_is_closed_when_a_stream_is_left_or_stopped(autojump_clock):
    events = []
    async with fanout.stream(sleep_and_return, iter(Rows(events)), limit=2) as results:
        async for _ in results:
            break
    assert events == ["closed"]
    async with fanout.stream(sleep_and_return, iter(Rows(events)), limit=2) as results:
        async for _ in results:
            results.stop()
    assert events == ["closed"] * 2


async def test_other_iterators_belong_to_the_caller():
    items = iter(list(range(10)))
    with pytest.raises(ValueError, match="failed"):
        await fanout.map(fail_at_3, items, limit=1)
    assert next(items) == 4


async def test_a_plain_generator_is_closed_in_the_context_that_it_ran_in():
    var = contextvars.ContextVar("var")

    def rows():
        token = var.set("of the source")
        try:
            yield from range(100)
        finally:
            var.reset(token)

    with pytest.raises(ValueError, match="failed"):
        await fanout.map(fail_at_3, rows(), limit=1)


async def test_what_the_closing_of_a_plain_generator_raises_is_raised_with_the_failures_chained():
    error = OSError("disk full")
    with pytest.raises(OSError, match="disk full") as raised:
        await fanout.map(fail_at_3, Rows([], error), limit=1)
    assert "item 3" in printed(raised.value)


async def test_ctrl_c_outranks_what_the_closing_of_a_plain_generator_raises():
    async def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        await fanout.map(interrupted, Rows([], OSError("disk full")), limit=1)
    assert "disk full" in printed(raised.value)


async def test_a_generator_that_does_not_stop_when_it_is_closed_is_an_error():
    def rows():
        try:
            yield 3
            yield from range(4, 10)
        finally:
            yield "one more"

    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        await fanout.map(fail_at_3, rows(), limit=1)


async def test_a_closed_source_leaves_no_cycle(autojump_clock):
    async def once():
        try:
            await fanout.map(slow, Watched(5).generator, item_timeout=1)
        except trio.TooSlowError:
            pass

    await check_no_cycles(once)


async def test_a_length_that_is_too_long_for_python():
    async def stop(x):
        if x == 3:
            raise KeyError(x)

    with pytest.raises(KeyError):
        await fanout.do(stop, range(10**30), limit=1)


async def test_an_async_generator_is_closed_by_a_call_that_is_cancelled_from_the_start():
    closed = []

    async def generator():
        try:
            yield 0
            yield 1
        finally:
            closed.append(True)

    for call in ("map", "stream"):
        items = generator()
        assert await anext(items) == 0
        with trio.CancelScope() as scope:
            scope.cancel()
            if call == "map":
                await fanout.map(double, items)
            else:
                async with fanout.stream(double, items) as results:
                    await results.receive()
        assert scope.cancelled_caught
        assert closed.pop()


class FalseError(Exception):
    """An exception that is false, as one with a length of 0 is."""

    def __bool__(self):
        return False


@KINDS
@POLICIES
async def test_a_source_may_raise_what_is_false(policy, kind):
    with pytest.raises(FalseError):
        await fanout.map(trio.sleep, raising(kind, 0, FalseError()), policy=policy)


async def test_a_failure_may_be_false(autojump_clock):
    async def fn(x):
        raise FalseError from FalseError()

    with pytest.raises(FalseError) as caught:
        await fanout.map(fn, [1])
    assert isinstance(caught.value.__cause__, FalseError)
    (failed,) = await fanout.map(fn, [1], policy=fanout.Settle())
    assert isinstance(failed.error, FalseError)
    with pytest.raises(FalseError):
        async with fanout.stream(fn, [1]) as results:
            await trio.sleep(1)
            raise FalseError  # of the block
    with pytest.raises(FalseError):
        async with fanout.stream(fn, [1]) as results:
            await results.receive()
    with trio.CancelScope() as scope, pytest.raises(FalseError):
        async with fanout.open_group() as group:
            group.start_soon(fn, 1)
            scope.cancel()
            await trio.sleep(1)


async def test_what_a_class_lacks_is_not_asked_of_the_instance():
    class Lazy(dict[str, int]):
        __getattr__ = dict.__getitem__

    assert await fanout.map(double, Lazy(a=1)) == ["aa"]


async def test_a_queue_whose_length_is_what_waits_in_it_limits_nothing(autojump_clock):
    class Queue(AsyncCountingSource):
        def __len__(self):
            return 1  # the next item

    gauge = Gauge()

    async def fn(x):
        with gauge.running():
            await trio.sleep(100)
        return x

    assert await fanout.map(fn, Queue([1, 2, 3, 4])) == [1, 2, 3, 4]
    assert gauge.peak == 4


async def test_a_scope_of_the_source_that_times_out_while_there_is_no_room_is_the_source_s_own(autojump_clock):
    async def source():
        with trio.move_on_after(1):
            for n in (5, 5, 5):
                yield n
            await trio.sleep_forever()
        yield 7

    async def sleep(seconds):
        await trio.sleep(seconds)
        return seconds

    async with contextlib.aclosing(source()) as items:
        assert await fanout.map(sleep, items, limit=1) == [5, 5, 5, 7]


@pytest.mark.parametrize("ordered", [True, False])
async def test_a_source_may_stop_its_own_stream(ordered, autojump_clock):
    def source():
        for n in range(5):
            if n == 2:
                results.stop()
            yield n

    async with fanout.stream(double, source(), limit=1, ordered=ordered) as results:
        assert [value async for _, _, value in results] == [0, 2]


async def in_a_nursery(closed, *, nested=False):
    """Hold a nursery open around the items, and note when they are closed."""
    async with trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        if nested:
            await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(trio.sleep_forever)
        try:
            for x in range(100):
                yield x
        finally:
            closed.append(True)


@pytest.mark.parametrize("nested", [False, True])
async def test_a_source_that_holds_a_nursery_and_is_left_early_hides_no_failure(nested, autojump_clock):
    """The nursery wraps the GeneratorExit by which the source is closed in a group."""
    closed = []
    with nothing_left(), pytest.raises(ValueError, match="failed") as raised:
        await fanout.map(fail_at_3, in_a_nursery(closed, nested=nested), limit=1)
    assert closed
    assert "GeneratorExit" not in printed(raised.value)
    async with fanout.stream(double, in_a_nursery(closed, nested=nested), limit=1) as results:
        async for _ in results:
            break


async def test_a_source_that_holds_a_nursery_is_closed_when_a_stream_is_stopped(autojump_clock):
    """While its next item is not awaited: nothing is cancelled but the nursery, by the GeneratorExit."""
    closed = []
    async with fanout.stream(double, in_a_nursery(closed), limit=1, buffer=0) as results:
        assert await results.receive() == (0, 0, 0)
        await wait_all_tasks_blocked()
        results.stop()
        with pytest.raises(trio.EndOfChannel):
            while True:
                await results.receive()
    assert closed == [True]


async def test_what_a_nursery_in_a_source_raises_when_it_is_closed_is_raised(autojump_clock):
    async def fail():
        try:
            await trio.sleep_forever()
        finally:
            raise SourceError("while closing")

    async def source():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await wait_all_tasks_blocked()
            for x in range(100):
                yield x

    with pytest.raises(ExceptionGroup) as raised:
        await fanout.map(fail_at_3, source(), limit=1)
    assert [type(exc) for exc in raised.value.exceptions] == [SourceError]
    assert "item 3" in printed(raised.value)


async def test_the_reader_of_a_source_is_woken_when_the_tokens_of_a_shared_limiter_rise(autojump_clock):
    """Even if no item has started yet, and so none ends."""
    limiter = trio.CapacityLimiter(1)
    await limiter.acquire_on_behalf_of("an outsider")
    source = AsyncCountingSource(range(10))

    async def item(x):
        await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: fanout.do(item, source, limit=limiter))
        await wait_all_tasks_blocked()
        limiter.total_tokens = 6
        await wait_all_tasks_blocked()
        assert limiter.borrowed_tokens == 6
        limiter.release_on_behalf_of("an outsider")
    assert trio.current_time() == 2


@pytest.mark.parametrize("seed", range(20))
async def test_a_burst_from_an_async_source_starts_all_items_there_is_room_for(seed, autojump_clock, monkeypatch):
    """Whichever of the workers that are idle, and the one that has just finished, take the first of them."""
    monkeypatch.setattr("trio._core._run._r", random.Random(seed))
    burst = trio.Event()
    running = []

    async def source():
        yield 0
        await burst.wait()
        for x in range(1, 4):
            yield x

    async def fn(x):
        if x == 0:
            await wait_all_tasks_blocked()
            burst.set()
            await trio.lowlevel.checkpoint()
        else:
            running.append(x)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: fanout.do(fn, source(), limit=3))
        await trio.sleep(0.5)
        assert running == [1, 2, 3]


async def test_what_a_source_with_a_nursery_raises_is_split_even_if_its_group_cannot_be(autojump_clock):
    class Strange(ExceptionGroup):
        def derive(self, excs):
            raise ZeroDivisionError

    async def source():
        try:
            for x in range(100):
                yield x
        except GeneratorExit as exit_:
            raise BaseExceptionGroup("both", [exit_, Strange("strange", [SourceError("while closing")])]) from None

    with pytest.raises(BaseExceptionGroup) as raised:
        await fanout.map(fail_at_3, source(), limit=1)
    assert "ZeroDivisionError" not in printed(raised.value)


@pytest.mark.parametrize("make", [AsyncCountingSource, CountingSource])
async def test_a_stream_that_is_over_keeps_no_source_alive(make):
    source = make(range(3))
    async with fanout.stream(double, source) as results:
        pass
    ref = weakref.ref(source)
    del source
    gc.collect()
    assert ref() is None
    assert "closed" in repr(results)
