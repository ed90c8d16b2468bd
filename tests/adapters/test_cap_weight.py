"""`cap` with `weight`: how much the calls that run weigh together, and which is next."""

import decimal
import functools
import math
import random
import sys
from fractions import Fraction
from typing import NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import ALL_POLICIES, no_cycles, nothing_left
from trio_fanout import cap, throttle


class Work:
    """An async function that takes a second, or as long as it is told, and notes when it is called, and with what."""

    def __init__(self):
        self.starts = []
        self.running = 0

    async def __call__(self, weight, seconds=1):
        self.starts.append((weight, trio.current_time()))
        self.running += 1
        try:
            await trio.sleep(seconds)
        finally:
            self.running -= 1
        return weight

    @property
    def sorted(self):
        """By time: of those that start at the same time, Trio runs any first."""
        return sorted(self.starts, key=lambda start: start[::-1])

    @property
    def times(self):
        return [time for _, time in self.starts]


def weight_of(weight, *args, **kwargs):
    return weight


async def call_in_turn(fn, *weights):
    """Call `fn` with each of `weights`, one task each, so that the order of the calls is known."""
    async with trio.open_nursery() as nursery:
        for weight in weights:
            nursery.start_soon(fn, weight)
            await wait_all_tasks_blocked()


async def test_calls_that_are_cancelled_together_do_not_start(autojump_clock):
    """As the heavy one leaves the line, light ones behind it might fit."""
    for _ in range(10):
        work = Work()
        fn = cap(work, 10, weight=weight_of)
        async with trio.open_nursery() as outer:
            outer.start_soon(fn, 8)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as inner:
                for weight in (5, 0.5, 0.25, 0.125):
                    inner.start_soon(fn, weight)
                    await wait_all_tasks_blocked()
                inner.cancel_scope.cancel()
        assert work.starts == [(8, trio.current_time() - 1)]


# How much


async def test_calls_that_run_weigh_at_most_the_limit(autojump_clock):
    work = Work()
    await call_in_turn(cap(work, 10, weight=weight_of), 4, 6, 5, 5, 1, 9, 10)
    assert work.sorted == [(4, 0), (6, 0), (5, 1), (5, 1), (1, 2), (9, 2), (10, 3)]


async def test_two_large_or_twenty_small(autojump_clock):
    work = Work()
    fn = cap(work, 20, weight=weight_of)
    await fanout.do(fn, [10] * 4, limit=100)
    await fanout.do(fn, [1] * 40, limit=100)
    assert work.times == [0] * 2 + [1] * 2 + [2] * 20 + [3] * 20


@pytest.mark.parametrize(
    ("weight", "count", "limit"),
    [(0.1, 10, 1), (0.7, 10, 7), (1.1, 10, 11), (1 / 3, 3, 1), (0.25, 4, 1), (1e-300, 7, 1)],
)
async def test_weights_are_judged_as_the_sum_that_a_float_shows(autojump_clock, weight, count, limit):
    """Ten times 0.1 fits into 1, though a sum one by one may be above it, and the exact sum is."""
    work = Work()
    await fanout.do(cap(work, limit, weight=weight_of), [weight] * count, limit=100)
    assert work.times == [0] * count


async def test_sum_does_not_drift(autojump_clock):
    """Weights come and go for a long time, never all at once: what fits at first fits at last."""
    work = Work()
    fn = cap(work, 1, weight=weight_of)
    dice = random.Random(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fn, 0.1, math.inf)
        await wait_all_tasks_blocked()
        await fanout.do(fn, [dice.choice([0.1, 0.2, 0.3, 1e-9, 1 / 3]) for _ in range(1_000)], limit=50)
        assert work.running == 1
        begin = trio.current_time()
        await fanout.do(fn, [0.1] * 9, limit=9)
        assert work.times[-9:] == [begin] * 9
        await fanout.do(fn, [0.1] * 10, limit=10)
        assert work.times[-10:] == [begin + 1] * 9 + [begin + 2]
        nursery.cancel_scope.cancel()


