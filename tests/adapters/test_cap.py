"""`cap`: how many calls are at work, which is next, and what is kept of it."""

import functools
import gc
import math
import subprocess
import sys
import threading
import tracemalloc
import weakref
from collections import Counter
from fractions import Fraction

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import ALL_POLICIES, Gauge, no_cycles, nothing_left
from trio_fanout import cap

BIG_ENOUGH = pytest.mark.parametrize("limit", [1, 3, math.inf, "limiter"])
ADAPTIVE = pytest.mark.parametrize("options", [{}, {"overloaded": lambda exc: False}], ids=["fixed", "adaptive"])


class Work:
    """An async function that takes a second, or as long as it is told, and notes when it is called, and with what."""

    def __init__(self):
        self.starts = []
        self.gauge = Gauge()

    async def __call__(self, item, seconds=1):
        self.starts.append((item, trio.current_time()))
        with self.gauge.running():
            await trio.sleep(seconds)
        return item

    @property
    def items(self):
        return [item for item, _ in self.starts]

    @property
    def times(self):
        return [time for _, time in self.starts]


class Key:
    """What a weak reference can watch."""


def make_limit(limit):
    return trio.CapacityLimiter(3) if limit == "limiter" else limit


def limits(number):
    return [number, trio.CapacityLimiter(number)]


async def call_in_turn(fn, *items):
    """Call `fn` with each of `items`, one task each, so that the order of the calls is known."""
    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()


# How many


@ADAPTIVE
async def test_calls_at_work_are_as_many_as_the_limit_and_no_more(autojump_clock, options):
    for limit in limits(3):
        work = Work()
        begin = trio.current_time()
        assert await fanout.map(cap(work, limit, **options), range(9), limit=9) == list(range(9))
        assert [time - begin for time in work.times] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        assert work.gauge.peak == 3


async def test_without_a_bound_all_are_at_work_at_once(autojump_clock):
    work = Work()
    await fanout.do(cap(work, math.inf), range(100), limit=100)
    assert work.times == [0] * 100


async def test_item_that_waits_between_attempts_holds_no_token(autojump_clock):
    """Which is what a cap is for: the same by `map`'s own limit takes 33 seconds."""
    work = Work()
    get = cap(work, 1)

    async def fetch(item):
        await get(item)
        await trio.sleep(10)  # as a retry does
        return await get(item)

    await fanout.do(fetch, range(3), limit=3)
    assert work.times == [0, 1, 2, 11, 12, 13]
    assert trio.current_time() == 14


async def test_bound_holds_over_all_calls_that_use_it(autojump_clock):
    work = Work()
    fn = cap(work, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.do, fn, range(3))
        nursery.start_soon(fanout.do, fn, range(3))
        nursery.start_soon(fn, "x")
    assert sorted(work.times) == [0, 0, 1, 1, 2, 2, 3]


async def test_two_caps_of_one_function_do_not_know_each_other(autojump_clock):
    work = Work()
    await fanout.fan_out([cap(work, 1), cap(work, 1)], "x")
    assert work.times == [0, 0]


async def test_function_may_be_capped_twice(autojump_clock):
    """Four calls hold a token of the outer cap, two of them one of the inner, too."""
    work = Work()
    inner = cap(work, 2)
    outer = cap(inner, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fanout.do, outer, range(8))
        await wait_all_tasks_blocked()
        nursery.start_soon(inner, "x")  # behind the four
    assert work.times == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert dict(work.starts)["x"] == 2


@ADAPTIVE
async def test_limiter_is_shared_with_all_who_use_it(autojump_clock, options):
    limiter = trio.CapacityLimiter(3)
    work, gauge = Work(), Gauge()

    async def other(x):
        with gauge.running():
            await work(x)

    limiter.acquire_on_behalf_of_nowait("a thread")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, cap(work, limiter, **options), range(4)))
        nursery.start_soon(functools.partial(fanout.do, cap(work, limiter, **options), range(4)))
        nursery.start_soon(functools.partial(fanout.do, other, range(4), limit=limiter))
        await trio.sleep(3.5)
        limiter.release_on_behalf_of("a thread")
    assert sorted(Counter(work.times).items()) == [(0, 2), (1, 2), (2, 2), (3, 2), (3.5, 1), (4, 2), (4.5, 1)]
    assert limiter.borrowed_tokens == 0


