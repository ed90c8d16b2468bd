"""`throttle`: when calls start, on a virtual clock."""

import functools
import itertools
import math
import sys
import threading
import tracemalloc
import weakref
from fractions import Fraction

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

import trio_fanout as fanout
from helpers import no_cycles
from trio_fanout import throttle


class Starts:
    """An async function that notes when it is called, and with what."""

    def __init__(self):
        self.log = []

    async def __call__(self, item):
        self.log.append((item, trio.current_time()))
        return item

    @property
    def times(self):
        return [time for _, time in self.log]

    @property
    def items(self):
        return [item for item, _ in self.log]


class Key:
    """What a weak reference can watch."""


async def test_first_starts_at_once_and_others_follow_evenly_spaced(autojump_clock):
    starts = Starts()
    assert await fanout.map(throttle(starts, 4), range(9), limit=3) == list(range(9))
    assert starts.log == [(k, k / 4) for k in range(9)]


async def test_rate_counts_for_per_seconds(autojump_clock):
    starts = Starts()
    await fanout.do(throttle(starts, 2, per=60), range(4))
    assert starts.times == [0, 30, 60, 90]


async def test_rate_may_be_below_one_and_not_whole(autojump_clock):
    starts = Starts()
    await fanout.do(throttle(starts, 0.25), range(3))
    assert starts.times == [0, 4, 8]


async def test_burst_starts_together_and_then_the_spacing_holds(autojump_clock):
    starts = Starts()
    await fanout.do(throttle(starts, 2, burst=3), range(6))
    assert starts.times == [0, 0, 0, 0.5, 1, 1.5]


async def test_idle_time_builds_up_no_more_than_the_burst(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1, burst=2)
    await fn("a")
    await trio.sleep(100)
    await fanout.do(fn, range(4))
    assert starts.times == [0, 100, 100, 101, 102]


async def test_idle_time_builds_up_in_parts(autojump_clock):
    """Half of what the burst used is saved up again in half of the time."""
    starts = Starts()
    fn = throttle(starts, 1, burst=4)
    await fanout.do(fn, range(4))
    await trio.sleep(2)
    await fanout.do(fn, range(4))
    assert starts.times == [0, 0, 0, 0, 2, 2, 3, 4]


async def test_without_a_burst_a_late_call_shifts_those_after_it(autojump_clock):
    """Time lost is not made up for: no two starts are ever closer than the interval."""
    starts = Starts()
    fn = throttle(starts, 1)
    await fn("a")
    await trio.sleep(1.5)
    await fn("b")
    await fn("c")
    assert starts.times == [0, 1.5, 2.5]


async def test_time_jumping_ahead_lets_none_start_together(mock_clock):
    """As when the machine was asleep, or some task kept the event loop busy."""
    starts = Starts()
    fn = throttle(starts, 1)
    async with trio.open_nursery() as nursery:
        for item in range(3):
            nursery.start_soon(fn, item)
        await wait_all_tasks_blocked()
        mock_clock.jump(10)
        await wait_all_tasks_blocked()
        assert starts.times == [0, 10]
        mock_clock.jump(1)
    assert starts.times == [0, 10, 11]


@pytest.mark.slow
async def test_no_drift_over_many_calls(autojump_clock):
    """The k-th start is k intervals after the first, with no sum of rounding errors in it."""
    starts = Starts()
    fn = throttle(starts, 3, per=0.7)
    await trio.sleep(0.1)
    for item in range(5_000):
        await fn(item)
    worst = max(abs(time - 0.1 - k * 0.7 / 3) for k, time in enumerate(starts.times))
    assert worst < 1e-11


async def test_spacing_is_measured_between_starts_and_not_ends(autojump_clock):
    starts = Starts()

    async def slow(item):
        await starts(item)
        await trio.sleep(10)

    await fanout.do(throttle(slow, 1), range(3))
    assert starts.times == [0, 1, 2]
    assert trio.current_time() == 12


