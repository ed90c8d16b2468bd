"""Random small plans over all calls, each carried out under many orders: what must hold for any of them.

    python tests/orders.py --minutes 10

A plan that is wrong is printed as one line. To do the same again, paste it behind `from orders import *`.

The tests of the calls say what comes of a plan at given times. Here nothing is said of times: the items of a plan tell
an `Account` when they start and end, whatever the order, and it knows what must be true then, what may not have been
forgotten when all tasks sleep, and what must come of the call.
"""

import argparse
import random
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from math import inf

import trio
from outcome import Error, Value

import trio_fanout as fanout
from every_order import Wrong, every_order, run_once
from helpers import SourceError
from trio_fanout import Collect, FailFast, FirstSuccess, Settle

ANY = "any"  # as a time: at a turn of Trio's loop that is chosen as an order is
TURNS = 30  # from which it is chosen
RUNS = 20  # of each plan
READER_IS_WOKEN = False  # whether the reader of an async source is woken whenever there is room
SOON = 0.011  # seconds, within which a run that never waits has to follow what changes


# What a plan is


class Short:
    def __repr__(self):
        shown = [f"{field.name}={getattr(self, field.name)!r}" for field in fields(self) if self._differs(field)]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _differs(self, field):
        return getattr(self, field.name) != field.default


@dataclass(frozen=True, repr=False)
class Item(Short):
    """An item, a job or a step: it waits, and ends."""

    waits: tuple = ()  # seconds, or 0 for a checkpoint
    fails: bool = False
    quits: bool = False  # raises what is not an Exception
    if_cancelled: str = "stop"  # or fail, succeed, shield
    leaves: str = ""  # open: scope, shield, cancelled, expiring or nursery
    inner: object = None  # a plan that it carries out
    jobs: tuple = ()  # that it starts
    waits_for_jobs: bool = False
    needs: tuple = ()  # of a step
    settled: bool = False


@dataclass(frozen=True, repr=False)
class Plan(Short):
    """A call."""

    call: str
    items: tuple
    limit: float = 2
    policy: object = FailFast()
    item_timeout: float | None = None
    shared: bool = False
    source: str = "list"  # or generator, async generator, async iterator, timed
    delays: tuple = ()  # of an async source, before each item
    source_error: bool = False  # whether the source raises where it should end
    ordered: bool = True
    buffer: float | None = None
    pace: tuple = ()  # how long the block waits between results that it reads, or jobs that it starts
    reads: float = inf  # results, until it leaves
    leaving: str = ""  # the block: break, raise, stop, aclose; of a group: raise, stop, cancel, wait
    cancelled: object = None  # when that comes from outside
    stopped: object = None  # when another task calls `stop()`
    changes: tuple = ()  # of the limiter's tokens: when, how many
    borrows: tuple = ()  # by others: when, for how long
    looks: int = 0  # of the first looks whether a slice is over, it is chosen what they see


class ItemError(Exception):
    """The failure of an item."""


class BlockError(Exception):
    """Raised by the block of a stream or a group."""


class Quit(BaseException):
    """No failure: it ends a run under any policy."""


class Made:
    """Stands for a failure that the package makes, of one of these types."""

    def __init__(self, *types):
        self.types = types

    def __eq__(self, other):
        return type(other) in self.types

    __hash__ = None


# Where the engine asks for the time


PLACES = [
    (module, name)
    for key, module in list(sys.modules.items())
    if key.startswith("trio_fanout")
    for name, value in list(vars(module).items())
    if value is time.perf_counter
]


@contextmanager
def slices_by(control, looks):
    """Have slices go by virtual time, and by choice at the first `looks` looks."""
    left, over = looks, 0.0

    def look():
        nonlocal left, over
        if left > 0 and control.turns > 0:
            left -= 1
            over += 0.01 * control.choose(2)
        return control.now + over + 1

    for module, name in PLACES:
        setattr(module, name, look)
    try:
        yield
    finally:
        for module, name in PLACES:
            setattr(module, name, time.perf_counter)


# What must hold


def came_out_of_cancellation(exc):
    """Whether there is a `Cancelled` among what this exception came out of; of a group, of each member."""
    while exc is not None:
        if isinstance(exc, trio.Cancelled):
            return True
        if isinstance(exc, BaseExceptionGroup) and all(map(came_out_of_cancellation, exc.exceptions)):
            return True
        exc = exc.__context__
    return False


async def pause(wait):
    """Sleep, or execute a checkpoint."""
    await (trio.sleep(wait) if wait else trio.lowlevel.checkpoint())