async def test_call_heavier_than_the_limit_runs_alone(autojump_clock):
    work = Work()
    await call_in_turn(cap(work, 3, weight=weight_of), 1, 5, 0, 3, 7.5, 1e308)
    assert work.sorted == [(1, 0), (5, 1), (0, 2), (3, 2), (7.5, 3), (1e308, 4)]


async def test_call_of_no_weight_keeps_a_heavy_one_waiting(autojump_clock):
    """Alone is alone: it is those that run who count, and not what they weigh."""
    work = Work()
    await call_in_turn(cap(work, 1, weight=weight_of), 0, 2, 0)
    assert work.starts == [(0, 0), (2, 1), (0, 2)]


async def test_calls_of_no_weight_are_not_bounded(autojump_clock):
    work = Work()
    await fanout.do(cap(work, 1, weight=weight_of), [1] + [0] * 50, limit=100)
    assert work.times == [0] * 51


@pytest.mark.parametrize("limit", [math.inf, 10**400])
async def test_without_a_bound_all_run_at_once(autojump_clock, limit):
    work = Work()
    await fanout.do(cap(work, limit, weight=weight_of), [1e300, 0, 5, 0.1] * 10, limit=100)
    assert work.times == [0] * 40


async def test_weights_whose_sum_no_float_can_hold(autojump_clock):
    work = Work()
    fn = cap(work, 10**308, weight=weight_of)
    await call_in_turn(fn, 1.7e308, 1.7e308, 1, 5e-324, 10**308)
    assert [time for _, time in work.starts] == [0, 1, 2, 2, 3]
    work = Work()
    await fanout.do(cap(work, math.inf, weight=weight_of), [sys.float_info.max] * 3)
    assert work.times == [trio.current_time() - 1] * 3


async def test_weights_may_be_of_a_subclass(autojump_clock):
    class Megabytes(float):
        """As some libraries have them."""

    class Slots(int):
        """The same."""

    work = Work()
    await call_in_turn(cap(work, 1, weight=weight_of), Megabytes(0.5), Slots(1), Megabytes(0.5))
    assert work.times == [0, 1, 2]


async def test_each_key_has_a_limit_of_its_own(autojump_clock):
    work = Work()

    async def fn(host, weight):
        await work(weight)

    capped = cap(fn, 2, key=lambda host, weight: host, weight=lambda host, weight: weight)
    async with trio.open_nursery() as nursery:
        for host, weight in [("a", 2), ("a", 1), ("b", 1), ("b", 1), ("a", 1), ("b", 2)]:
            nursery.start_soon(capped, host, weight)
            await wait_all_tasks_blocked()
    assert work.sorted == [(1, 0), (1, 0), (2, 0), (1, 1), (1, 1), (2, 1)]


async def test_weight_gets_all_the_arguments_in_the_task_of_the_call(autojump_clock):
    seen = []

    async def fn(*args, **kwargs):
        return args, kwargs

    def weight(*args, **kwargs):
        seen.append((args, kwargs, trio.lowlevel.current_task()))
        return 1

    assert await cap(fn, 1, weight=weight)("a", 3, b=4) == (("a", 3), {"b": 4})
    assert seen == [(("a", 3), {"b": 4}, trio.lowlevel.current_task())]


async def test_weight_is_asked_before_the_call_waits(autojump_clock):
    asked = []
    work = Work()
    fn = cap(work, 1, weight=lambda item: asked.append((item, trio.current_time())) or 1)
    await call_in_turn(fn, "a", "b", "c")
    assert asked == [("a", 0), ("b", 0), ("c", 0)]
    assert work.times == [0, 1, 2]


# Which is next