async def test_bound_holds_over_all_calls_that_use_it_in_the_order_of_calling(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(fanout.do, limit=1), fn, ["a0", "a1", "a2"])
        await wait_all_tasks_blocked()
        nursery.start_soon(functools.partial(fanout.do, limit=1), fn, ["b0", "b1"])
        await wait_all_tasks_blocked()
        nursery.start_soon(fn, "c")
    assert starts.log == [("a0", 0), ("a1", 1), ("b0", 2), ("c", 3), ("a2", 4), ("b1", 5)]


async def test_two_throttles_of_one_function_do_not_know_each_other(autojump_clock):
    starts = Starts()
    one, other = throttle(starts, 1), throttle(starts, 1)
    await one("a")
    await other("b")
    assert starts.times == [0, 0]


async def test_cancelled_at_the_head_of_the_line_uses_up_nothing(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1)
    await fn("a")
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _impatient():
            with trio.move_on_after(0.5):
                await fn("b")

        await wait_all_tasks_blocked()
        nursery.start_soon(fn, "c")
        nursery.start_soon(fn, "d")
    assert starts.log[0] == ("a", 0)
    assert sorted(starts.items[1:]) == ["c", "d"]
    assert starts.times[1:] == [1, 2]


async def test_cancelled_in_the_middle_of_the_line_uses_up_nothing(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1)
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(4)]

        async def call(item):
            with scopes[item]:
                await fn(item)

        for item in range(4):
            nursery.start_soon(call, item)
            await wait_all_tasks_blocked()
        scopes[2].cancel()
    assert starts.log == [(0, 0), (1, 1), (3, 2)]


async def test_all_cancelled_leaves_the_next_call_free(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1)
    await fn("a")
    with trio.move_on_after(0.5):
        await fanout.do(fn, range(10))
    await trio.sleep_until(1)
    await fn("b")
    assert starts.log == [("a", 0), ("b", 1)]