class Account:
    """One call: what has happened in it so far, and what must be true of that. A subclass for each kind of call."""

    kind = "item"

    def __init__(self, control, plan, limiter=None):
        self.control = control
        self.plan = plan
        self.items = list(plan.items)
        self.limiter = limiter  # that it shares, or shows
        self.limits = [(-inf, plan.limit)]  # since when, how many tokens
        self.least = plan.limit  # tokens since an item has last ended
        self.outsiders = set()  # tasks that ask for a token, or hold one
        self.started = []
        self.running = set()
        self.values = {}
        self.failures = {}
        self.secondary = set()
        self.finished = []  # in this order: what succeeded or failed
        self.lost = set()  # cancelled
        self.hard = []  # what ends the call under any policy
        self.quits = []
        self.over = None  # why nothing more may start
        self.unclear = False  # whether it cannot be told what must come of it
        self.cancelled_at = inf  # or will be
        self.ends = [0.0]  # when items have ended
        self.handle = None  # what the block got
        most = getattr(plan.policy, "max_failures", None)
        self.max_failures = 1 if isinstance(plan.policy, FailFast) else most

    def check(self, right, what):
        if not right:
            self.control.wrong(f"{self.plan.call}: {what}")

    # Tokens

    @property
    def total(self):
        return self.limits[-1][1]

    @property
    def others(self):
        """How many tokens outsiders hold."""
        return len(self.outsiders & set(self.limiter.statistics().borrowers)) if self.outsiders else 0

    def change(self, tokens):
        """Change how many tokens there are."""
        limiter = self.limiter or (self.handle and self.handle.limiter)
        if limiter:
            limiter.total_tokens = tokens
            self.limits.append((self.control.now, tokens))
            self.least = min(self.least, tokens)

    def most_tokens(self, start=inf):
        """How many tokens there have been since then, or at least since shortly before."""
        start = min(start, self.control.now - SOON)
        ends = [since for since, _ in self.limits[1:]]
        return max(tokens for (_, tokens), end in zip(self.limits, [*ends, inf], strict=True) if end >= start)

    # What items tell

    def start(self, index):
        """An item starts."""
        self.check(self.over is None, f"{self.kind} {index} starts after {self.over}")
        prompt = self.control.now <= self.cancelled_at + SOON
        self.check(prompt, f"{self.kind} {index} starts long after the cancellation")
        self.check_turn(index)
        self.started.append(index)
        self.running.add(index)
        most = self.most_tokens()
        self.check(len(self.running) + self.others <= most, f"{len(self.running)} + {self.others} run, not {most}")
        if self.plan.shared:
            borrowers = self.limiter.statistics().borrowers
            self.check(trio.lowlevel.current_task() in borrowers, f"{self.kind} {index} has no token")

    def check_turn(self, index):
        self.check(index == len(self.started), f"{self.kind} {index} starts after {self.started}")

    def end(self, index):
        self.running.remove(index)
        self.least = self.total
        self.ends.append(self.control.now)
        if self.items[index].leaves == "nursery":
            self.hard.append(Made(RuntimeError))
            self.close("a nursery that was left open")

    def succeed(self, index):
        self.end(index)
        self.values[index] = index
        self.finished.append(index)
        if isinstance(self.plan.policy, FirstSuccess):
            self.close("a success")

    def fail(self, index, failure, *, secondary=False):
        self.end(index)
        self.failures[index] = failure
        self.finished.append(index)
        if secondary:
            self.secondary.add(index)
        if len(self.failures) == self.max_failures:
            self.over = "a failure"

    def call_item(self, index, *_):
        """What the call is given as a function: an item starts as this is called, not at its first step."""
        self.start(index)
        return self.run_item(index, trio.lowlevel.current_task()._cancel_status)

    async def run_item(self, index, around):
        try:
            await self.do(index, self.items[index])
        except trio.Cancelled:
            if around.effectively_cancelled:
                # A time limit around what an item has left open cannot know who was first.
                self.unclear = self.unclear or bool(self.items[index].leaves and self.plan.item_timeout)
                self.end(index)
                self.lost.add(index)
            else:
                self.fail(index, Made(trio.TooSlowError, RuntimeError))  # by its time limit, or by what it left open
            raise
        except Exception as exc:
            self.fail(index, exc, secondary=around.effectively_cancelled and came_out_of_cancellation(exc))
            raise
        except BaseException as exc:
            self.end(index)
            self.over = "a BaseException"
            self.quits.append(exc)
            raise
        self.succeed(index)
        return index

    async def do(self, index, item):
        leave_open(item.leaves)
        try:
            with trio.CancelScope(shield=item.if_cancelled == "shield"):
                handles = [self.submit(job) for job in item.jobs]
                for wait in item.waits:
                    await pause(wait)
                if item.waits_for_jobs:
                    for handle in handles:
                        await self.wait_for(handle)
                if item.inner is not None:
                    await make_account(self.control, item.inner).carry_out()
        except trio.Cancelled:
            if item.if_cancelled == "fail":
                raise ItemError(index)  # noqa: B904
            if item.if_cancelled != "succeed":
                raise
        if item.quits:
            raise Quit(index)
        if item.fails:
            raise ItemError(index)

    # When all tasks sleep

    def idle(self):
        """Nothing is forgotten while there is work and room."""
        if self.ends_early():
            return
        total = min(self.least, self.total) if self.running else self.total
        room = total - self.others - len(self.running)
        work = self.work()
        self.check(room <= 0 or work <= 0, f"room for {room}, and {work} to be started: {self.started}")

    def close(self, why):
        """Nothing more may start."""
        self.over = self.over or why

    def ends_early(self):
        """Whether it need not do all there is."""
        return self.over or self.control.now >= self.cancelled_at or self.around.effectively_cancelled

    def work(self):
        """How many could start, if there was room."""
        raise NotImplementedError

    # The call

    async def call(self):
        raise NotImplementedError

    async def carry_out(self):
        """Make the call. Raises what it raises."""
        task = trio.lowlevel.current_task()
        self.around = task._cancel_status
        before = list(task.child_nurseries)
        turns = self.control.turns
        seconds = getattr(self.plan.policy, "move_on_after", None)
        if seconds is not None:
            self.cancelled_at = self.control.now + seconds
        self.control.when_idle.append(self.idle)
        value = raised = None
        try:
            value = await self.call()
        except BaseException as exc:
            raised = exc
            raise
        finally:
            self.control.when_idle.remove(self.idle)
            self.check(task._cancel_status is self.around, "a scope is left")
            self.check(task.child_nurseries == before, "tasks are left")
            self.check(not self.running, f"{self.running} still run")
            self.check_tokens()
            self.check(raised is not None or self.control.turns > turns, "it was not a checkpoint")
            prompt = self.control.now <= max(self.cancelled_at, self.ends[-1]) + SOON
            self.check(prompt, "the cancellation was not prompt")
            if not self.unclear:
                self.check_end(value, raised)
            raised = None
        return value

    def check_tokens(self):
        if self.limiter is not None:
            held, waiting = self.limiter.borrowed_tokens, self.limiter.statistics().tasks_waiting
            self.check(held == self.others, f"{held} tokens are borrowed, {self.others} by others")
            others = len(self.outsiders) - self.others
            self.check(waiting == others, f"{waiting} wait for a token, {others} of them others")

    # What must come of it

    def check_end(self, value, raised):
        outside = self.around.effectively_cancelled
        if self.quits:
            self.check(any(raised is one for one in self.quits), f"raised {raised!r}, not {self.quits}")
        elif self.hard:
            right = any(raised is one or (isinstance(one, Made) and one == raised) for one in self.hard)
            self.check(right, f"raised {raised!r}, not {self.hard}")
        elif self.max_failures is not None or isinstance(self.plan.policy, Collect):
            if self.all_failures():
                self.check_error(raised)
            else:
                self.check_value(value, raised, outside)
        elif isinstance(raised, trio.Cancelled):
            self.check(outside, "raised Cancelled")
        elif isinstance(self.plan.policy, FirstSuccess):
            self.check_first(value, raised)
        else:
            self.check_value(value, raised, outside)

    def all_failures(self):
        return self.failures

    def check_first(self, value, raised):
        if self.values:
            self.check(raised is None and value == next(iter(self.values)), f"{value}, raised {raised!r}")
        elif self.failures:
            self.check_error(raised)
        else:
            self.check(type(raised) is ValueError and not self.started, f"raised {raised!r}")

    def check_value(self, value, raised, outside):
        if isinstance(raised, trio.Cancelled):
            self.check(outside, "raised Cancelled")
        else:
            self.check(raised is None, f"raised {raised!r}")
            self.check_result(value, outside)

    def check_result(self, value, outside):
        """What the call returns, if it raises nothing."""
        raise NotImplementedError

    def check_error(self, raised):
        """What the call raises for its failures."""
        failures = self.all_failures()
        if isinstance(self.plan.policy, FailFast):
            index = min(failures.keys() - self.secondary or failures)
            self.check(same(failures[index], raised), f"raised {raised!r}, not {failures[index]!r} of {index}")
            notes = getattr(raised, "__notes__", ())
            self.check(self.label(index) in notes, f"no note has {self.label(index)!r}: {notes}")
            return
        if not isinstance(raised, fanout.FanOutError):
            self.check(False, f"raised {raised!r}, not a FanOutError of {failures}")
            return
        found = list(raised.failures)
        self.check(found == [self.name(index) for index in sorted(failures)], f"failures {found}, not {failures}")
        for index, failure in failures.items():
            self.check(same(failure, raised.failures.get(self.name(index))), f"{index} failed by {failure!r}")
        results = {self.name(index): value for index, value in sorted(self.values.items())}
        self.check(dict(raised.results) == (results if self.keeps_results else {}), f"results are {raised.results}")
        self.check(raised.total == self.count(), f"total is {raised.total}, not {self.count()}")

    keeps_results = True

    def count(self):
        return len(self.started)

    def name(self, index):
        return index

    def label(self, index):
        return f"{self.kind} {index}"