async def test_tokens_of_a_limiter_are_borrowed_by_tasks(autojump_clock):
    """So that its statistics tell which, and a nested run on it finds them."""
    limiter = trio.CapacityLimiter(3)

    async def nested(x):
        assert limiter.statistics().borrowers == [trio.lowlevel.current_task()]
        await fanout.do(trio.sleep, [0], limit=limiter)

    for options in ({}, {"overloaded": lambda exc: False}):
        with nothing_left(limiter), pytest.raises(RuntimeError, match="can deadlock"):
            await cap(nested, limiter, **options)("x")


@ADAPTIVE
async def test_limiter_may_change_while_calls_wait(autojump_clock, options):
    limiter = trio.CapacityLimiter(1)
    work = Work()
    fn = cap(work, limiter, **options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, fn, range(12), limit=12))
        await trio.sleep(1.5)
        limiter.total_tokens = 4  # three more at once
        await trio.sleep(0.75)
        limiter.total_tokens = 0  # those that run go on
        await trio.sleep(7.75)
        assert limiter.borrowed_tokens == 0
        limiter.total_tokens = 2
    assert work.times == [0, 1, 1.5, 1.5, 1.5, 2, 10, 10, 11, 11, 12, 12]


# Which is next


@ADAPTIVE
@pytest.mark.parametrize("slow", [0, 3])
async def test_first_come_first_served(autojump_clock, options, slow):
    """Also where some take longer than others."""
    for limit in limits(2):
        work = Work()
        fn = cap(lambda item, work=work: work(item, 1 + slow * (item % 3) / 8), limit, **options)
        await call_in_turn(fn, *range(30))
        # Of those that start at the same time, Trio runs any first.
        assert sorted(work.starts) == sorted(work.starts, key=lambda start: start[::-1])


@ADAPTIVE
async def test_no_call_passes_those_that_wait(autojump_clock, options):
    """The call that comes as a token is put back finds it taken, as it was handed over."""
    for limit in limits(1):
        work = Work()
        fn = cap(work, limit, **options)

        async def again(fn=fn):
            await fn("a")
            await fn("b")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(again)
            await wait_all_tasks_blocked()
            nursery.start_soon(fn, "c")
        assert work.items == ["a", "c", "b"]


# With a key


def host_of(page):
    return page[0]


async def test_each_key_has_a_limit_and_an_order_of_its_own(autojump_clock):
    work = Work()
    await call_in_turn(cap(work, 2, key=host_of), "a0", "a1", "a2", "a3", "a4", "b0", "c0", "c1", "c2")
    assert sorted(work.starts, key=lambda start: (start[1], start[0])) == [
        ("a0", 0), ("a1", 0), ("b0", 0), ("c0", 0), ("c1", 0), ("a2", 1), ("a3", 1), ("c2", 1), ("a4", 2),
    ]  # fmt: skip


async def test_key_outside_and_total_inside(autojump_clock):
    """What waits for a slow host holds no token of the total."""
    work = Work()
    get = cap(work, 3)
    fetch = cap(get, 1, key=host_of)
    await call_in_turn(fetch, "a0", "a1", "a2", "a3", "b0", "b1", "c0", "d0")
    assert sorted(work.starts, key=lambda start: (start[1], start[0])) == [
        ("a0", 0), ("b0", 0), ("c0", 0), ("a1", 1), ("b1", 1), ("d0", 1), ("a2", 2), ("a3", 3),
    ]  # fmt: skip


async def test_key_gets_all_the_arguments(autojump_clock):
    seen = []

    async def fn(*args, **kwargs):
        return args, kwargs

    def key(*args, **kwargs):
        seen.append((args, kwargs, trio.lowlevel.current_task()))

    assert await cap(fn, 1, key=key)("a", 3, b=4) == (("a", 3), {"b": 4})
    assert seen == [(("a", 3), {"b": 4}, trio.lowlevel.current_task())]