async def test_already_cancelled_calls_nothing_and_uses_up_nothing(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await fn("a")
    assert scope.cancelled_caught
    await fn("b")
    assert starts.log == [("b", 0)]


async def test_wait_is_part_of_the_item_and_its_time(autojump_clock):
    starts = Starts()
    outcomes = await fanout.map(throttle(starts, 1), range(4), policy=fanout.Settle(), item_timeout=1.5)
    assert starts.log == [(0, 0), (1, 1)]
    assert [type(getattr(o, "error", None)) for o in outcomes[2:]] == [trio.TooSlowError] * 2


async def test_failures_count_as_starts(autojump_clock):
    starts = Starts()

    async def fail(item):
        await starts(item)
        raise ValueError(item)

    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.map(throttle(fail, 1), range(3), policy=fanout.Collect())
    assert caught.value.indices == (0, 1, 2)
    assert starts.times == [0, 1, 2]


async def test_each_call_is_a_checkpoint(autojump_clock):
    fn = throttle(Starts(), 1)
    for item in range(2):
        with assert_checkpoints():
            await fn(item)


def test_each_run_counts_for_itself():
    starts = Starts()
    fn = throttle(starts, 1)
    for _ in range(2):
        trio.run(fanout.do, fn, range(3), clock=MockClock(autojump_threshold=0))
    assert starts.times == [0, 1, 2, 0, 1, 2]


def test_cancelled_run_leaves_the_next_one_free():
    """The first run ends in the middle of the line."""
    starts = Starts()
    fn = throttle(starts, 1)

    async def first():
        with trio.move_on_after(0.5):
            await fanout.do(fn, range(3))

    trio.run(first, clock=MockClock(autojump_threshold=0))
    trio.run(fanout.do, fn, range(2), clock=MockClock(autojump_threshold=0))
    assert starts.times == [0, 0, 1]


def test_runs_in_two_threads_at_once_count_for_themselves():
    starts = [Starts(), Starts()]
    both_there = threading.Barrier(2, timeout=30)

    async def pick(item):
        await starts[item](item)

    fn = throttle(pick, 1)

    async def main(which):
        await fn(which)
        both_there.wait()
        await fn(which)
        both_there.wait()
        await fn(which)

    threads = [
        threading.Thread(target=functools.partial(trio.run, main, k, clock=MockClock(autojump_threshold=0)))
        for k in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.times for one in starts] == [[0, 1, 2]] * 2


async def test_state_goes_with_the_function(autojump_clock):
    """Some programs make a throttle for each call: the run must not collect them."""
    starts = Starts()
    with no_cycles():
        fn = throttle(starts, 1)
        await fn("a")
        gone = weakref.ref(fn)
        del fn
        assert gone() is None


async def test_keywords_name_and_docstring_are_the_functions_own(autojump_clock):
    async def fetch(url, *, retries=0):
        """Fetch a page."""
        return url, retries

    fn = throttle(fetch, 1)
    assert (fn.__name__, fn.__doc__) == ("fetch", "Fetch a page.")
    assert await fn("a", retries=3) == ("a", 3)
    assert throttle(functools.partial(fetch, retries=1), 1).__name__ == "fetch"
    assert throttle(Starts(), 1).__name__ == "Starts"


async def test_function_that_is_not_async_is_wrong_use(autojump_clock):
    """Under every policy, and not an item's failure."""
    with pytest.raises(TypeError, match="in_thread"):
        await throttle(len, 1)("abc")
    with pytest.raises(TypeError, match=r"returned 3.*in_thread"):
        await fanout.map(throttle(len, 1), ["abc"], policy=fanout.Settle())


@pytest.mark.parametrize("argument", ["rate", "per"])
@pytest.mark.parametrize("bad", [0, -1, 0.0, -0.5, math.inf, -math.inf, math.nan, 10**400])
def test_bad_rate_and_per_are_value_errors(argument, bad):
    with pytest.raises(ValueError, match=f"^{argument} must be a finite number above 0"):
        throttle(Starts(), **{"rate": 1, argument: bad})


@pytest.mark.parametrize("argument", ["rate", "per"])
@pytest.mark.parametrize("bad", [None, "1", True, 1j, Fraction(1, 2)])
def test_rate_and_per_of_another_type_are_type_errors(argument, bad):
    with pytest.raises(TypeError, match=f"^{argument} must be a finite number above 0"):
        throttle(Starts(), **{"rate": 1, argument: bad})


@pytest.mark.parametrize(
    ("bad", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), (math.inf, TypeError)]
)
def test_bad_burst(bad, error):
    with pytest.raises(error, match=r"^burst must be an int of 1 or more"):
        throttle(Starts(), 1, burst=bad)


def test_function_that_cannot_be_called_is_a_type_error():
    with pytest.raises(TypeError, match=r"^fn must be an async function, got 3"):
        throttle(3, 1)


# With a key (what the key may be: test_cap.py)


async def test_each_key_has_a_rate_a_burst_and_an_order_of_its_own(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 2, burst=2, key=lambda item: item[0])
    async with trio.open_nursery() as nursery:
        for item in ("a0", "a1", "a2", "a3", "b0", "b1", "b2", "c0"):
            nursery.start_soon(fn, item)
            await wait_all_tasks_blocked()
    assert sorted(starts.log, key=lambda start: start[::-1]) == [
        ("a0", 0), ("a1", 0), ("b0", 0), ("b1", 0), ("c0", 0), ("a2", 0.5), ("b2", 0.5), ("a3", 1),
    ]  # fmt: skip


async def test_key_is_known_until_its_burst_is_saved_up_again(autojump_clock):
    """Forgotten before, it could start more; kept after, it would make no difference."""
    starts = Starts()
    fn = throttle(starts, 1, burst=3, key=lambda item: item)
    await fanout.do(fn, "aaa")
    for moment in (1, 2.5):  # one is saved up at each; 1.5 later another half
        await trio.sleep_until(moment)
        await fanout.do(fn, "aab")
    assert [time for item, time in starts.log if item == "a"] == [0, 0, 0, 1, 2, 3, 4]
    await trio.sleep_until(7)
    await fanout.do(fn, "aaaa")
    assert starts.times[-4:] == [7, 7, 7, 8]