async def test_light_call_never_overtakes_a_heavy_one(autojump_clock):
    work = Work()
    await call_in_turn(cap(work, 10, weight=weight_of), 6, 5, 1, 0, 4)
    assert work.sorted == [(6, 0), (0, 1), (1, 1), (4, 1), (5, 1)]


async def test_cancelled_in_the_line_uses_up_nothing_and_those_behind_move_up_at_once(autojump_clock):
    work = Work()
    fn = cap(work, 10, weight=weight_of)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fn, 5, 10)
        await wait_all_tasks_blocked()
        with trio.move_on_after(2):
            async with trio.open_nursery() as inner:
                inner.start_soon(fn, 8)
                await wait_all_tasks_blocked()
                for weight in (3, 2, 1):
                    nursery.start_soon(fn, weight)
                    await wait_all_tasks_blocked()
    assert work.sorted == [(5, 0), (2, 2), (3, 2), (1, 3)]


async def test_cancelled_together_leaves_the_rest_in_their_order(autojump_clock):
    work = Work()
    fn = cap(work, 4, weight=weight_of)
    scopes = {}

    async def call(weight):
        with trio.CancelScope() as scopes[weight]:
            await fn(weight, weight)

    async with trio.open_nursery() as nursery:
        for weight in (3, 4, 2, 5, 1):
            nursery.start_soon(call, weight)
            await wait_all_tasks_blocked()
        for weight in (5, 3, 4):
            scopes[weight].cancel()
    assert sorted(work.starts) == [(1, 0), (2, 0), (3, 0)]


async def test_already_cancelled_calls_nothing(autojump_clock):
    work = Work()
    fn = cap(work, 1, weight=weight_of)
    with trio.CancelScope() as scope:
        scope.cancel()
        await fn(1)
    assert scope.cancelled_caught
    assert work.starts == []
    await fn(1)


@pytest.mark.parametrize("policy", ALL_POLICIES, ids=str)
async def test_failure_puts_its_weight_back(autojump_clock, policy):
    async def fail(weight):
        await trio.sleep(1)
        raise ValueError(weight)

    fn = cap(fail, 1, weight=weight_of)
    with nothing_left():
        try:
            await fanout.map(fn, [0.3, 0.7, 2, 0.1], policy=policy)
        except* ValueError:
            pass
    begin = trio.current_time()
    with pytest.raises(ValueError, match="1"):
        await fn(1)
    assert trio.current_time() == begin + 1


async def test_each_call_is_a_checkpoint(autojump_clock):
    async def at_once(item):
        return item

    fn = cap(at_once, 1, weight=weight_of)
    for weight in (0, 0.5, 1, 3):
        with assert_checkpoints():
            assert await fn(weight) == weight


async def test_call_within_itself_is_an_error_whatever_the_two_weigh(autojump_clock):
    async def recurse(weight):
        await trio.sleep(1)
        await capped(0)

    capped = cap(recurse, math.inf, weight=weight_of)
    for weight in (0, 1):
        with nothing_left(), pytest.raises(RuntimeError, match=r"^recurse was called under its own cap"):
            await capped(weight)


# What `weight` and `cost` may say, and what they may be

COUNTED = pytest.mark.parametrize(
    ("adapter", "argument"),
    [(cap, "weight"), (throttle, "cost"), (functools.partial(cap, key=lambda item: 0), "weight")],
    ids=["weight", "cost", "keyed"],
)


@COUNTED
@pytest.mark.parametrize(
    "bad",
    [True, False, None, "1", decimal.Decimal(1), Fraction(1), 1j, [], trio.Event()],
    ids=lambda bad: type(bad).__name__,
)
async def test_answer_of_another_type_is_an_error_of_that_call(autojump_clock, adapter, argument, bad):
    work = Work()
    fn = adapter(work, 1, **{argument: lambda item: 1 if item == "good" else bad})
    with nothing_left(), pytest.raises(TypeError, match=f"^{argument} must return a finite number of 0 or more, got"):
        await fn("bad")
    await fn("good")
    assert work.starts == [("good", 0)]