@pytest.mark.parametrize("key", [None, 0, "", (), math.nan, Fraction(1, 2), frozenset({1}), Key()])
async def test_any_hashable_is_a_key(autojump_clock, key):
    work = Work()
    await fanout.do(cap(work, 1, key=lambda item: key), range(3))
    assert work.times == [0, 1, 2]


ADAPTERS = pytest.mark.parametrize("adapter", [cap, fanout.throttle])


@ADAPTERS
async def test_what_the_key_raises_the_call_raises(autojump_clock, adapter):
    work = Work()
    fn = adapter(work, 1, key=lambda item: 1 // item)
    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.map(fn, [1, 0, 1], policy=fanout.Collect())
    assert caught.value.indices == (1,)
    assert isinstance(caught.value.failures[1], ZeroDivisionError)
    assert work.items == [1, 1]


@ADAPTERS
@pytest.mark.parametrize(("key", "kind"), [([], "a list"), (([],), "a tuple"), ({}, "a dict")])
async def test_key_that_is_not_hashable_is_a_type_error(autojump_clock, adapter, key, kind):
    work = Work()
    with pytest.raises(TypeError, match=f"^key must return something hashable, got {kind} from it"):
        await adapter(work, 1, key=lambda item: key)("x")
    assert work.items == []


@ADAPTERS
async def test_key_that_is_async_is_a_type_error(autojump_clock, adapter):
    """At once where that can be seen, and else as it is called; Python has no coroutine to warn of."""

    async def key(item):
        """Never run."""

    class AsyncKey:
        async def __call__(self, item):
            """Never run."""

    for wrong in (key, functools.partial(key), AsyncKey()):
        with pytest.raises(TypeError, match=r"^key must be a function that is not async"):
            adapter(Work(), 1, key=wrong)
    with pytest.raises(TypeError, match=r"^key must be a function that is not async, got a coroutine from it"):
        await adapter(Work(), 1, key=lambda item: key(item))("x")  # noqa: PLW0108 (not seen to be async)

    class Promise:
        def __await__(self):
            """Never run."""

    with pytest.raises(TypeError, match=r"^key must be a function that is not async, got a Promise from it"):
        await adapter(Work(), 1, key=lambda item: Promise())("x")


# Within itself


@BIG_ENOUGH
@ADAPTIVE
async def test_call_within_itself_is_an_error_that_names_the_function(autojump_clock, limit, options):
    limit = make_limit(limit)

    async def recurse(depth):
        await trio.sleep(1)
        if depth:
            await capped(depth - 1)

    capped = cap(recurse, limit, **options)
    await capped(0)
    with nothing_left(), pytest.raises(RuntimeError, match=r"^recurse was called under its own cap"):
        await capped(1)
    await capped(0)


@BIG_ENOUGH
@ADAPTIVE
async def test_call_by_a_task_below_one_that_holds_a_token_is_the_same_error(autojump_clock, limit, options):
    async def crawl(depth):
        await trio.sleep(1)
        if depth:
            await fanout.map(capped, [depth - 1])

    capped = cap(crawl, make_limit(limit), **options)
    with nothing_left(), pytest.raises(RuntimeError, match=r"^crawl was called under its own cap"):
        await capped(1)
    await capped(0)


async def test_thread_calls_in_the_name_of_its_task(autojump_clock):
    def in_between():
        return trio.from_thread.run(capped)

    capped = cap(fanout.in_thread(in_between), 3)
    with pytest.raises(RuntimeError, match=r"^in_between was called under its own cap"):
        await capped()


async def test_call_of_another_key_is_none_of_itself(autojump_clock):
    async def countdown(n):
        return await capped(n - 1) if n else "done"

    capped = cap(countdown, 1, key=lambda n: n)
    assert await capped(5) == "done"
    capped = cap(countdown, 1, key=lambda n: n % 3)
    with pytest.raises(RuntimeError, match=r"^countdown was called under its own cap"):
        await capped(5)


async def test_job_that_a_call_starts_elsewhere_is_not_below_it(autojump_clock):
    """Work that finds work: the jobs are below the group, not below the job that found them."""
    seen = []

    async def visit(page):
        await trio.sleep(1)
        seen.append((page, trio.current_time()))
        if page < 8:
            group.start_soon(visit_politely, 2 * page)
            group.start_soon(visit_politely, 2 * page + 1)

    visit_politely = cap(visit, 2)
    async with fanout.open_group(limit=10) as group:
        group.start_soon(visit_politely, 1)
    assert sorted(page for page, _ in seen) == list(range(1, 16))
    assert trio.current_time() == 8


@ADAPTIVE
async def test_task_that_holds_the_limiter_for_something_else_is_refused_too(autojump_clock, options):
    limiter = trio.CapacityLimiter(3)
    work = Work()
    fn = cap(work, limiter, **options)
    with nothing_left(limiter):
        async with limiter:
            with pytest.raises(RuntimeError, match=r"^Work was called under its own cap"):
                await fn("x")
        with pytest.raises(fanout.FanOutError) as caught:
            await fanout.map(fn, range(5), limit=limiter, policy=fanout.Collect())
        assert [str(exc)[:30] for exc in caught.value.exceptions] == ["Work was called under its own "] * 5
    assert work.items == []


# Cancellation, and other ends


@ADAPTIVE
@pytest.mark.parametrize("key", [None, lambda item: 0], ids=["one", "key"])
async def test_cancelled_in_the_line_uses_up_nothing(autojump_clock, options, key):
    work = Work()
    fn = cap(work, 1, key=key, **options)
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(5)]

        async def call(item):
            with scopes[item]:
                await fn(item)

        for item in range(5):
            nursery.start_soon(call, item)
            await wait_all_tasks_blocked()
        scopes[1].cancel()
        scopes[3].cancel()
    assert work.starts == [(0, 0), (2, 1), (4, 2)]