async def test_key_goes_once_its_burst_is_saved_up_again(autojump_clock):
    """At the next call, of whatever key."""

    starts = Starts()
    fn = throttle(lambda key: starts(None), 1, burst=4, key=lambda key: key)
    key = Key()
    gone = weakref.ref(key)
    for _ in range(3):
        await fn(key)
    await trio.sleep(2)
    await fn("other")
    await fn(key)  # what was to be dropped at 3 is now to stay until 4
    await trio.sleep(1.5)
    del key
    await fn("other")
    assert gone() is not None
    await trio.sleep(0.5)
    await fn("other")
    assert gone() is None


async def test_many_keys_go_within_a_few_calls(autojump_clock):
    """Not at the next one, which would hold up all other tasks."""
    starts = Starts()
    keys = [Key() for _ in range(1000)]
    gone = [weakref.ref(key) for key in keys]
    fn = throttle(lambda key: starts(None), 1, key=lambda key: key)
    await fanout.do(fn, keys, limit=1000)
    del keys
    await trio.sleep(2)
    left = []
    for _ in range(12):
        await fn("other")
        left.append(sum(ref() is not None for ref in gone))
    assert left == [*range(900, 0, -100), 0, 0, 0]


async def test_key_costs_no_more_memory_with_each_call(autojump_clock):
    fn = throttle(trio.sleep, 1, burst=10_000, key=lambda key: key)
    await fn(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(2000):
            await fn(0)
        now, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 20_000


async def test_key_that_was_cancelled_before_it_started_is_not_kept(autojump_clock):
    fn = throttle(Starts(), 1, key=lambda key: key)
    key = Key()
    gone = weakref.ref(key)
    with trio.move_on_after(0):
        await fn(key)
    del key
    await trio.lowlevel.checkpoint()  # Trio lets go of the last `Cancelled`
    assert gone() is None


async def test_key_stays_while_calls_wait(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1, key=lambda item: 0)
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in range(4)]

        async def call(item):
            with scopes[item]:
                await fn(item)

        for item in range(4):
            nursery.start_soon(call, item)
            await wait_all_tasks_blocked()
        scopes[1].cancel()
        await trio.sleep(0.5)
        scopes[2].cancel()
    assert starts.log == [(0, 0), (3, 1)]


@pytest.mark.parametrize("bad", [3, "host"])
def test_key_that_cannot_be_called_is_a_type_error(bad):
    with pytest.raises(TypeError, match=r"^key must be a function that is not async, got"):
        throttle(Starts(), 1, key=bad)


# With a cost (what it may say: test_cap_weight.py)


def cost_of(cost, *_):
    return cost


async def test_call_starts_when_its_units_have_been_saved_up(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 2, burst=10, cost=cost_of)
    await fanout.do(fn, [10, 4, 1, 0.5, 10], limit=1)
    assert starts.log == [(10, 0), (4, 2), (1, 2.5), (0.5, 2.75), (10, 7.75)]


async def test_calls_that_cost_one_are_as_without_a_cost(autojump_clock):
    for burst in (1, 3):
        plain, costed = Starts(), Starts()
        for starts, options in ((plain, {}), (costed, {"cost": lambda item: 1})):
            begin = trio.current_time()
            fn = throttle(starts, 2, burst=burst, **options)
            await fanout.do(fn, range(8), limit=1)
            await trio.sleep(1.25)
            await fanout.do(fn, range(4), limit=1)
            starts.log = [(item, time - begin) for item, time in starts.log]
        assert plain.log == costed.log


async def test_call_that_costs_more_than_the_burst_leaves_a_debt(autojump_clock):
    """It starts when all of the burst is there, and those after it wait until the rest is paid."""
    starts = Starts()
    fn = throttle(starts, 2, burst=4, cost=cost_of)
    await fanout.do(fn, [3, 10, 0, 1, 20, 0, 0, 4], limit=1)
    assert starts.log == [(3, 0), (10, 1.5), (0, 4.5), (1, 5), (20, 7), (0, 15), (0, 15), (4, 17)]


async def test_call_that_costs_nothing_waits_its_turn_and_for_debts_alone(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1, burst=5, cost=cost_of)
    await fanout.do(fn, [5, 0, 0, 2, 0, 8, 0, 0], limit=8)
    assert starts.times == [0, 0, 0, 2, 2, 7, 10, 10]
    assert starts.items == [5, 0, 0, 2, 0, 8, 0, 0]


