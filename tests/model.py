"""The kernel of the models: what a run must do, worked out by a simulation that shares nothing with the package.

It knows a clock, events and tokens, and no tasks, and goes from one event to the next. Each time in a plan has a
fraction of its own (see `exact`), so sums of them never meet, no two events fall together, and there is one right
answer.
"""

import math
from contextlib import asynccontextmanager

import trio
from hypothesis import strategies as st
from trio.testing import MockClock

import trio_fanout as fanout
from helpers import limit_of, nothing_left


class TieError(Exception):
    """Two things happen at one moment, and what comes of it depends on which is first."""


def exact(whole, place):
    """A time whose fraction is a power of two, of its own if `place` is: sums of such times are exact."""
    return whole + math.ldexp(1, -place)


class Simulation:
    """A run, and what came of it; a model derives from it and says what is started when, and what an end leads to."""

    def __init__(self, limit, policy, outside=None):
        self.limit = limit
        self.lent = 0  # tokens that others hold
        self.policy = policy
        self.max_failures = 1 if isinstance(policy, fanout.FailFast) else getattr(policy, "max_failures", None)
        self.now = 0.0
        self.events = {}  # the name of a method and its arguments -> when to call it
        self.running = {}  # item -> how it will end by itself
        self.began = {}  # item -> when
        self.values = {}  # item -> how it succeeded
        self.failures = {}  # item -> how it failed
        self.secondary = set()  # the failures that came out of the cancellation
        self.stopped = False  # nothing more is started
        self.cancelled = False
        self.from_outside = False
        self.at(outside, "cancel_from_outside")
        self.at(getattr(policy, "move_on_after", None), "cancel")

    # For a model to say

    def start_next(self):
        """Start what is next, if there is anything; tell whether there was. There is a token."""
        raise NotImplementedError

    def if_cancelled(self, item):
        """How an item ends when it is cancelled: `stop`, like a failure or a value, or not (`shield`)."""
        raise NotImplementedError

    def over(self):
        return not self.running

    # For a model to use

    def at(self, when, *event):
        if when is not None and when < math.inf:
            self.events[event] = when

    def begin(self, item, seconds, how):
        self.began[item] = self.now
        self.running[item] = how
        self.at(self.now + seconds, "end", item)

    def finish(self, item, how, *, by_cancellation=False):
        """An item has ended: `how` is `stop`, `value` or `caught`, or else a kind of failure."""
        if how in ("value", "caught"):
            self.values[item] = how
        elif how != "stop":
            self.failures[item] = how
            if by_cancellation:
                self.secondary.add(item)
            if len(self.failures) == self.max_failures:
                self.cancel()

    def cancel(self):
        """Start nothing more, and cancel all items but those behind a shield, which come to their natural end."""
        if self.cancelled:
            return
        self.cancelled = self.stopped = True
        for item in list(self.running):
            how = self.if_cancelled(item)
            if how != "shield":
                del self.running[item], self.events["end", item]
                self.finish(item, how, by_cancellation=True)

    # How it goes

    def run(self):
        self.fill()
        while not self.over():
            self.step()
            self.fill()
        return self

    def fill(self):
        """Start what may start now."""
        while not self.stopped and len(self.running) + self.lent < self.limit and self.start_next():
            pass

    def step(self):
        """Go to the next event, and let it happen."""
        self.now = min(self.events.values())
        event, *others = [event for event, when in self.events.items() if when == self.now]
        if others:
            raise TieError
        del self.events[event]
        name, *args = event
        getattr(self, name)(*args)

    def end(self, item):
        self.finish(item, self.running.pop(item))

    def cancel_from_outside(self):
        self.from_outside = True
        self.cancel()

    @property
    def primary(self):
        """The failures of which FailFast raises the first."""
        return self.failures.keys() - self.secondary or self.failures.keys()


class Execution:
    """A plan, carried out; a model derives from it and says what that is."""

    def __init__(self, plan):
        self.plan = plan
        self.limit = limit_of(plan.limit, plan.shared)
        self.began = {}  # item -> when
        self.errors = {}  # item -> what it raised
        self.value = self.raised = None  # what came of the call

    async def call(self):
        """Call what is tested."""
        raise NotImplementedError

    def fail(self, item, cls):
        self.errors[item] = cls(item)
        raise self.errors[item]

    async def main(self):
        shared = [self.limit] if self.plan.shared else []
        with nothing_left(*shared), trio.CancelScope(deadline=self.plan.outside) as scope:
            try:
                self.value = await self.call()
            except Exception as error:  # noqa: BLE001
                self.raised = error
        self.ended = trio.current_time()
        self.cancelled_caught = scope.cancelled_caught


def run(fn, *args):
    """`trio.run` in virtual time."""
    return trio.run(fn, *args, clock=MockClock(autojump_threshold=0))


CHANGES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=5)
"""How a limiter's tokens change: seconds, and how many there are then."""


@asynccontextmanager
async def restless_limiter(changes):
    """A limiter whose tokens come and go, and which another task uses as well."""
    limiter = trio.CapacityLimiter(1)

    async def change():
        for delay, tokens in changes:
            await trio.sleep(delay)
            limiter.total_tokens = tokens
        limiter.total_tokens = 2  # or a run that was paused would never end

    async def borrow():
        await trio.sleep(2)
        async with limiter:
            await trio.sleep(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        nursery.start_soon(borrow)
        yield limiter
    assert limiter.borrowed_tokens == 0