@ADAPTIVE
async def test_already_cancelled_calls_nothing(autojump_clock, options):
    for limit in limits(1):
        work = Work()
        fn = cap(work, limit, **options)
        with trio.CancelScope() as scope:
            scope.cancel()
            await fn("a")
        assert scope.cancelled_caught
        assert work.items == []
        await fn("b")


@ADAPTIVE
async def test_cancelled_at_work_puts_its_token_back(autojump_clock, options):
    for limit in limits(2):
        work = Work()
        fn = cap(work, limit, **options)
        begin = trio.current_time()
        with trio.move_on_after(0.5):
            await fanout.do(fn, range(10), limit=10)
        await fanout.do(fn, range(4), limit=4)
        assert [time - begin for time in work.times] == [0, 0, 0.5, 0.5, 1.5, 1.5]


class CancelAtStep(trio.abc.Instrument):
    """Cancels a scope after so many steps of its task."""

    def __init__(self, scope, steps):
        self.task = trio.lowlevel.current_task()
        self.scope = scope
        self.steps = steps

    def after_task_step(self, task):
        if task is self.task:
            self.steps -= 1
            if self.steps == 0:
                self.scope.cancel()


def refuse(exc):
    return 2


@pytest.mark.parametrize("key", [None, lambda item: 0], ids=["one", "key"])
@pytest.mark.parametrize("overloaded", [None, refuse], ids=["fixed", "adaptive"])
@pytest.mark.parametrize("limiter", [None, 2], ids=["own", "limiter"])
async def test_cancellation_at_any_checkpoint_leaves_nothing_held(autojump_clock, key, overloaded, limiter):
    """At the gate, in either line, with a token just got, at work; seen by those who come after."""
    if key and limiter:
        return

    async def victim(fn, step):
        with trio.CancelScope() as scope:
            instrument = CancelAtStep(scope, step)
            trio.lowlevel.add_instrument(instrument)
            try:
                for item in range(3):
                    await fn(item)
            except ValueError:
                await fn("after a refusal")
            finally:
                trio.lowlevel.remove_instrument(instrument)
        return scope.cancelled_caught

    async def one_run(step):
        limit = trio.CapacityLimiter(limiter) if limiter else 2
        work = Work()

        async def sometimes(item):
            await work(item)
            if item == "refused":
                raise ValueError(item)

        fn = cap(sometimes, limit, key=key, overloaded=overloaded)
        caught = False

        async def refused():
            with pytest.raises(ValueError, match="refused"):
                await fn("refused")

        async def be_victim():
            nonlocal caught
            caught = await victim(fn, step)

        async with trio.open_nursery() as nursery:
            for call in (refused, functools.partial(fn, "x"), be_victim, functools.partial(fn, "y"), refused):
                nursery.start_soon(call)
                await wait_all_tasks_blocked()
        assert work.gauge.now == 0
        assert work.items.count("x") == work.items.count("y") == 1
        if limiter:
            assert limit.borrowed_tokens == limit.statistics().tasks_waiting == 0
            limit.total_tokens = 2
        await trio.sleep(100)  # any gate
        work.starts.clear()
        begin = trio.current_time()
        await fanout.do(fn, range(4))
        times = [time - begin for time in work.times]
        # A cap that was cut to 1, and has not grown again, does so after the first of these.
        assert times == [0, 0, 1, 1] or (overloaded and not limiter and not key and times == [0, 1, 1, 2])
        return caught

    with nothing_left():
        step = 1
        while await one_run(step):
            step += 1
        assert step >= 6