def same(expected, found):
    return expected == found if isinstance(expected, Made) else expected is found


def leave_open(what):
    """Leave a scope or a nursery open in the task."""
    if what == "nursery":
        manager = trio.open_nursery()
        with_nursery = manager.__aenter__()
        try:
            with_nursery.send(None)
        except StopIteration:
            OPEN.append(manager)
    elif what:
        scope = trio.CancelScope(shield=what == "shield")
        if what == "expiring":
            scope.deadline = trio.current_time() + 1
        scope.__enter__()
        if what == "cancelled":
            scope.cancel()


OPEN = []  # nurseries that items have left open, as their managers must not be freed


class Sourced(Account):
    """A call with a source."""

    def __init__(self, *args):
        super().__init__(*args)
        self.taken = 0
        self.asked_at = inf  # when an async source was asked for its next item
        self.fetching = False  # that item is on its way
        self.source_ended = False
        self.source_closed = False

    def take(self):
        index = self.taken
        self.taken += 1
        self.check(self.over is None, f"an item is taken after {self.over}")
        unfinished = self.taken - len(self.finished) - len(self.lost)
        most = max(1, self.most_tokens(self.asked_since()))
        self.check(unfinished <= most, f"{unfinished} are taken and unfinished, not {most}")
        return index

    def asked_since(self):
        """Since when there may have been room for the item that is taken now: an async one may be under way for long.

        And its reader is woken as an item ends, which may be before a worker has seen how many tokens there are.
        """
        if self.plan.source in {"list", "generator"}:
            return inf
        return max((end for end in self.ends if end < self.asked_at - SOON), default=-inf)

    def give_up(self):
        self.source_ended = True
        if self.plan.source_error:
            self.close("an error of the source")
            self.hard.append(SourceError())
            raise self.hard[-1]

    def source(self):
        match self.plan.source:
            case "list":
                return Counted(self)
            case "generator":
                return iter(Counted(self))
            case "async iterator":
                return Fetched(self)
            case "async generator":
                return self.fetched(inf)
            case "timed":
                return self.fetched(1.5)

    async def fetched(self, seconds):
        """An async generator that holds a scope open."""
        try:
            with trio.move_on_after(seconds):
                async for index in Fetched(self):
                    yield index
            self.source_ended = True
        finally:
            self.source_closed = True

    def work(self):
        waiting = self.taken - len(self.started)
        if not READER_IS_WOKEN and self.running and self.plan.source not in {"list", "generator"}:
            return waiting
        return (
            waiting if self.fetching or self.source_ended else waiting + min(self.room(), len(self.items) - self.taken)
        )

    def room(self):
        """How many more may be taken, apart from the limit."""
        return inf

    async def carry_out(self):
        try:
            return await super().carry_out()
        finally:
            closed = self.source_closed or not self.taken or self.plan.source not in {"async generator", "timed"}
            self.check(closed, "the source is not closed")

    def is_complete(self):
        """Whether all items there are have been run to their end."""
        return self.source_ended and len(self.finished) == self.taken


