"""Retries are the job of `stamina` and `tenacity`: that they compose with the calls of this package, under Trio."""

from collections import Counter

import pytest
import trio

import trio_fanout as fanout
from trio_fanout import cap, throttle

stamina = pytest.importorskip("stamina")
tenacity = pytest.importorskip("tenacity")


class BusyError(Exception):
    """Gone at the next attempt, or the one after that."""


class Flaky:
    """An async function that fails so many times for an item, and notes when it was called."""

    def __init__(self, failures):
        self.failures = Counter(failures)
        self.calls = []

    async def __call__(self, item):
        self.calls.append((item, trio.current_time()))
        await trio.sleep(1)
        if self.failures[item]:
            self.failures[item] -= 1
            raise BusyError(item)
        return item.upper()

    @property
    def attempts(self):
        return Counter(item for item, _ in self.calls)


# One second, then two, then four, and nothing left to chance.
WAITS = {"wait_initial": 1, "wait_max": 60, "wait_jitter": 0, "timeout": None}


async def test_stamina_retries_an_item_inside_of_its_call(autojump_clock):
    flaky = Flaky({"b": 2})
    fetch = stamina.retry(on=BusyError, attempts=3, **WAITS)(flaky.__call__)
    assert await fanout.map(fetch, "abc", limit=3) == ["A", "B", "C"]
    assert [time for item, time in flaky.calls if item == "b"] == [0, 2, 5]
    assert trio.current_time() == 6


async def test_stamina_gives_up_with_the_failure_itself(autojump_clock):
    flaky = Flaky({"b": 9})
    fetch = stamina.retry(on=BusyError, attempts=3, **WAITS)(flaky.__call__)
    with pytest.raises(BusyError) as caught:
        await fanout.map(fetch, "abc", limit=3)
    assert caught.value.__notes__ == ["item 1"]
    assert flaky.attempts == {"a": 1, "b": 3, "c": 1}


async def test_tenacity_retries_an_item_inside_of_its_call(autojump_clock):
    flaky = Flaky({"b": 2})
    fetch = tenacity.retry(
        retry=tenacity.retry_if_exception_type(BusyError),
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_exponential(),
        reraise=True,
    )(flaky.__call__)
    assert await fanout.map(fetch, "abc", limit=3) == ["A", "B", "C"]
    assert [time for item, time in flaky.calls if item == "b"] == [0, 2, 5]


async def test_tenacity_gives_up_with_the_failure_itself(autojump_clock):
    flaky = Flaky({"b": 9})
    fetch = tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_fixed(1), reraise=True)(
        flaky.__call__
    )
    with pytest.raises(fanout.FanOutError) as caught:
        await fanout.map(fetch, "abc", policy=fanout.Collect())
    assert caught.value.indices == (1,)
    assert caught.value.results == {0: "A", 2: "C"}
    assert isinstance(caught.value.failures[1], BusyError)


async def test_cancellation_ends_the_wait_between_attempts(autojump_clock):
    """Neither of the two takes a `Cancelled` for something to try again."""
    for retry in (
        stamina.retry(on=Exception, attempts=9, wait_initial=60, wait_max=60, wait_jitter=0, timeout=None),
        tenacity.retry(wait=tenacity.wait_fixed(60)),
    ):
        flaky = Flaky({"a": 9})
        with trio.move_on_after(30) as scope:
            await fanout.map(retry(flaky.__call__), "a")
        assert scope.cancelled_caught
        assert flaky.attempts == {"a": 1}