@pytest.mark.parametrize("policy", ALL_POLICIES, ids=str)
@ADAPTIVE
async def test_failure_puts_its_token_back(autojump_clock, policy, options):
    limiter = trio.CapacityLimiter(2)

    async def fail(item):
        await trio.sleep(1)
        raise ValueError(item)

    fn = cap(fail, limiter, **options)
    with nothing_left(limiter):
        try:
            await fanout.map(fn, range(6), limit=4, policy=policy)
        except* ValueError:
            pass
    assert limiter.total_tokens == 2


async def test_interrupt_is_not_held_up(autojump_clock):
    limiter = trio.CapacityLimiter(1)

    async def interrupted():
        await trio.sleep(1)
        raise KeyboardInterrupt

    with nothing_left(limiter), pytest.raises(KeyboardInterrupt):
        await cap(interrupted, limiter, overloaded=lambda exc: True)()
    assert limiter.total_tokens == 1


INTERRUPT = """
import signal, sys
import trio, trio_fanout as fanout
from trio.testing import MockClock

async def main(fn):
    async def one(item):
        try:
            await fn(item)
        except ValueError:
            await trio.sleep(1)
    await fanout.do(one, range(6), limit=6)

MODULES = {f"trio_fanout._{name}" for name in ("cap", "tokens", "adaptive", "overload", "units", "states", "throttle")}

def one_run(number, limit, **options):
    # Interrupted as the function of that number is called: whether there was one.
    count = 0
    def trace(frame, event, arg):
        nonlocal count
        module = frame.f_globals.get("__name__")
        if event == "call" and frame.f_lasti <= 4 and module in MODULES:
            count += 1
            if count == number:
                signal.raise_signal(signal.SIGINT)
    async def work(item):
        await trio.sleep(1)
        if item == 3:
            raise ValueError(item)
    fn = fanout.cap(work, limit, **options)
    sys.settrace(trace)
    try:
        trio.run(main, fn, clock=MockClock(autojump_threshold=0))
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    if isinstance(limit, trio.CapacityLimiter):
        assert limit.borrowed_tokens == limit.statistics().tasks_waiting == 0, number
    return count >= number

options = [
    (lambda: trio.CapacityLimiter(2), {}),
    (lambda: trio.CapacityLimiter(2), {"overloaded": lambda exc: 2}),
    (lambda: 2, {"key": lambda item: 0}),
    (lambda: 2, {"weight": lambda item: item / 2}),
    (lambda: 1, {"overloaded": lambda exc: True}),
]
for limit, others in options:
    number = 1
    while one_run(number, limit(), **others):
        number += 1
    print(number)
"""


@pytest.mark.slow
def test_interrupt_as_any_function_is_called_leaves_nothing_held():
    """A real signal, at the places where Python looks for one."""
    done = subprocess.run([sys.executable, "-c", INTERRUPT], capture_output=True, text=True, check=True, timeout=120)
    assert all(int(number) > 50 for number in done.stdout.split()), done.stdout
    assert len(done.stdout.split()) == 5