class Counted:
    """An iterable, of which items are taken."""

    def __init__(self, account):
        self.account = account

    def __len__(self):
        return len(self.account.items)

    def __iter__(self):
        for _ in self.account.items:
            yield self.account.take()
        self.account.give_up()


class Fetched:
    """An async iterator, of which items are taken."""

    def __init__(self, account):
        self.account = account

    def __aiter__(self):
        return self

    async def __anext__(self):
        account = self.account
        account.fetching, account.asked_at = True, account.control.now
        try:
            if account.plan.delays:
                await pause(account.plan.delays[account.taken % len(account.plan.delays)])
        finally:
            account.fetching = False
        if account.taken < len(account.items):
            return account.take()
        account.give_up()
        raise StopAsyncIteration


def options(plan, limiter):
    return {"limit": limiter if plan.shared else plan.limit, "policy": plan.policy, "item_timeout": plan.item_timeout}


class Mapped(Sourced):
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

    def check_result(self, value, outside):
        if self.control.now >= self.cancelled_at:
            sized = self.plan.source == "list" or self.plan.call == "fan_out"
            count = len(self.items) if sized else self.taken
        else:
            self.check(self.is_complete(), "it returns before its end" if not outside else "it swallows a cancellation")
            count = self.taken
        if self.plan.call == "do":
            self.check(value is None, f"returned {value!r}")
        elif isinstance(self.plan.policy, Settle):
            self.check(len(value) == count, f"{len(value)} outcomes of {count}")
            for index, outcome in enumerate(value):
                self.check(self.is_outcome(index, outcome), f"{outcome} of {index}")
        else:
            self.check(value == list(range(count)), f"returned {value}")

    def is_outcome(self, index, outcome):
        if index in self.values:
            return outcome == Value(index)
        if index in self.failures:
            return same(self.failures[index], outcome.error)
        unfinished = outcome.error
        return isinstance(unfinished, fanout.Unfinished) and unfinished.started == (index in self.started)