async def test_timeout_for_each_attempt_and_another_for_all_of_them(autojump_clock):
    """The time of an attempt goes inside of the retry; `item_timeout` counts from the first attempt."""
    starts = []

    @stamina.retry(on=trio.TooSlowError, attempts=10, wait_initial=1, wait_max=1, wait_jitter=0, timeout=None)
    async def fetch(item):
        starts.append(trio.current_time())
        with trio.fail_after(2):
            await trio.sleep(item if len(starts) < 3 else 1)
        return item

    assert await fanout.map(fetch, [100]) == [100]
    assert starts == [0, 3, 6]

    starts.clear()
    with pytest.raises(trio.TooSlowError):
        await fanout.map(fetch, [100], item_timeout=5.5)
    assert starts == [7, 10]
    assert trio.current_time() == 12.5


@pytest.mark.parametrize(
    "attempts",
    [
        lambda: stamina.retry_context(on=fanout.FanOutError, attempts=5, **WAITS),
        lambda: tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(fanout.FanOutError),
            stop=tenacity.stop_after_attempt(5),
            wait=tenacity.wait_exponential(),
            reraise=True,
        ),
    ],
    ids=["stamina", "tenacity"],
)
async def test_retrying_only_what_failed(autojump_clock, attempts):
    """A round for all, and then one for those that failed, until there are none."""
    flaky = Flaky({"b": 1, "d": 2})
    items = list("abcde")
    left = list(range(len(items)))
    results = {}
    async for attempt in attempts():
        with attempt:
            try:
                values = await fanout.map(flaky, [items[place] for place in left], policy=fanout.Collect())
            except fanout.FanOutError as error:
                results |= {left[index]: value for index, value in error.results.items()}
                left = [left[index] for index in error.indices]
                raise
            results |= zip(left, values, strict=True)
    assert [results[place] for place in range(len(items))] == ["A", "B", "C", "D", "E"]
    assert flaky.attempts == {"a": 1, "b": 2, "c": 1, "d": 3, "e": 1}
    assert trio.current_time() == 6  # rounds of a second, and waits of one and two between them


async def test_each_attempt_takes_its_turn_in_a_throttle_inside_of_the_retry(autojump_clock):
    flaky = Flaky({"a": 1, "b": 1})
    fetch = stamina.retry(on=BusyError, attempts=3, **WAITS)(throttle(flaky, 0.2))
    assert await fanout.map(fetch, "ab") == ["A", "B"]
    assert flaky.calls == [("a", 0), ("b", 5), ("a", 10), ("b", 15)]


RETRIES = pytest.mark.parametrize(
    "retry",
    [
        stamina.retry(on=BusyError, attempts=5, **WAITS),
        tenacity.retry(
            retry=tenacity.retry_if_exception_type(BusyError),
            stop=tenacity.stop_after_attempt(5),
            wait=tenacity.wait_exponential(),
            reraise=True,
        ),
    ],
    ids=["stamina", "tenacity"],
)


@RETRIES
async def test_wait_between_attempts_holds_no_token_of_a_cap_inside_of_the_retry(autojump_clock, retry):
    flaky = Flaky({"a": 3})
    fetch = retry(cap(flaky, 1))
    assert await fanout.map(fetch, "abcde") == ["A", "B", "C", "D", "E"]
    # After its first attempt "a" waits for a second, then for its turn, then for two seconds, then for four.
    assert [time for item, time in flaky.calls if item == "a"] == [0, 5, 8, 13]
    assert [(item, time) for item, time in flaky.calls if item != "a"] == [("b", 1), ("c", 2), ("d", 3), ("e", 4)]


@RETRIES
async def test_retried_calls_wait_while_the_server_is_to_be_left_alone(autojump_clock, retry):
    """The retry would come after a second; the cap knows better, and for all items."""
    flaky = Flaky({"a": 1})
    fetch = retry(cap(flaky, 2, overloaded=lambda exc: 10 if isinstance(exc, BusyError) else False))
    assert await fanout.map(fetch, "abcd") == ["A", "B", "C", "D"]
    assert flaky.calls[2:] == [("c", 11), ("d", 12), ("a", 12)] or sorted(flaky.calls)[2:] == [
        ("b", 0), ("c", 11), ("d", 12),
    ]  # fmt: skip