async def test_wait_is_part_of_the_item_and_its_time(autojump_clock):
    work = Work()
    outcomes = await fanout.map(cap(work, 1), range(3), policy=fanout.Settle(), item_timeout=1.5)
    assert [type(getattr(outcome, "error", None)) for outcome in outcomes] == [
        type(None), trio.TooSlowError, trio.TooSlowError,
    ]  # fmt: skip
    assert trio.current_time() == 1.5


async def test_time_limit_inside_of_the_cap_is_for_the_work_alone(autojump_clock):
    work = Work()

    async def in_time(item):
        with trio.fail_after(1.5):
            return await work(item)

    assert await fanout.map(cap(in_time, 1), range(4)) == [0, 1, 2, 3]


@ADAPTIVE
async def test_each_call_is_a_checkpoint(autojump_clock, options):
    async def at_once(item):
        return item

    for limit in limits(1):
        fn = cap(at_once, limit, **options)
        for item in range(3):
            with assert_checkpoints():
                assert await fn(item) == item


# What is kept


OPTIONS = pytest.mark.parametrize(
    "options",
    [{}, {"key": lambda item: 0}, {"overloaded": refuse}, {"weight": lambda item: 1}],
    ids=["fixed", "key", "adaptive", "weight"],
)


def test_each_run_has_tokens_of_its_own():
    """The first ends with all tokens held and calls in the line."""
    work = Work()
    fn = cap(work, 1)

    async def first():
        with trio.move_on_after(0.5):
            await fanout.do(fn, range(3))

    trio.run(first, clock=MockClock(autojump_threshold=0))
    trio.run(fanout.do, fn, range(2), clock=MockClock(autojump_threshold=0))
    assert work.times == [0, 0, 1]


CRASH = """
import sys
import trio, trio_fanout as fanout
from trio.testing import MockClock, wait_all_tasks_blocked

async def work(item):
    times.append(trio.current_time())
    await trio.sleep(1)

async def crash():
    async with trio.open_nursery() as nursery:
        for item in range(3):  # one holds the token, two wait
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()
        trio.lowlevel.reschedule(trio.lowlevel.current_task())
        trio.lowlevel.reschedule(trio.lowlevel.current_task())

for options in ({}, {"key": lambda item: 0}, {"overloaded": lambda exc: 3}, {"weight": lambda item: 1}):
    times = []
    fn = fanout.cap(work, 1, **options)
    try:
        trio.run(crash, clock=MockClock(autojump_threshold=0))
    except trio.TrioInternalError:
        trio.run(fanout.do, fn, range(2), clock=MockClock(autojump_threshold=0))
    print(*times)
"""


def test_run_that_crashes_leaves_the_next_one_free():
    """Trio itself fails, and so nothing is cleaned up (it says much of that): tasks hold their tokens forever."""
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == ["0.0 0.0 1.0"] * 4