class Streamed(Sourced):
    """`stream`."""

    keeps_results = False

    def __init__(self, *args):
        super().__init__(*args)
        self.received = []
        self.reading = False
        self.read_all = False  # until the end, or what is raised in its place
        self.settles = isinstance(self.plan.policy, Settle)

    def outstanding(self):
        return self.taken - len(self.received) - (0 if self.settles else len(self.failures))

    def window(self, limit):
        limit = limit or 1
        return limit + (limit if self.plan.buffer is None else self.plan.buffer)

    def take(self):
        index = super().take()
        window = self.window(self.most_tokens(self.asked_since()))
        self.check(self.outstanding() <= window, f"{self.outstanding()} are outstanding, not {window}")
        return index

    def room(self):
        return self.window(min(self.least, self.total)) - self.outstanding()

    async def call(self):
        plan = self.plan
        async with fanout.stream(
            self.call_item, self.source(), **options(plan, self.limiter), ordered=plan.ordered, buffer=plan.buffer
        ) as self.handle:
            while len(self.received) < plan.reads or not plan.leaving:
                if plan.pace:
                    await pause(plan.pace[len(self.received) % len(plan.pace)])
                if not await self.receive():
                    return
            await self.leave()

    async def receive(self):
        self.reading = True
        try:
            completed = await self.handle.receive()
        except trio.EndOfChannel:
            self.read_all = True
            return False
        except ItemError:
            self.read_all = True
            raise
        finally:
            self.reading = False
        self.check_received(completed)
        self.received.append(completed.index)
        return True

    async def leave(self):
        match self.plan.leaving:
            case "raise":
                self.close("an error of the block")
                self.hard.append(BlockError())
                raise self.hard[-1]
            case "stop":
                self.stop()
                while await self.receive():
                    pass
            case "aclose":
                self.close("aclose()")
                await self.handle.aclose()
            case "break":
                self.close("the end of the block")

    def stop(self):
        if self.handle is not None:
            self.handle.stop()
            self.close("stop()")

    def check_received(self, completed):
        index, item, value = completed
        self.check(index not in self.received and item == index, f"received {completed} after {self.received}")
        if index in self.failures and self.settles:
            self.check(same(self.failures[index], value.error), f"received {completed}")
        else:
            right = index in self.values and value == (Value(index) if self.settles else index)
            self.check(right, f"received {completed}")
        if not self.plan.ordered:
            ready = self.deliverable()
            self.check(index == ready[len(self.received)], f"received {index} after {self.received}: {ready}")
        elif isinstance(self.plan.policy, FailFast):
            self.check(index == len(self.received), f"received {index} after {self.received}")
        else:
            self.check(not self.received or index > self.received[-1], f"received {index} after {self.received}")

    def deliverable(self):
        """What is handed over, as far as it is known by now, and if the reader does not leave."""
        if not self.plan.ordered:
            return [index for index in self.finished if self.settles or index in self.values]
        if isinstance(self.plan.policy, FailFast):
            return [index for index in range(len(self.values)) if self.values.keys() >= set(range(index + 1))]
        return sorted(self.finished if self.settles else self.values)

    def idle(self):
        super().idle()
        if self.reading and not self.quits:
            ready = self.deliverable()
            ahead = set(range(max(ready, default=0))) - self.failures.keys() - self.values.keys()
            waits = self.plan.ordered and ahead  # for what comes before it
            left = len(ready) > len(self.received) and not waits
            self.check(not left, f"the reader sleeps, though {ready} are ready, and it has {self.received}")
        if self.handle is not None and not self.ends_early():
            shown = self.handle.statistics()
            self.check(shown.running == len(self.running), f"{shown}, but {self.running} run")
            self.check(shown.outstanding == self.outstanding(), f"{shown}, but {self.outstanding()} are outstanding")

    def check_end(self, value, raised):
        if self.handle is not None:
            self.check(self.handle.limiter.borrowed_tokens == self.others, "tokens are left")
        if self.read_all and not self.hard and not self.quits and not isinstance(raised, trio.Cancelled):
            self.check(self.received == self.deliverable(), f"received {self.received}, not {self.deliverable()}")
        super().check_end(value, raised)

    def check_result(self, value, outside):
        right = self.ends_early() or self.is_complete()
        self.check(right, "it ends before its end")