async def test_burst_of_one_spaces_calls_by_what_they_cost(autojump_clock):
    starts = Starts()
    await fanout.do(throttle(starts, 1, cost=cost_of), [3, 2, 5, 1], limit=1)
    assert starts.log == [(3, 0), (2, 3), (5, 5), (1, 10)]


async def test_units_are_counted_by_key(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1, burst=5, key=lambda item: item[0], cost=lambda item: item[1])
    await fanout.do(fn, [("a", 5), ("b", 3), ("a", 2), ("b", 3), ("b", 1)], limit=5)
    assert dict(zip(starts.items, starts.times, strict=True)) == {
        ("a", 5): 0, ("b", 3): 1, ("a", 2): 2, ("b", 1): 2,
    }  # fmt: skip


async def test_key_in_debt_is_known_until_all_of_its_burst_is_saved_up(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1, burst=2, key=lambda item: 0, cost=cost_of)
    await fn(10)
    await trio.sleep(9)
    await fn(2)
    await trio.sleep(1)
    await fn(2)
    await trio.sleep(1.5)
    await fn(2)
    assert starts.times == [0, 10, 12, 14]


async def test_cancelled_while_it_waits_uses_up_no_units(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1, burst=10, cost=cost_of)
    await fn(10)
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(2.5):
            async with trio.open_nursery() as impatient:
                impatient.start_soon(fn, 100)
                await wait_all_tasks_blocked()
                for cost in (2, 1, 0):
                    nursery.start_soon(fn, cost)
                    await wait_all_tasks_blocked()
    assert starts.log == [(10, 0), (2, 2.5), (1, 3), (0, 3)]


async def test_cost_gets_all_the_arguments_in_the_task_of_the_call_before_it_waits(autojump_clock):
    seen = []

    async def fn(*args, **kwargs):
        return args, kwargs

    def cost(*args, **kwargs):
        seen.append((args, kwargs, trio.lowlevel.current_task(), trio.current_time()))
        return 1

    throttled = throttle(fn, 1, cost=cost)
    for time in (0, 0):
        assert await throttled("a", 3, b=4) == (("a", 3), {"b": 4})
        assert seen.pop() == (("a", 3), {"b": 4}, trio.lowlevel.current_task(), time)


async def test_wrong_cost_takes_nothing_and_keeps_no_state(autojump_clock):
    starts = Starts()
    fn = throttle(lambda key, cost: starts(cost), 1, burst=5, key=lambda key, cost: key, cost=lambda key, cost: cost)
    key = Key()
    gone = weakref.ref(key)
    with pytest.raises(ValueError, match=r"^cost must return"):
        await fn(key, -1)
    with pytest.raises(TypeError, match=r"^cost must return"):
        await fn(key, "1")
    del key
    assert gone() is None
    await fn(0, 5)
    assert starts.times == [0]


@pytest.mark.slow
@pytest.mark.parametrize(("cost", "count"), [(0.1, 3_000), (0.3, 1_000), (1 / 3, 1_000), (1e-3, 5_000)])
async def test_no_drift_over_many_small_costs(autojump_clock, cost, count):
    starts = Starts()
    fn = throttle(starts, 3, per=0.7, burst=2, cost=lambda item: cost)
    await trio.sleep(0.1)
    await fanout.do(fn, range(count), limit=1)
    worst = max(
        abs(time - max(0.1, float(Fraction(1, 10) + ((k + 1) * Fraction(cost) - 2) * Fraction(0.7) / 3)))
        for k, time in enumerate(starts.times)
    )
    assert worst < 1e-11


@pytest.mark.slow
async def test_no_drift_over_a_hundred_thousand_calls(autojump_clock):
    """A burst for all of them, so that none waits: the time of the next one shows what they have taken."""
    starts = Starts()
    fn = throttle(starts, 0.001, burst=10_001, cost=lambda item: 0.1 if item else 10)
    await fanout.do(fn, range(1, 100_001), limit=1)
    assert starts.times[-1] == 0
    await fn(0)
    taken = 100_000 * Fraction(0.1) + 10 - 10_001
    assert starts.times[-1] == pytest.approx(float(taken / Fraction(0.001)), abs=1e-9)


