"""What several test modules share."""

import gc
import math
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import trio

import trio_fanout as fanout

ALL_POLICIES = [fanout.FailFast(), fanout.Collect(), fanout.Settle(), fanout.FirstSuccess()]
"""An instance of each policy, for what must be the same under all of them."""

POLICIES = pytest.mark.parametrize("policy", ALL_POLICIES, ids=str)
"""The policies of `map` and `fan_out`."""

GROUP_POLICIES = pytest.mark.parametrize("policy", ALL_POLICIES[:3], ids=str)
"""The policies of groups, graphs and streams."""

DO_POLICIES = pytest.mark.parametrize("policy", ALL_POLICIES[:2], ids=str)
"""The policies of `do`: those that raise failures."""

PATIENCE = 30
"""Seconds until a wait for a thread or a process fails: more than a test that passes takes on a slow machine."""

LIMITS = pytest.mark.parametrize("limit", [1, 3, math.inf, "shared 1", "shared 3"])


def limit_of(limit, shared=False):
    """`limit`, or a limiter with so many tokens: if `shared`, or if `limit` is, say, ``"shared 3"``."""
    if isinstance(limit, str):
        return trio.CapacityLimiter(int(limit.removeprefix("shared ")))
    return trio.CapacityLimiter(limit) if shared else limit


async def double(x):
    """An item that waits for one turn of the event loop."""
    await trio.lowlevel.checkpoint()
    return x * 2


async def double_at_once(x):
    """An item that never waits."""
    return x * 2


async def fail_when_cancelled(exc):
    """An item that fails out of its cancellation."""
    try:
        await trio.sleep_forever()
    finally:
        try:
            raise exc
        finally:
            del exc  # or this frame, in the traceback, would make a cycle


async def rest_of(results):
    """All that can still be received from a stream."""
    return [completed async for completed in results]


FUNCTIONS = pytest.mark.parametrize("fn", [double, double_at_once])


class ItemError(Exception):
    """Raised by an item."""


class SourceError(Exception):
    """Raised by a source."""


@dataclass(frozen=True)
class FrozenError(Exception):
    """An exception that cannot take a note, nor any other attribute."""

    code: int


class Thing:
    """Something that a weak reference can watch, and `Things` can count."""


class Things:
    """Makes things, and counts those that are alive, and the most at once."""

    def __init__(self):
        self.alive = self.most = 0

    def make(self):
        self.alive += 1
        self.most = max(self.most, self.alive)
        return CountedThing(self)


class CountedThing(Thing):
    def __init__(self, things):
        self.things = things

    def __del__(self):
        self.things.alive -= 1


class Gauge:
    """Counts the items that run, and remembers the most at once and the order in which they began."""

    def __init__(self):
        self.now = 0
        self.peak = 0
        self.began = []

    @contextmanager
    def running(self, item=None):
        self.began.append(item)
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            yield
        finally:
            self.now -= 1


class Sized:
    """An iterable that says it has `length` items, which need not be true."""

    def __init__(self, items, length):
        self.items = items
        self.length = length

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(self.items)


class CountingSource:
    """An endless or bounded iterator that knows how many of its items are taken and not yet marked finished."""

    def __init__(self, items):
        self._items = iter(items)
        self.taken = 0
        self.unfinished = 0
        self.peak = 0

    def __iter__(self):
        return self

    def __next__(self):
        item = next(self._items)
        self.taken += 1
        self.unfinished += 1
        self.peak = max(self.peak, self.unfinished)
        return item


class AsyncCountingSource(CountingSource):
    """The same, asynchronous."""

    __iter__ = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        await trio.lowlevel.checkpoint()
        try:
            return self.__next__()
        except StopIteration:
            raise StopAsyncIteration from None


async def aiter_of(items):
    """An async generator over `items`, which waits before each of them."""
    for item in items:
        await trio.lowlevel.checkpoint()
        yield item


def busy(seconds):
    """Take real time without letting any other task in."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def all_tasks():
    """Every task of this Trio run."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks, queue = [], [root]
    while queue:
        task = queue.pop()
        tasks.append(task)
        for nursery in task.child_nurseries:
            queue.extend(nursery.child_tasks)
    return tasks


def task_names():
    return [task.name for task in all_tasks()]


def workers(prefix="map("):
    """How many tasks there are whose name begins so."""
    return sum(name.startswith(prefix) for name in task_names())


class Steps(trio.abc.Instrument):
    """Counts the steps of all tasks, in each turn of Trio's loop."""

    def __init__(self):
        self.turns = [0]

    @property
    def count(self):
        return sum(self.turns)

    def before_task_step(self, task):
        self.turns[-1] += 1

    def before_io_wait(self, timeout):
        self.turns.append(0)


@contextmanager
def nothing_left(*limiters):
    """Check that the block leaves no task behind, no borrowed token, and no instrument: it costs time at each step."""
    tasks = trio.lowlevel.current_statistics().tasks_living
    borrowed = [limiter.borrowed_tokens for limiter in limiters]
    instruments = trio._core._run.GLOBAL_RUN_CONTEXT.runner.instruments["_all"]
    installed = list(instruments)
    try:
        yield
    finally:
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        assert [limiter.borrowed_tokens for limiter in limiters] == borrowed
        assert all(limiter.statistics().tasks_waiting == 0 for limiter in limiters)
        assert list(instruments) == installed


@contextmanager
def no_cycles():
    """Check that the block leaves nothing for the garbage collector: all goes by reference counts alone."""
    flags = gc.get_debug()
    gc.disable()
    gc.freeze()  # all there is so far is none of our business, and takes long to look through
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage = [f"{type(thing).__name__}: {thing!r:.200}" for thing in gc.garbage]
        assert garbage == [], "\n".join(garbage)
    finally:
        gc.set_debug(flags)
        gc.garbage.clear()
        gc.enable()


async def check_no_cycles(once, *args):
    """Check that calling `once` leaves no reference cycle; what is made once and kept forever is none."""
    await once(*args)
    with no_cycles():
        await once(*args)


def leaves(exc):
    """The exceptions in a group, at any depth; of anything else, itself."""
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for member in exc.exceptions for leaf in leaves(member)]
    return [exc]


async def foreign_cancelled():
    """A Cancelled that belongs to nothing any more."""
    kept = []
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            kept.append(exc)
            raise
    return kept[0]


async def deepest(depth=0):
    """How many calls of an async function fit on the stack now. Whatever traces calls may take as much again."""
    try:
        return await deepest(depth + 1)
    except RecursionError:
        return depth


async def deeper(frames, fn):
    """Call `fn`, async or not, that many calls further down the stack."""
    if frames:
        return await deeper(frames - 1, fn)
    result = fn()
    return None if result is None else await result


def contexts_of(exc):
    """`exc` and what it came out of, from the last to the first."""
    return [] if exc is None else [exc, *contexts_of(exc.__context__)]


def printed(exc):
    """The traceback of an exception and of those it is chained to."""
    return "".join(traceback.format_exception(exc))


def notes_of(exc):
    return getattr(exc, "__notes__", [])