class Grouped(Account):
    """`open_group`."""

    kind = "job"
    keeps_results = False

    def __init__(self, *args):
        super().__init__(*args)
        self.items = []  # jobs, as they are submitted
        self.handles = []
        self.waited_for = []

    def submit(self, job):
        index = len(self.items)
        self.items.append(job)
        handle = self.handle.start_soon(self.call_item, index)
        self.check(handle.index == index, f"{handle} is of job {index}")
        self.handles.append(handle)
        return handle

    async def wait_for(self, handle):
        self.waited_for.append(handle.index)
        try:
            await handle.wait()
        finally:
            self.waited_for.remove(handle.index)
        right = handle.index in [*self.finished, *self.lost] or self.ends_early()
        self.check(right, f"{handle} is not done")

    async def call(self):
        plan = self.plan
        try:
            async with fanout.open_group(**options(plan, self.limiter)) as self.handle:
                for number, job in enumerate(plan.items):
                    self.submit(job)
                    if plan.pace:
                        await pause(plan.pace[number % len(plan.pace)])
                await self.leave()
        except trio.Cancelled:
            raise

    async def leave(self):
        match self.plan.leaving:
            case "raise":
                self.close("an error of the block")
                self.hard.append(BlockError())
                raise self.hard[-1]
            case "stop":
                self.stop()
            case "cancel":
                self.cancelled_at = self.control.now
                self.handle.cancel_scope.cancel()
            case "wait":
                for handle in list(self.handles):
                    await self.wait_for(handle)

    def stop(self):
        if self.handle is not None and hasattr(fanout.Group, "stop"):
            self.handle.stop()
            self.close("stop()")
            for handle in self.handles[len(self.started) :]:
                self.check("cancelled" in repr(handle), f"{handle} after stop()")

    def work(self):
        return len(self.items) - len(self.started)

    def idle(self):
        super().idle()
        for index in self.waited_for:
            self.check(index not in self.finished, f"job {index} has ended, and a task still waits for it")
        if self.handle is not None and not self.ends_early():
            shown = self.handle.statistics()
            right = shown.running == len(self.running) and shown.queued == self.work()
            self.check(right, f"{shown}, but {self.running} run and {self.work()} are queued")

    def check_end(self, value, raised):
        if self.handle is not None:
            self.check(self.handle.limiter.borrowed_tokens == self.others, "tokens are left")
        super().check_end(value, raised)
        for index, handle in enumerate(self.handles):
            outcome = handle.outcome
            if index in self.values:
                self.check(outcome == Value(index), f"{handle}")
            elif index in self.failures:
                self.check(isinstance(outcome, Error) and same(self.failures[index], outcome.error), f"{handle}")
            else:
                self.check(outcome is None and "cancelled" in repr(handle), f"{handle}")

    def check_result(self, value, outside):
        right = self.ends_early() or len(self.finished) == len(self.items)
        self.check(right, "it ends before its end")


class Graphed(Account):
    """`run_graph`."""

    kind = "step"

    async def call(self):
        steps = {
            self.name(index): fanout.Step(
                partial(self.call_step, index), tuple(map(self.name, item.needs)), settled=item.settled
            )
            for index, item in enumerate(self.items)
        }
        return await fanout.run_graph(steps, **options(self.plan, self.limiter))

    def name(self, index):
        return f"s{index}"

    def label(self, index):
        return f"step {self.name(index)!r}"

    def count(self):
        return len(self.items)

    def call_step(self, index, *args):
        item = self.items[index]
        for need, arg in zip(item.needs, args, strict=True):
            self.check(self.is_arg(need, arg, settled=item.settled), f"{arg!r} of {need} is given to {index}")
        return self.call_item(index)

    def is_arg(self, need, arg, *, settled):
        if need in self.values:
            return arg == (Value(need) if settled else need)
        if not settled or not isinstance(arg, Error):
            return False
        if need in self.failures:
            return same(self.failures[need], arg.error)
        return need in self.skipped() and isinstance(arg.error, fanout.DependencyFailed)

    def skipped(self, *, cut_short=False):
        """The steps that are skipped, as all that they need has ended, and how: which of their needs failed first."""
        failed = set(self.failures)
        for _ in self.items:
            ended = self.values.keys() | failed
            failed |= {
                index
                for index, item in enumerate(self.items)
                if index not in self.started and not item.settled and failed.intersection(item.needs)
                if cut_short or ended >= set(item.needs)
            }
        return {
            index: next(need for need in self.items[index].needs if need in failed)
            for index in sorted(failed - self.failures.keys())
        }

    def ready(self):
        """The steps that could start, as all that they need has ended."""
        ended = self.values.keys() | self.failures.keys() | self.skipped().keys()
        return [
            index
            for index, item in enumerate(self.items)
            if index not in self.started and (ended if item.settled else self.values.keys()) >= set(item.needs)
        ]

    def check_turn(self, index):
        ready = self.ready()
        self.check(index == min(ready, default=None), f"step {index} starts, but {ready} are ready")

    def work(self):
        return len(self.ready())

    def all_failures(self):
        if isinstance(self.plan.policy, FailFast) or not self.failures:
            return self.failures
        skipped = self.skipped(cut_short=True)
        return self.failures | {index: Made(fanout.DependencyFailed) for index in skipped}

    def check_error(self, raised):
        super().check_error(raised)
        if isinstance(raised, fanout.FanOutError):
            self.check_skipped(raised.failures)

    def check_skipped(self, failures):
        for index, need in self.skipped(cut_short=True).items():
            failure = failures[self.name(index)]
            right = isinstance(failure, fanout.DependencyFailed) and failure.dependency == self.name(need)
            self.check(right, f"{failure!r} of {index}, which needs {need}")

    def check_result(self, value, outside):
        failures = self.all_failures()
        ended = self.values.keys() | failures.keys()
        if self.control.now < self.cancelled_at:
            self.check(len(ended) == len(self.items), f"only {ended} have ended")
        self.check(list(value) == [self.name(index) for index in range(len(self.items))], f"returned {value}")
        if not isinstance(self.plan.policy, Settle):
            self.check(list(value.values()) == list(range(len(self.items))), f"returned {value}")
            return
        self.check_skipped({name: getattr(outcome, "error", None) for name, outcome in value.items()})
        for index in range(len(self.items)):
            outcome = value[self.name(index)]
            if index in self.values:
                self.check(outcome == Value(index), f"{outcome} of {index}")
            elif index in failures:
                self.check(same(failures[index], outcome.error), f"{outcome} of {index}")
            else:
                right = isinstance(outcome.error, fanout.Unfinished) and outcome.error.started == (
                    index in self.started
                )
                self.check(right, f"{outcome} of {index}")


