"""Tests of `download`, in virtual time."""

import hypothesis
import hypothesis.strategies as st
import pytest
import trio
from download import download
from trio.testing import MockClock

import trio_fanout as fanout


class Script:
    """An async function that follows a script: for each argument, how long to take, and what to return or raise.

    It notes when it was called.
    """

    def __init__(self, **script):
        self.script = script
        self.calls = []

    async def __call__(self, argument):
        self.calls.append((argument, trio.current_time()))
        seconds, result = self.script[argument]
        await trio.sleep(seconds)
        if isinstance(result, Exception):
            raise result
        return result


@pytest.mark.trio
async def test_pages_and_errors_come_by_url(autojump_clock):
    error = ConnectionError("no route")
    get = Script(a=(3, "A"), b=(1, error), c=(2, "C"))
    assert await download(get, "abc", trio.CapacityLimiter(3)) == ({"a": "A", "c": "C"}, {"b": error})
    assert trio.current_time() == 3  # side by side


@pytest.mark.trio
async def test_a_request_that_hangs_is_given_up_after_ten_seconds(autojump_clock):
    get = Script(a=(3600, "A"), b=(1, "B"))
    pages, errors = await download(get, "ab", trio.CapacityLimiter(1))
    assert pages == {"b": "B"}
    assert isinstance(errors["a"], trio.TooSlowError)
    assert get.calls == [("a", 0), ("b", 10)]


@pytest.mark.trio
async def test_no_more_requests_at_once_than_the_server_has_tokens(autojump_clock):
    meter = fanout.Meter()
    get = meter.wrap(Script(**dict.fromkeys("abcdefgh", (1, "page"))))
    await download(get, "abcdefgh", trio.CapacityLimiter(3))
    assert meter.statistics().peak_running == 3
    assert meter.statistics().succeeded == 8


@pytest.mark.trio
async def test_cancelled_it_leaves_nothing_behind(autojump_clock):
    server, meter = trio.CapacityLimiter(2), fanout.Meter()
    get = meter.wrap(Script(**dict.fromkeys("abc", (5, "page"))))
    with trio.move_on_after(3) as scope:
        await download(get, "abc", server)
    assert scope.cancelled_caught
    assert trio.current_time() == 3  # immediately
    assert server.borrowed_tokens == 0
    assert meter.running() == []
    assert meter.statistics().cancelled == 2


@hypothesis.given(st.lists(st.integers(0, 9)), st.integers(1, 4), st.random_module())
def test_whatever_the_times_results_are_complete_and_no_token_idles(times, limit, order):
    urls = range(len(times))
    meter = fanout.Meter()

    async def get(url):
        await trio.sleep(times[url])
        return url

    async def main():
        pages, errors = await download(meter.wrap(get), urls, trio.CapacityLimiter(limit))
        assert errors == {}
        assert pages == {url: url for url in urls}
        assert meter.statistics().peak_running <= limit
        # A bound that holds where no token is free while an item waits (Graham, 1966).
        assert trio.current_time() <= sum(times) / limit + max(times, default=0)

    trio.run(main, clock=MockClock(autojump_threshold=0))