async def test_costs_of_all_sizes_in_one_sum(autojump_clock):
    """A unit is not lost beside a huge number of them."""
    starts = Starts()
    fn = throttle(starts, 1e16, cost=cost_of)
    await fanout.do(fn, [3e16, *[0.5] * 4, 1e16, 1e16 - 2, 0], limit=1)
    assert starts.times == pytest.approx([0, 3, 3, 3, 3, 3 + 2e-16, 4, 5])
    starts = Starts()
    await fanout.do(throttle(starts, 1e-300, per=1e-300, cost=cost_of), [1, 1e-17, 1e-17, 0, 2, 5e-324, 0], limit=1)
    assert [time - starts.times[0] for time in starts.times] == pytest.approx([0, 0, 0, 1, 2, 3, 4], abs=2)


async def test_costs_whose_sum_no_float_can_hold(autojump_clock):
    """Two of these take 200 million seconds, and the throttle goes on."""
    starts = Starts()
    fn = throttle(starts, 1e300, cost=cost_of)
    await fanout.do(fn, [1e308, 1.5e308, 1.5e308, 0, 1], limit=1)
    assert starts.times == pytest.approx([0, 1e8, 2.5e8, 4e8, 4e8])


async def test_debt_of_more_seconds_than_a_float_can_hold_is_forever(autojump_clock):
    starts = Starts()
    fn = throttle(starts, 1e-300, cost=cost_of)
    await fn(1e308)
    with trio.move_on_after(1e9) as scope:
        await fn(0)
    assert scope.cancelled_caught


@pytest.mark.slow
@given(
    rate=st.sampled_from([0.5, 1, 3, 10]),
    burst=st.sampled_from([1, 2, 5, 40]),
    calls=st.lists(
        st.tuples(
            st.sampled_from([0, 0.125, 0.3, 1, 7]),
            st.sampled_from([0, 0.1, 0.25, 1, 1 / 3, 2, 5, 17, 100]),
            st.sampled_from([math.inf] * 4 + [0.0617, 1.0123, 6.0371]),  # no call starts at such a time
        ),
        max_size=30,
    ),
)
def test_starts_are_those_of_a_bucket_that_may_be_in_debt(rate, burst, calls):
    """Against a bucket that fills at `rate`: a call needs what it costs, or a full bucket, and takes what it costs."""
    starts = {}
    scopes = {}

    async def main():
        async def work(number):
            starts[number] = trio.current_time()

        fn = throttle(work, rate, burst=burst, cost=lambda number: calls[number][1])

        async def call(number):
            with trio.move_on_after(calls[number][2]) as scopes[number]:
                await fn(number)

        async with trio.open_nursery() as nursery:
            for number, (gap, _, _) in enumerate(calls):
                await trio.sleep(gap)
                nursery.start_soon(call, number)
                await wait_all_tasks_blocked()

    trio.run(main, clock=MockClock(autojump_threshold=0.001))

    level, then, called, free, expected = Fraction(burst), Fraction(0), Fraction(0), Fraction(0), {}
    for number, (gap, cost, patience) in enumerate(calls):
        called += Fraction(gap)
        front = max(called, free)
        filled = min(Fraction(burst), level + (front - then) * Fraction(rate))
        start = front + max(Fraction(0), (min(Fraction(cost), Fraction(burst)) - filled) / Fraction(rate))
        gives_up = math.inf if patience == math.inf else called + Fraction(patience)
        if start >= gives_up:  # a deadline at the same time comes first
            free = max(free, gives_up) if front < gives_up else free  # it stood in front of the others until then
            continue
        level = min(Fraction(burst), level + (start - then) * Fraction(rate)) - Fraction(cost)
        free = then = start
        expected[number] = float(start)
    assert list(starts) == list(expected)
    assert list(starts.values()) == pytest.approx(list(expected.values()), abs=1e-9)
    # In any window, no more than the rate, and one burst or one call.
    for first, last in itertools.combinations_with_replacement(starts, 2):
        costs = [calls[number][1] for number in starts if first <= number <= last]
        most = rate * (starts[last] - starts[first]) + max(burst, *costs)
        assert math.fsum(costs) <= most + 1e-6