ACCOUNTS = {
    "map": Mapped,
    "do": Mapped,
    "fan_out": Mapped,
    "stream": Streamed,
    "open_group": Grouped,
    "run_graph": Graphed,
}


def make_account(control, plan, limiter=None):
    return ACCOUNTS[plan.call](control, plan, limiter)


# Carrying out a plan


def program_of(plan):
    """A program for `every_order`."""

    def program():
        async def main(control):
            tasks = trio.lowlevel.current_statistics().tasks_living
            limiter = trio.CapacityLimiter(plan.limit) if plan.shared else None
            account = make_account(control, plan, limiter)
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    for act in acts(account, scope):
                        nursery.start_soon(act)
                    try:
                        await account.carry_out()
                    except (Exception, Quit):  # noqa: BLE001  # the account has looked at it
                        pass
                nursery.cancel_scope.cancel()
            OPEN.clear()
            living = trio.lowlevel.current_statistics().tasks_living
            account.check(living == tasks, f"{living - tasks} tasks are left")

        return main

    return program


def acts(account, scope):
    """What other tasks do meanwhile."""
    plan, control = account.plan, account.control

    async def at(when):
        if when == ANY:
            await control.turn(control.turns + control.choose(TURNS))
        else:
            await trio.sleep(when)

    async def cancel():
        await at(plan.cancelled)
        account.cancelled_at = min(account.cancelled_at, control.now)
        scope.cancel()

    async def stop():
        await at(plan.stopped)
        account.stop()

    async def change():
        for when, tokens in plan.changes:
            await at(when)
            account.change(tokens)

    async def borrow(when, seconds):
        await at(when)
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        account.outsiders.add(task)
        try:
            async with account.limiter:
                await pause(seconds)
        finally:
            account.outsiders.remove(task)

    if plan.cancelled is not None:
        yield cancel
    if plan.stopped is not None:
        yield stop
    if plan.changes:
        yield change
    for when, seconds in plan.borrows:
        yield partial(borrow, when, seconds)


# Making plans


class Chance(random.Random):
    def one_in(self, number):
        return self.random() * number < 1

    def wait(self):
        return self.choice((0, 0, 1, 1, 2))

    def waits(self, most):
        return tuple(self.wait() for _ in range(self.randint(0, most)))

    def when(self):
        return self.choice((ANY, ANY, 0, 1, 2))


CALLS = ("map", "map", "do", "fan_out", "stream", "stream", "stream", "open_group", "open_group", "run_graph")


def random_plan(chance):
    """A plan, drawn by lot. Every other one comes to its end."""
    call = chance.choice(CALLS)
    wild = chance.one_in(2)
    plan = {
        "items": random_items(chance, call, wild=wild),
        "limit": chance.choice((1, 2, 2, 3, 3, 4, inf)),
        "policy": random_policy(chance, call),
        "shared": chance.one_in(3),
    }
    if chance.one_in(8):
        plan["item_timeout"] = chance.choice((0.5, 1, 1.5))
    if chance.one_in(3):
        plan["looks"] = 30
    if call in {"map", "do", "stream"}:
        plan |= random_source(chance, wild=wild)
    if call in {"stream", "open_group"}:
        plan["pace"] = chance.waits(2)
    if call == "stream":
        plan["ordered"] = chance.one_in(2)
        plan["buffer"] = chance.choice((None, 0, 0, 1, 2, inf))
    if wild:
        plan |= random_end(chance, call)
    if call == "open_group" and chance.one_in(4):
        plan["leaving"] = "wait"
    if (plan["shared"] or call in {"stream", "open_group"}) and chance.one_in(2):
        plan["changes"] = random_changes(chance)
    if plan["shared"] and chance.one_in(2):
        plan["borrows"] = tuple((chance.when(), chance.wait()) for _ in range(chance.randint(1, 2)))
    return Plan(call, **plan)


