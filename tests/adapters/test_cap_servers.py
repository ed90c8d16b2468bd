"""`cap` with `overloaded` against servers that take only so much, on a virtual clock, with retries around it."""

import random
from collections import Counter

import pytest
import trio
from trio.testing import MockClock

import trio_fanout as fanout

pytestmark = pytest.mark.slow

ITEMS, ATTEMPTS = 600, 10


class BusyError(Exception):
    """429, perhaps with a `Retry-After`."""

    def __init__(self, seconds=None):
        super().__init__(seconds)
        self.seconds = seconds


def busy(exc):
    if not isinstance(exc, BusyError):
        return False
    return True if exc.seconds is None else exc.seconds


class Server:
    """Counts what it answers and what it refuses."""

    def __init__(self):
        self.answered = self.refused = 0

    def vary(self):
        """By what a time is multiplied."""
        return 1

    def refuses(self):
        """Whether it will not take a request now."""
        raise NotImplementedError

    def done(self):
        """It has answered one."""

    async def get(self, item):
        await trio.sleep(0.05 * self.vary())  # on the way
        error = self.refuses()
        if error is not None:
            self.refused += 1
            raise error
        await trio.sleep(0.5 * self.vary())
        self.done()
        self.answered += 1
        return item


class FewAtOnce(Server):
    """It takes eight requests at once."""

    now, at_once = 0, 8

    def refuses(self):
        if self.now == self.at_once:
            return BusyError()
        self.now += 1
        return None

    def done(self):
        self.now -= 1


class Bucket(Server):
    """It takes ten requests a second, of which it saves up ten: a bucket of tokens."""

    tokens, then = 10.0, 0.0

    def refuses(self):
        now = trio.current_time()
        self.tokens = min(10.0, self.tokens + (now - self.then) * 10)
        self.then = now
        if self.tokens < 1:
            return BusyError()
        self.tokens -= 1
        return None


class Minutes(Server):
    """It takes sixty requests a minute, and says when the next begins."""

    def __init__(self):
        super().__init__()
        self.minutes = Counter()

    def refuses(self):
        minute, second = divmod(trio.current_time(), 60)
        if self.minutes[minute] == 60:
            return BusyError(60 - second)
        self.minutes[minute] += 1
        return None


class Seconds(Server):
    """It takes ten requests in each second of its clock, and says nothing."""

    def __init__(self):
        super().__init__()
        self.seconds = Counter()

    def refuses(self):
        second = trio.current_time() // 1
        if self.seconds[second] == 10:
            return BusyError()
        self.seconds[second] += 1
        return None


class SilentMinutes(Minutes):
    """The same, and says nothing."""

    def refuses(self):
        return None if super().refuses() is None else BusyError()


class Down(FewAtOnce):
    """It is down for the first minute; then it takes fifty requests at once."""

    at_once = 50

    def refuses(self):
        return BusyError() if trio.current_time() < 60 else super().refuses()


async def fetch_all(server, adapt):
    """The items that are lost."""
    rng = random.Random(0)  # the jitter is the same each time
    get = adapt(server.get)

    async def fetch(item):
        for attempt in range(ATTEMPTS):
            try:
                return await get(item)
            except BusyError as exc:
                if attempt + 1 == ATTEMPTS:
                    raise
                await trio.sleep(exc.seconds or rng.uniform(0.5, 1) * min(0.1 * 2**attempt, 5))
        raise AssertionError

    outcomes = await fanout.map(fetch, range(ITEMS), limit=ITEMS, policy=fanout.Settle())
    return [item for item, outcome in enumerate(outcomes) if hasattr(outcome, "error")]


SERVERS = pytest.mark.parametrize("make", [FewAtOnce, Bucket, Minutes])


@SERVERS
async def test_with_overloaded_no_item_is_lost_and_few_requests_are_refused(autojump_clock, make):
    server = make()
    lost = await fetch_all(server, lambda get: fanout.cap(get, 100, overloaded=busy))
    assert lost == []
    assert server.answered == ITEMS
    assert server.refused / (server.answered + server.refused) <= 0.3


@SERVERS
async def test_without_it_most_requests_are_refused(autojump_clock, make):
    server = make()
    await fetch_all(server, lambda get: fanout.cap(get, 100))
    assert server.refused / (server.answered + server.refused) > 0.5


async def test_server_that_counts_by_seconds_is_a_job_for_throttle(autojump_clock):
    """A cap bounds how many are at work: it cannot know when a second begins."""
    capped, throttled = Seconds(), Seconds()
    await fetch_all(capped, lambda get: fanout.cap(get, 100, overloaded=busy))
    lost = await fetch_all(throttled, lambda get: fanout.throttle(get, 9.5))
    assert lost == []
    assert throttled.refused == 0
    assert capped.refused > 100


# Servers that go on refusing. The waits between ten attempts are long enough for these, and no two requests take the
# same time.


async def fetch_patiently(server, adapt, seed):
    """How many items are lost, the share of requests that is refused, and how long it takes."""
    rng = random.Random(seed)
    server.vary = lambda: rng.uniform(0.8, 1.2)
    get = adapt(server.get)

    async def fetch(item):
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await get(item)
            except BusyError:
                if attempt == ATTEMPTS:
                    raise
                await trio.sleep(min(60, 0.1 * 2 ** (attempt - 1) + rng.random()))
        raise AssertionError

    begin = trio.current_time()
    outcomes = await fanout.map(fetch, range(ITEMS), limit=1000, policy=fanout.Settle())
    lost = sum(hasattr(outcome, "error") for outcome in outcomes)
    return lost, server.refused / (server.answered + server.refused), trio.current_time() - begin


SEEDS = 20


@pytest.mark.parametrize(
    ("make", "most_refused", "most_seconds"),
    [
        # What a perfect client needs: 540.55, 68, 59.55, 41.25 seconds.
        (SilentMinutes, 0.21, 560),
        (Down, 0.075, 78),
        (Bucket, 0.11, 62.5),
        (FewAtOnce, 0.055, 49.5),
    ],
)
def test_server_that_goes_on_refusing_is_asked_now_and_then(make, most_refused, most_seconds):
    """The worst of some seeds. Without blocks, the first loses 300 items and refuses 94 %, and the second 67 %; the
    others refuse 9 and 4 %, as with them.
    """

    def run(seed):
        return trio.run(
            fetch_patiently,
            make(),
            lambda get: fanout.cap(get, 100, overloaded=busy),
            seed,
            clock=MockClock(autojump_threshold=0),
        )

    runs = [run(seed) for seed in range(SEEDS)]
    assert max(lost for lost, _, _ in runs) == 0
    assert max(refused for _, refused, _ in runs) <= most_refused
    assert max(seconds for _, _, seconds in runs) <= most_seconds


@pytest.mark.parametrize(("make", "lost", "least_refused"), [(SilentMinutes, 300, 0.9), (Down, 0, 0.6)])
def test_cap_that_does_not_adapt_does_worse_at_such_a_server(make, lost, least_refused):
    run = trio.run(fetch_patiently, make(), lambda get: fanout.cap(get, 100), 0, clock=MockClock(autojump_threshold=0))
    assert run[0] >= lost
    assert run[1] >= least_refused