# Extreme numbers


@pytest.mark.parametrize("huge", [1e308, 10**308])
@pytest.mark.parametrize("burst", [1, 3, 10**400])
async def test_huge_rate_and_time_are_as_good_as_small_ones(autojump_clock, huge, burst):
    starts = Starts()
    fn = throttle(starts, huge, per=huge, burst=burst)
    await fanout.do(fn, range(6))
    assert starts.times == {1: [0, 1, 2, 3, 4, 5], 3: [0, 0, 0, 1, 2, 3]}.get(burst, [0] * 6)


async def test_time_that_is_too_long_only_as_a_product(autojump_clock):
    """The second call is due after 3.2e308 / 0.8e308 seconds, and no float holds the first of these."""
    starts = Starts()
    await fanout.do(throttle(starts, 0.8e308, per=1.6e308), range(4))
    assert starts.times == [0, 2, 4, 6]


async def test_largest_float_is_a_rate():
    starts = Starts()
    await fanout.do(throttle(starts, sys.float_info.max), range(3))
    assert starts.items == [0, 1, 2]


@pytest.mark.parametrize(
    ("rate", "per"), [(1e308, 5e-324), (1e308, 1e-308), (5e-324, 5e-324), (1e-308, 1e-308), (10**308, 1)]
)
async def test_tiny_times_and_rates_do_no_harm(autojump_clock, rate, per):
    starts = Starts()
    await fanout.do(throttle(starts, rate, per=per), range(4))
    assert starts.times == ([0, 1, 2, 3] if rate == per else pytest.approx([0, 0, 0, 0]))


@pytest.mark.parametrize(("rate", "per"), [(5e-324, 1e308), (1e-308, 1e308), (5e-324, 1)])
async def test_time_too_long_for_a_float_is_forever(autojump_clock, rate, per):
    starts = Starts()
    fn = throttle(starts, rate, per=per, key=lambda item: 0)
    await fn("a")
    with trio.move_on_after(1e9) as scope:
        await fn("b")
    assert scope.cancelled_caught
    assert starts.log == [("a", 0)]


@pytest.mark.parametrize("burst", [2**63, 10**400])
async def test_burst_beyond_all_calls_is_no_limit(autojump_clock, burst):
    starts = Starts()
    await fanout.do(throttle(starts, 0.001, burst=burst), range(100), limit=100)
    assert starts.times == [0] * 100


@given(
    rate=st.sampled_from([0.5, 1, 2, 4, 8]),
    burst=st.integers(1, 5),
    gaps=st.lists(st.sampled_from([0, 0.125, 0.25, 1, 3, 10]), max_size=30),
)
def test_starts_are_as_early_as_a_bucket_of_tokens_allows(rate, burst, gaps):
    """Against another form of the same rule: a bucket of `burst` tokens, which fills at `rate`.

    All numbers here are exact in binary, so that equality is.
    """
    starts = Starts()

    async def main():
        fn = throttle(starts, rate, burst=burst)
        async with trio.open_nursery() as nursery:
            for item, gap in enumerate(gaps):
                await trio.sleep(gap)
                nursery.start_soon(fn, item)
                await wait_all_tasks_blocked()

    trio.run(main, clock=MockClock(autojump_threshold=0.001))

    expected = []
    tokens, then, called = Fraction(burst), Fraction(0), Fraction(0)
    for gap in gaps:
        called += Fraction(gap)
        start = max(called, then)
        tokens = min(Fraction(burst), tokens + (start - then) * Fraction(rate))
        if tokens < 1:
            start += (1 - tokens) / Fraction(rate)
            tokens = Fraction(1)
        tokens, then = tokens - 1, start
        expected.append(start)
    assert starts.items == list(range(len(gaps)))
    assert starts.times == expected