def random_items(chance, call, *, wild):
    size = chance.randint(0, 6) if chance.one_in(3) else chance.randint(3, 6)
    risk = chance.choice((0, 0.2, 0.4)) if wild else chance.choice((0, 0, 0.2))
    jobs = 2 if call == "open_group" else 0
    items = [random_item(chance, risk, jobs=jobs, wild=wild) for _ in range(size)]
    if call == "run_graph":
        place = chance.sample(range(size), size)
        needs = [[other for other in place[: place.index(index)] if chance.one_in(2.5)] for index in range(size)]
        items = [replace(item, needs=tuple(needs[index])) for index, item in enumerate(items)]
        items = [replace(item, settled=bool(item.needs) and chance.one_in(3)) for item in items]
    return tuple(items)


def random_item(chance, risk, *, jobs=0, wild=False, inner=True):
    item = {"waits": chance.waits(2), "fails": chance.random() < risk}
    item["if_cancelled"] = chance.choice(("stop", "stop", "stop", "fail", "succeed", "shield"))
    if chance.one_in(8):
        item["leaves"] = chance.choice(("scope", "shield", "cancelled", "expiring"))
    if wild and chance.one_in(60):
        item["quits"] = True
    if wild and chance.one_in(60):
        item["leaves"] = "nursery"
    if inner and chance.one_in(20):
        items = tuple(random_item(chance, risk, inner=False) for _ in range(chance.randint(1, 3)))
        item["inner"] = Plan("map", items, limit=chance.randint(1, 2), policy=random_policy(chance, "map"))
    if jobs and chance.one_in(3):
        item["jobs"] = tuple(random_item(chance, risk, jobs=jobs - 1) for _ in range(chance.randint(1, 2)))
    return Item(**item)


def random_source(chance, *, wild):
    source = {"source": chance.choice(("list", "generator", "async generator", "async iterator", "timed"))}
    if source["source"] not in {"list", "generator"}:
        source["delays"] = chance.waits(3)
    if wild and chance.one_in(5):
        source["source_error"] = True
    return source


def random_end(chance, call):
    """What ends a run early."""
    end = {}
    if chance.one_in(2):
        end["cancelled"] = chance.when()
    if call in {"stream", "open_group"} and chance.one_in(3):
        end["stopped"] = chance.when()
    if call == "stream" and chance.one_in(2):
        end["leaving"] = chance.choice(("break", "raise", "stop", "aclose"))
        end["reads"] = chance.randint(0, 3)
    if call == "open_group" and chance.one_in(2):
        end["leaving"] = chance.choice(("raise", "stop", "cancel"))
    return end


def random_policy(chance, call):
    policies = [FailFast(), FailFast(), Collect(), Collect(chance.randint(1, 2))]
    if call != "do":
        policies += [Settle(), Settle()]
    if call in {"map", "fan_out"}:
        policies += [FirstSuccess(), FirstSuccess()]
    if call in {"map", "fan_out", "run_graph"}:
        policies.append(Settle(move_on_after=chance.choice((0, 1, 1.5))))
    return chance.choice(policies)


def random_changes(chance):
    """At the end there are tokens, or a run could not end."""
    changes = [(chance.when(), chance.choice((0, 0, 1, 2, 3))) for _ in range(chance.randint(1, 3))]
    return (*changes, (chance.when(), chance.randint(1, 3)))


# The campaign


def explore(plan, *, runs=RUNS, seed=0):
    """Carry a plan out under many orders."""
    return every_order(program_of(plan), most=runs, seed=seed, around=partial(slices_by, looks=plan.looks))


def replay(plan, schedule=()):
    """Carry a plan out under one order."""
    return run_once(program_of(plan), schedule, around=partial(slices_by, looks=plan.looks))


def campaign(seed, until):
    """Explore random plans, until `until()` is true. Returns how many plans and runs that were."""
    plans = runs = 0
    while not until():
        plan = random_plan(Chance(f"{seed} {plans}"))
        try:
            runs += explore(plan, seed=seed).runs
        except Wrong as wrong:
            wrong.add_note(f"seed {seed}, plan {plans}\nreplay({plan}, {wrong.schedule})")
            raise
        plans += 1
    return plans, runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", default="0")
    args = parser.parse_args()
    until = time.process_time() + 60 * args.minutes
    plans, runs = campaign(args.seed, lambda: time.process_time() > until)
    sys.stdout.write(f"{plans} plans, {runs} runs: nothing was wrong\n")


if __name__ == "__main__":
    main()
