"""What must hold for calls with a source, and for `map`, `do` and `fan_out`."""

from functools import partial
from math import inf

import trio

import trio_fanout as fanout
from trio_fanout import Settle

from .account import SOON, Account, SourceError, options, pause


class Sourced(Account):
    """A call with a source."""

    def __init__(self, *args):
        super().__init__(*args)
        self.taken = 0
        self.fetching = False  # an async source is asked for its next item
        self.asked_at = inf  # since then
        self.source_ended = False
        self.source_closed = True  # unless a generator is open

    def take(self):
        """Take the next item."""
        self.check(self.over is None, f"an item is taken after {self.over}")
        if self.taken == self.plan.stopped_by:
            self.stop()
        self.taken += 1
        unfinished = self.taken - len(self.finished) - len(self.lost)
        most = max(1, self.most_tokens(self.asked_at))
        self.check(unfinished <= most, f"{unfinished} are taken and unfinished, not {most}")
        return self.taken - 1

    def exhaust(self):
        """No item is left."""
        self.source_ended = True
        if self.plan.source_error:
            self.close("an error of the source")
            self.hard.append(SourceError())
            raise self.hard[-1]

    def source(self):
        match self.plan.source:
            case "list":
                return Pulled(self)
            case "generator":
                return iter(Pulled(self))
            case "async iterator":
                return Fetched(self)
            case "async generator":
                return self.fetched(inf)
            case "timed":
                return self.fetched(1.5)

    async def fetched(self, seconds):
        """An async generator that holds a scope open across its yields."""
        self.source_closed = False
        try:
            with trio.move_on_after(seconds):
                async for index in Fetched(self):
                    yield index
            self.source_ended = True
        finally:
            self.source_closed = True

    def waiting(self):
        waiting = self.taken - len(self.started)
        return waiting if self.fetching or self.source_ended else waiting + min(self.room(), self.left())

    def left(self):
        return len(self.items) - self.taken

    def room(self):
        """How many more may be taken, apart from the limit."""
        return inf

    def check_end(self, value, raised):
        self.check(self.source_closed, "the source is not closed")
        super().check_end(value, raised)

    def is_complete(self):
        """Whether all items have succeeded or failed."""
        return self.source_ended and len(self.finished) == self.taken


class Pulled:
    """An iterable, of which items are taken."""

    def __init__(self, account):
        self.account = account

    def __len__(self):
        return len(self.account.items)

    def __iter__(self):
        self.account.source_closed = False
        try:
            for _ in self.account.items:
                yield self.account.take()
            self.account.exhaust()
        finally:
            self.account.source_closed = True


class Fetched:
    """An async iterator, of which items are taken."""

    def __init__(self, account):
        self.account = account

    def __aiter__(self):
        return self

    async def __anext__(self):
        account = self.account
        account.fetching, account.asked_at = True, account.control.now - SOON
        try:
            if account.plan.delays:
                await pause(account.plan.delays[account.taken % len(account.plan.delays)])
        finally:
            account.fetching = False
        if account.left():
            return account.take()
        account.exhaust()
        raise StopAsyncIteration


class Mapped(Sourced, calls=("map", "do", "fan_out")):
    """`map`, `do` or `fan_out`."""

    async def call(self):
        kwargs = options(self.plan, self.limiter)
        match self.plan.call:
            case "map":
                return await fanout.map(self.call_item, self.source(), **kwargs)
            case "do":
                return await fanout.do(self.call_item, self.source(), **kwargs)
            case "fan_out":
                self.taken, self.source_ended = len(self.items), True
                fns = [partial(self.call_item, index) for index in range(len(self.items))]
                return await fanout.fan_out(fns, None, **kwargs)

    @property
    def keeps_results(self):
        return self.plan.call != "do"

    def check_result(self, value):
        if self.plan.call == "do":
            self.check(value is None and self.is_complete(), f"returned {value!r} after {self.finished}")
        elif isinstance(self.plan.policy, Settle):
            self.check_outcomes(value)
        elif isinstance(self.plan.policy, fanout.FirstSuccess):
            self.check(value == next(iter(self.values)), f"returned {value}, not the first of {self.values}")
        else:
            self.check(value == list(range(self.taken)) and self.is_complete(), f"returned {value}")

    def check_outcomes(self, outcomes):
        count = self.taken
        if self.control.now < self.cancelled_at:
            self.check(self.is_complete(), f"returned {outcomes} after {self.finished}")
        elif self.plan.source == "list":
            count = len(self.items)
        self.check(len(outcomes) == count, f"{len(outcomes)} outcomes of {count}")
        for index, outcome in enumerate(outcomes):
            self.check_outcome(index, outcome)