@OPTIONS
def test_runs_in_two_threads_at_once_have_tokens_of_their_own(options):
    works = [Work(), Work()]
    both_there = threading.Barrier(2, timeout=30)

    async def pick(item):
        await works[item](item)

    fn = cap(pick, 1, **options)

    async def main(which):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fn, which)
            await wait_all_tasks_blocked()
            both_there.wait()  # both hold a token, and others wait

    threads = [
        threading.Thread(target=functools.partial(trio.run, main, k, clock=MockClock(autojump_threshold=0.001)))
        for k in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [work.times for work in works] == [[0, 1, 2]] * 2


@OPTIONS
async def test_state_goes_with_the_function(autojump_clock, options):
    """Some programs make a cap for each call: the run must not collect them."""
    work = Work()
    with no_cycles():
        fn = cap(work, 1, **options)
        await fn("a")
        gone = weakref.ref(fn)
        del fn
        await trio.lowlevel.checkpoint()  # Trio lets go of the frames of the last wait
        assert gone() is None


@ADAPTIVE
async def test_limiter_goes_with_the_functions_that_use_it(autojump_clock, options):
    limiter = trio.CapacityLimiter(2)
    gone = weakref.ref(limiter)
    with no_cycles():
        fn = cap(Work(), limiter, **options)
        del limiter
        await fanout.do(fn, range(5))
        del fn
        await trio.lowlevel.checkpoint()  # as above
        assert gone() is None


@pytest.mark.parametrize("end", ["success", "failure", "cancelled"])
@ADAPTIVE
async def test_key_goes_when_no_call_uses_it(autojump_clock, options, end):
    key = Key()
    gone = weakref.ref(key)

    async def fn(item):
        await trio.sleep(1)
        if end == "failure":
            raise ValueError(end)

    capped = cap(fn, 1, key=lambda item: item, **options)
    with trio.move_on_after(0.5 if end == "cancelled" else 5):
        outcomes = await fanout.map(capped, [key] * 3, policy=fanout.Settle())
        del outcomes
    assert gone() is key
    del key
    await trio.lowlevel.checkpoint()  # Trio lets go of the last exception
    if end == "failure":
        gc.collect()  # its traceback
    assert gone() is None


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [cap, functools.partial(cap, overloaded=lambda exc: 3.0), fanout.throttle])
async def test_keys_used_once_leave_memory_flat(autojump_clock, adapter):
    """Also those whose gate is closed, or whose burst is not saved up, for a time."""

    async def fn(key):
        if key % 10 == 0:
            raise ValueError(key)

    async def some(first):
        for key in range(first, first + 2_000):
            try:
                await adapted(key)
            except ValueError:
                pass
        await trio.sleep(10)
        await adapted(-1)

    adapted = adapter(fn, 1, key=lambda key: key)
    tracemalloc.start()
    try:
        await some(0)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for first in range(2_000, 12_000, 2_000):
            await some(first)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000  # two bytes a key


# In any call, and around anything


@pytest.mark.parametrize("limit", limits(2), ids=["own", "limiter"])
async def test_works_in_every_call(autojump_clock, limit):
    work = Work()
    fn = cap(work, limit)

    async def drain(stream):
        async with stream as results:
            return [value async for _, _, value in results]

    async def group():
        async with fanout.open_group() as group:
            for item in range(4):
                group.start_soon(fn, item)

    for call in (
        functools.partial(fanout.map, fn, range(4)),
        functools.partial(fanout.do, fn, range(4)),
        functools.partial(fanout.fan_out, [fn] * 4, 3),
        lambda: drain(fanout.stream(fn, range(4))),
        group,
        functools.partial(fanout.run_graph, {k: fanout.Step(functools.partial(fn, k)) for k in range(4)}),
    ):
        begin = trio.current_time()
        work.starts.clear()
        await call()
        assert [time - begin for time in work.times] == [0, 0, 1, 1]


async def test_names_its_tasks_after_the_function(autojump_clock):
    async def fetch(url):
        return trio.lowlevel.current_task().name

    assert await fanout.map(cap(fetch, 1), ["a"]) == ["map(fetch)"]


async def test_blocking_function_in_threads():
    gauge, lock = Gauge(), threading.Lock()
    together = threading.Barrier(2, timeout=30)

    def block(item):
        with lock:
            gauge.began.append(item)
            gauge.now += 1
            gauge.peak = max(gauge.peak, gauge.now)
        together.wait()
        with lock:
            gauge.now -= 1
        return item * 2

    assert await fanout.map(cap(fanout.in_thread(block), 2), range(8), limit=8) == list(range(0, 16, 2))
    assert gauge.peak == 2