@COUNTED
@pytest.mark.parametrize(
    "bad",
    [-1, -0.1, math.nan, math.inf, -math.inf, 10**400, -(10**400), 2**1024],
    ids=["-1", "-0.1", "nan", "inf", "-inf", "huge", "-huge", "2**1024"],
)
async def test_answer_out_of_range_is_an_error_of_that_call(autojump_clock, adapter, argument, bad):
    work = Work()
    fn = adapter(work, 1, **{argument: lambda item: bad})
    with nothing_left(), pytest.raises(ValueError, match=f"^{argument} must return a finite number of 0 or more, got"):
        await fn("bad")
    assert work.starts == []


@COUNTED
async def test_answer_to_be_awaited_is_a_type_error_and_leaves_no_warning(autojump_clock, adapter, argument):
    async def units(item):
        """Never run."""

    with pytest.raises(TypeError, match=f"^{argument} must be a function that is not async, but units is"):
        adapter(Work(), 1, **{argument: units})
    fn = adapter(Work(), 1, **{argument: lambda item: units(item)})  # noqa: PLW0108 (not seen to be async)
    with pytest.raises(TypeError, match=f"^{argument} must return a finite number of 0 or more, got a coroutine"):
        await fn("x")


@COUNTED
async def test_what_it_raises_the_call_raises(autojump_clock, adapter, argument):
    work = Work()
    fn = adapter(work, 1, **{argument: lambda item: 1 // item})
    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.map(fn, [1, 0, 1], policy=fanout.Collect())
    assert caught.value.indices == (1,)
    assert isinstance(caught.value.failures[1], ZeroDivisionError)
    assert len(work.starts) == 2


@COUNTED
async def test_wrong_answer_holds_up_nobody(autojump_clock, adapter, argument):
    """The bad one fails before it waits, and neither takes a place in the line nor keeps a state for its key."""
    work = Work()
    fn = adapter(work, 1, **{argument: lambda item, *_: -1 if item == "bad" else 1})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fn, "a")
        await wait_all_tasks_blocked()
        nursery.start_soon(fn, "b")
        await wait_all_tasks_blocked()
        with pytest.raises(ValueError, match=argument):
            await fn("bad")
        assert trio.current_time() == 0
    assert trio.current_time() <= 2


@COUNTED
@pytest.mark.parametrize("bad", [3, "units", True, 0.5])
def test_it_must_be_a_function(adapter, argument, bad):
    with pytest.raises(TypeError, match=f"^{argument} must be a function that is not async, got"):
        adapter(Work(), 1, **{argument: bad})


@pytest.mark.parametrize(
    ("adapter", "argument"),
    [(cap, "key"), (cap, "weight"), (cap, "overloaded"), (throttle, "key"), (throttle, "cost")],
)
@pytest.mark.parametrize("bad", [ConnectionError, Exception, KeyboardInterrupt, BaseExceptionGroup])
def test_exception_class_is_refused_by_name(adapter, argument, bad):
    """It can be called, and would answer each call with an exception."""
    with pytest.raises(TypeError, match=f"^{argument} must be a function .* got the class {bad.__name__}"):
        adapter(Work(), 1, **{argument: bad})


def test_message_for_an_exception_class_shows_what_to_write():
    with pytest.raises(TypeError, match=r"pass a function such as lambda exc: isinstance\(exc, OSError\)$"):
        cap(Work(), 1, overloaded=ConnectionError)


def test_tuple_of_exception_classes_is_refused_too():
    with pytest.raises(TypeError, match=r"^overloaded must be a function that is not async, got a tuple"):
        cap(Work(), 1, overloaded=(ConnectionError, TimeoutError))


async def test_other_classes_are_functions(autojump_clock):
    work = Work()
    await cap(work, 1, key=str, weight=int)("1")
    await throttle(work, 1, key=str, cost=float)("1")


def test_limiter_and_weight_do_not_go_together():
    with pytest.raises(
        TypeError,
        match=r"^limit must be an int of 1 or more or math\.inf where there is a weight, got a CapacityLimiter$",
    ):
        cap(Work(), trio.CapacityLimiter(3), weight=len)


def test_overloaded_and_weight_do_not_go_together():
    with pytest.raises(TypeError, match=r"^overloaded must be None where there is a weight, got a function"):
        cap(Work(), 3, weight=len, overloaded=lambda exc: True)


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_limit(limit, error):
    with pytest.raises(error, match=r"^limit must be"):
        cap(Work(), limit, weight=len)


async def test_state_goes_with_the_function(autojump_clock):
    with no_cycles():
        fn = cap(Work(), 1, weight=weight_of)
        await fn(0.5)
        del fn
        await trio.lowlevel.checkpoint()  # Trio lets go of the frames of the last wait


# Against a model


class Call(NamedTuple):
    gap: float
    weight: float
    takes: float
    patience: float = math.inf


def model(limit, calls):
    """The starts: each takes the first moment, in the order of the line, at which its weight fits. None: it gave up."""
    arrivals, now = [], Fraction(0)
    for call in calls:
        now += Fraction(call.gap)
        arrivals.append(now)
    gives_up = [now + Fraction(call.patience) if call.patience < math.inf else math.inf
                for call, now in zip(calls, arrivals, strict=True)]  # fmt: skip
    starts = [None] * len(calls)
    running, line, waits = {}, [], list(range(len(calls)))
    while True:
        ends = [starts[n] + Fraction(calls[n].takes) for n in running]
        moments = [*ends, *(arrivals[n] for n in waits), *(gives_up[n] for n in line if gives_up[n] < math.inf)]
        if not moments:
            return starts
        now = min(moments)
        for n in [n for n in running if starts[n] + Fraction(calls[n].takes) == now]:
            del running[n]
        line += [n for n in waits if arrivals[n] == now]
        waits = [n for n in waits if arrivals[n] > now]
        line = [n for n in line if gives_up[n] > now]
        while line:
            n = line[0]
            weight = Fraction(calls[n].weight)
            if running and float(sum(running.values()) + weight) > limit:
                break
            line.pop(0)
            starts[n] = now
            running[n] = weight


@pytest.mark.slow
@given(
    limit=st.sampled_from([1, 2, 5, math.inf]),
    calls=st.lists(
        st.builds(
            Call,
            st.sampled_from([0.25, 1, 3]),
            st.sampled_from([0, 0.1, 0.3, 1 / 3, 1, 2, 3.5, 7, 1e-20, 1e300]),
            st.sampled_from([0.5, 2, 8, 30]),
            st.sampled_from([math.inf] * 4 + [0.125, 1.5, 5.0]),
        ),
        max_size=25,
    ),
)
def test_starts_are_those_of_the_model(limit, calls):
    """Moments are at an eighth of a second: no call ends just as another gives up, but where the model says which."""
    calls = [call._replace(takes=call.takes + 1 / 16, patience=call.patience + 1 / 32) for call in calls]
    starts = [None] * len(calls)

    async def main():
        scopes = {}

        async def work(number):
            scopes[number].deadline = math.inf  # it is patient while it waits
            starts[number] = trio.current_time()
            await trio.sleep(calls[number].takes)

        fn = cap(work, limit, weight=lambda number: calls[number].weight)

        async def call(number):
            with trio.move_on_after(calls[number].patience) as scopes[number]:
                await fn(number)

        async with trio.open_nursery() as nursery:
            for number, one in enumerate(calls):
                await trio.sleep(one.gap)
                nursery.start_soon(call, number)
                await wait_all_tasks_blocked()

    trio.run(main, clock=MockClock(autojump_threshold=0.001))
    assert starts == model(limit, calls)