async def test_crawler_that_is_polite_to_each_host(autojump_clock):
    """Six hosts of ten pages each, two at once to a host, nine in all; a slow host holds up no other."""
    links = {f"{host}{n}": [f"{host}{2 * n + k}" for k in (1, 2)] for host in "abcdef" for n in range(10)}
    work, hosts, seen = Work(), {host: Gauge() for host in "abcdef"}, set()

    async def get(page):
        with hosts[page[0]].running():
            await work(page, 5 if page[0] == "a" else 1)
        return [link for link in links[page] if link in links]

    fetch = cap(cap(get, 9), 2, key=host_of)

    async def visit(page):
        for link in await fetch(page):
            if link not in seen:
                seen.add(link)
                group.start_soon(visit, link)

    async with fanout.open_group(limit=math.inf) as group:
        for host in "abcdef":
            group.start_soon(visit, f"{host}0")
    assert sorted(work.items) == sorted(links)
    assert work.gauge.peak == 9
    assert {gauge.peak for gauge in hosts.values()} == {2}
    assert max(time for page, time in work.starts if page[0] != "a") <= 8
    assert trio.current_time() <= 32  # of which the slow host takes 30 by itself: its first page, then two at once


# Use and wrong use


async def test_keywords_name_and_docstring_are_the_functions_own(autojump_clock):
    async def fetch(url, *, retries=0):
        """Fetch a page."""
        return url, retries

    fn = cap(fetch, 1)
    assert (fn.__name__, fn.__doc__) == ("fetch", "Fetch a page.")
    assert await fn("a", retries=3) == ("a", 3)
    assert cap(functools.partial(fetch, retries=1), 1).__name__ == "fetch"


@pytest.mark.parametrize("policy", ALL_POLICIES, ids=str)
@ADAPTIVE
async def test_function_that_is_not_async_is_wrong_use(autojump_clock, policy, options):
    """Under every policy, and not an item's failure."""
    limiter = trio.CapacityLimiter(1)
    with nothing_left(limiter), pytest.raises(TypeError, match=r"returned 3.*in_thread"):
        await fanout.map(cap(len, limiter, **options), ["abc"], policy=policy)


@pytest.mark.parametrize(
    ("limit", "error"),
    [(0, ValueError), (-1, ValueError), (2.5, TypeError), (True, TypeError), (None, TypeError), ("3", TypeError)],
)
@pytest.mark.parametrize("key", [None, len])
def test_bad_limit(limit, error, key):
    with pytest.raises(error, match=r"^limit must be an int of 1 or more, math.inf or a trio.CapacityLimiter, got"):
        cap(Work(), limit, key=key)


def test_limiter_and_key_do_not_go_together():
    with pytest.raises(
        TypeError, match=r"^limit must be an int of 1 or more or math\.inf where there is a key, got a Cap"
    ):
        cap(Work(), trio.CapacityLimiter(3), key=len)


@pytest.mark.parametrize("argument", ["key", "overloaded"])
@pytest.mark.parametrize("bad", [3, "host", True])
def test_key_and_overloaded_that_cannot_be_called_are_type_errors(argument, bad):
    with pytest.raises(TypeError, match=f"^{argument} must be a function that is not async, got"):
        cap(Work(), 1, **{argument: bad})


def test_function_that_cannot_be_called_is_a_type_error():
    with pytest.raises(TypeError, match=r"^fn must be an async function, got 3"):
        cap(3, 1)


@pytest.mark.slow
@given(
    limit=st.integers(1, 4),
    calls=st.lists(st.tuples(st.sampled_from([0.25, 1, 3]), st.sampled_from([0.5, 2, 8])), max_size=25),
    options=st.sampled_from([{}, {"overloaded": lambda exc: False}]),
    own=st.booleans(),
)
def test_starts_are_those_of_a_queue_with_so_many_servers(limit, calls, options, own):
    """Against a plain model: each call takes the server that is free first."""
    work = Work()

    async def main():
        fn = cap(work, limit if own else trio.CapacityLimiter(limit), **options)
        async with trio.open_nursery() as nursery:
            for item, (gap, seconds) in enumerate(calls):
                await trio.sleep(gap)
                nursery.start_soon(fn, item, seconds)
                await wait_all_tasks_blocked()

    trio.run(main, clock=MockClock(autojump_threshold=0.001))

    expected, free, now = [], [0.0] * limit, 0.0
    for gap, seconds in calls:
        now += gap
        free.sort()
        start = max(now, free[0])
        free[0] = start + seconds
        expected.append(start)
    assert [time for _, time in sorted(work.starts)] == expected
