"""Random runs of `map` against a model of what they must do, and against what must hold for all of them."""

import math
from collections import deque
from dataclasses import dataclass

import outcome
import pytest
import trio
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import trio_fanout as fanout
from helpers import Sized, SourceError, aiter_of, notes_of
from model import Simulation, TieError, exact, run


@dataclass(frozen=True)
class Item:
    """One item: it works for `seconds` and then succeeds or fails, unless it is cancelled before."""

    seconds: float
    end: str = "value"
    """value, error, or interrupt"""
    if_cancelled: str = "stop"
    """stop (as cancelled), cleanup (fail out of the cancellation), caught (swallow it and succeed), or shield"""


@dataclass(frozen=True)
class Borrower:
    """Another user of a shared limiter."""

    arrives: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """A run."""

    items: tuple[Item, ...]
    limit: float
    policy: object = fanout.FailFast()
    item_timeout: float | None = None
    outside: float | None = None
    """When the caller's own scope is cancelled."""
    sized: bool = True
    delays: tuple[float, ...] | None = None
    """For an async source: how long it takes before each item, and before its end."""
    source_error: bool = False
    """Whether the source raises where it should end."""
    shared: bool = False
    borrowers: tuple[Borrower, ...] = ()

    def raises_failures(self):
        return isinstance(self.policy, fanout.FailFast | fanout.Collect)


class MapSimulation(Simulation):
    def __init__(self, plan):
        super().__init__(plan.limit, plan.policy, plan.outside)
        self.plan = plan
        self.line = deque()  # what waits for a token: items, and others as instances of Borrower
        self.taken = 0
        self.exhausted = False
        self.cut_off_by = None  # the source or an interrupt
        self.first = None  # to succeed
        self.peak = 0
        for other in plan.borrowers:
            self.at(other.arrives, "arrive", other)

    @property
    def kind(self):
        if self.cut_off_by:
            return self.cut_off_by
        raises = bool(self.failures) and self.plan.raises_failures()
        if self.from_outside and not raises:
            return "cancelled"
        if isinstance(self.policy, fanout.FirstSuccess) and self.first is None:
            return "failed" if self.failures else "empty"
        return "failed" if raises else "returned"

    def waiting(self):
        return sum(isinstance(one, int) for one in self.line)

    def over(self):
        return not self.running and (self.stopped or (self.exhausted and not self.waiting()))

    def fill(self):
        while self.take():
            super().fill()
        super().fill()

    def take(self):
        """Take the next item, or ask an async source for it."""
        if self.stopped or self.exhausted or len(self.running) + self.waiting() >= self.limit:
            return False
        if self.plan.delays is not None:
            if ("deliver",) not in self.events:
                self.at(self.now + self.plan.delays[self.taken], "deliver")
            return False
        return self.deliver()

    def deliver(self):
        if self.stopped:
            return False
        if self.taken < len(self.plan.items):
            self.line.append(self.taken)
            self.taken += 1
            return True
        self.exhausted = True
        if self.plan.source_error:
            if self.waiting() and len(self.running) + self.lent < self.limit:
                raise TieError  # a token for one that waited, and the end of everything
            self.cut_off_by = "source"
            self.cancel()
        return False

    def start_next(self):
        if not self.line:
            return False
        which = self.line.popleft()
        if isinstance(which, Borrower):
            self.lent += 1
            self.at(self.now + which.seconds, "put_back", which)
            return True
        item, timeout = self.plan.items[which], self.plan.item_timeout
        seconds, how = item.seconds, item.end
        if timeout is not None and seconds > timeout and item.if_cancelled != "shield":
            seconds, how = timeout, "timeout" if item.if_cancelled == "stop" else item.if_cancelled
        self.begin(which, seconds, how)
        self.peak = max(self.peak, len(self.running))
        return True

    def arrive(self, other):
        self.line.append(other)

    def put_back(self, other):
        self.lent -= 1

    def if_cancelled(self, index):
        return self.plan.items[index].if_cancelled

    def finish(self, index, how, *, by_cancellation=False):
        if how == "interrupt":
            self.cut_off_by = how
            self.cancel()
            return
        super().finish(index, how, by_cancellation=by_cancellation)
        if isinstance(self.policy, fanout.FirstSuccess) and index in self.values:
            if self.first is None:
                self.first = index
            self.cancel()


class CleanupError(Exception):
    pass


def sync_source(plan):
    yield from enumerate(plan.items)
    if plan.source_error:
        raise SourceError


async def async_source(plan):
    for entry, delay in zip(enumerate(plan.items), plan.delays, strict=False):
        await trio.sleep(delay)
        yield entry
    await trio.sleep(plan.delays[-1])
    if plan.source_error:
        raise SourceError


def source_of(plan):
    if plan.delays is not None:
        return async_source(plan)
    return Sized(sync_source(plan), len(plan.items)) if plan.sized else sync_source(plan)


class Execution:
    """A plan, carried out."""

    def __init__(self, plan):
        self.plan = plan
        self.limiter = trio.CapacityLimiter(plan.limit)
        self.began = {}
        self.now = 0
        self.peak = 0
        self.kind = "returned"
        self.value = None
        self.error = None
        self.ended = 0.0

    async def item(self, entry):
        index, item = entry
        assert index not in self.began
        self.began[index] = trio.current_time()
        self.now += 1
        self.peak = max(self.peak, self.now)
        if self.plan.shared:
            assert trio.lowlevel.current_task() in self.limiter.statistics().borrowers
        try:
            with trio.CancelScope(shield=item.if_cancelled == "shield"):
                await trio.sleep(item.seconds)
        except trio.Cancelled:
            if item.if_cancelled == "cleanup":
                raise CleanupError(index) from None
            if item.if_cancelled == "caught":
                return f"caught {index}"
            raise
        finally:
            self.now -= 1
        if item.end == "error":
            raise ValueError(index)
        if item.end == "interrupt":
            raise KeyboardInterrupt
        return f"value {index}"

    async def borrow(self, borrower):
        await trio.sleep_until(borrower.arrives)
        async with self.limiter:
            await trio.sleep(borrower.seconds)

    async def main(self):
        plan = self.plan
        async with trio.open_nursery() as nursery:
            for borrower in plan.borrowers:
                nursery.start_soon(self.borrow, borrower)
            await trio.testing.wait_all_tasks_blocked()
            tasks = trio.lowlevel.current_statistics().tasks_living
            with trio.CancelScope(deadline=math.inf if plan.outside is None else plan.outside) as scope:
                await self.call()
                self.ended = trio.current_time()
                if self.kind == "returned":
                    await trio.lowlevel.checkpoint()  # a cancellation that came when all was done is not lost
            if scope.cancelled_caught:
                self.ended = trio.current_time()
                self.kind = "cancelled"
            assert self.now == 0
            ours = [t for t in self.limiter.statistics().borrowers if t.name.startswith("map(")]
            assert ours == []
            assert trio.lowlevel.current_statistics().tasks_living <= tasks
            nursery.cancel_scope.cancel()
        assert self.limiter.borrowed_tokens == 0

    async def call(self):
        plan = self.plan
        options = {"policy": plan.policy, "item_timeout": plan.item_timeout}
        try:
            limit = self.limiter if plan.shared else plan.limit
            self.value = await fanout.map(self.item, source_of(plan), limit=limit, **options)
        except (ValueError, CleanupError, trio.TooSlowError, fanout.FanOutError) as exc:
            self.kind = "empty" if "FirstSuccess" in str(exc) else "failed"
            self.error = exc
        except SourceError as exc:
            self.kind = "source"
            self.error = exc
        except KeyboardInterrupt:
            self.kind = "interrupt"


def carry_out(plan):
    execution = Execution(plan)
    run(execution.main)
    return execution


FAILURES = {"error": ValueError, "cleanup": CleanupError, "timeout": trio.TooSlowError}


def check(plan, expected, execution):
    """Compare all that can be seen from outside with what the model says."""
    assert execution.kind == expected.kind
    assert execution.ended == expected.now
    assert execution.began == expected.began
    assert list(execution.began) == sorted(execution.began)
    assert execution.peak == expected.peak
    if expected.kind == "returned":
        check_value(plan, expected, execution.value)
    elif expected.kind == "failed":
        check_error(plan, expected, execution.error)
    elif expected.kind == "source" and expected.first is None:
        check_chain(expected, execution.error)


def check_value(plan, expected, value):
    values = {index: f"{how} {index}" for index, how in expected.values.items()}
    if isinstance(plan.policy, fanout.FirstSuccess):
        assert value == values[expected.first]
    elif isinstance(plan.policy, fanout.Settle):
        sized = plan.sized and plan.delays is None
        assert len(value) == (len(plan.items) if sized else expected.taken)
        for index, one in enumerate(value):
            if index in values:
                assert one == outcome.Value(values[index])
            elif index in expected.failures:
                assert type(one.error) is FAILURES[expected.failures[index]]
            else:
                assert type(one.error) is fanout.Unfinished
                assert (one.error.index, one.error.started) == (index, index in expected.began)
    else:
        assert value == [values[index] for index in range(len(plan.items))]


def check_error(plan, expected, error):
    kinds = {index: FAILURES[how] for index, how in sorted(expected.failures.items())}
    if isinstance(plan.policy, fanout.FailFast):
        first = min(expected.primary)
        assert type(error) is kinds[first]
        others = [index for index in kinds if index != first]
        notes = [f"item {first}", *(line_of(plan, index, kinds[index]) for index in others[:10])]
        assert notes_of(error) == notes + ([f"and {len(others) - 10} more"] if len(others) > 10 else [])
    else:
        assert type(error) is fanout.FanOutError
        assert error.indices == tuple(kinds)
        assert [type(exc) for exc in error.exceptions] == list(kinds.values())
        assert error.results == {index: f"{how} {index}" for index, how in expected.values.items()}
        assert error.total == len(expected.began)


def line_of(plan, index, kind):
    told = f"took longer than item_timeout={plan.item_timeout}" if kind is trio.TooSlowError else index
    return f"item {index} also failed: {kind.__name__}: {told}"


def check_chain(expected, error):
    """Failures so far hang on what the source raised."""
    found = []
    while error is not None:
        if isinstance(error, fanout.FanOutError):
            found += list(error.indices)
        error = error.__cause__ or error.__context__
    assert found == sorted(expected.failures)


# Random plans


@st.composite
def plans(draw):
    place = iter(range(1, 60))  # each time has a fraction of its own
    seconds = st.integers(0, 9)

    def time():
        return exact(draw(seconds), next(place))

    count = draw(st.integers(0, 9))
    limit = draw(st.integers(1, 4))
    policies = [
        fanout.FailFast(),
        fanout.Collect(draw(st.none() | st.integers(1, 3))),
        fanout.Settle(time() + draw(seconds) if draw(st.booleans()) else None),
        fanout.FirstSuccess(),
    ]
    policy = draw(st.sampled_from(policies))
    outside = time() if draw(st.integers(0, 3)) == 0 else None
    timed = outside is not None or getattr(policy, "move_on_after", None) is not None
    ends = st.sampled_from(["value"] * 6 + ["error"] * 4 + ["interrupt"])
    if_cancelled = st.sampled_from(["stop", "stop", "cleanup", "caught", "shield"])
    if timed and draw(st.booleans()):
        limit = max(count, 1)  # all begin at once: what survives the cancellation has no next item to take
    elif timed:
        if_cancelled = st.just("stop")
    items = tuple(Item(time(), draw(ends), draw(if_cancelled)) for _ in range(count))
    shared = draw(st.booleans())
    borrowers = ()
    if shared and draw(st.booleans()) and outside is None:
        borrowers = tuple(Borrower(time(), time()) for _ in range(draw(st.integers(0, 4))))
    # Whether a run looks beyond the length that a source promised, before an item is done, is not defined.
    source_error = draw(st.integers(0, 5)) == 0 and not (timed and any(item.if_cancelled != "stop" for item in items))
    return Plan(
        items=items,
        limit=limit,
        policy=policy,
        item_timeout=time() + 1 if draw(st.integers(0, 2)) == 0 else None,
        outside=outside,
        sized=not source_error and draw(st.booleans()),
        delays=tuple(time() for _ in range(count + 1)) if draw(st.booleans()) else None,
        source_error=source_error,
        shared=shared,
        borrowers=borrowers,
    )


@pytest.mark.slow
@settings(max_examples=500)
@given(plans())
@example(Plan((), 1))
@example(Plan((Item(1.5, "error"), Item(2.25, "value", "cleanup")), 2))
@example(Plan((Item(0.5, "value"), Item(2.25, "error", "shield"), Item(1.125)), 2, item_timeout=1.0625))
@example(Plan((Item(1.5, "interrupt"), Item(2.25, "value", "cleanup")), 2, fanout.Settle(), outside=1.25))
def test_a_random_run_does_what_the_model_says(plan):
    try:
        expected = MapSimulation(plan).run()
    except TieError:
        assume(False)
    check(plan, expected, carry_out(plan))


# Tokens that come and go: what must hold at every moment


class Watch:
    """Items on a limiter whose `total_tokens` changes, with others in the same line."""

    def __init__(self, limiter, durations):
        self.limiter = limiter
        self.durations = durations
        self.began = []
        self.now = 0
        self.changed = False  # since an item last finished

    async def item(self, index):
        self.began.append(index)
        self.now += 1
        assert self.limiter.borrowed_tokens <= self.limiter.total_tokens or self.changed
        await trio.sleep(self.durations[index])
        self.now -= 1
        self.changed = False
        return index

    async def check(self):
        """Once all is quiet: no token is free while an item waits, unless the last change is still to be noticed."""
        await trio.testing.wait_all_tasks_blocked()
        if not self.changed and len(self.began) < len(self.durations):
            assert self.limiter.available_tokens <= 0

    async def change(self, changes):
        for when, tokens in changes:
            await trio.sleep_until(when)
            self.limiter.total_tokens = tokens
            self.changed = True
        await trio.sleep_until(200)
        self.limiter.total_tokens = 2  # or a run that was paused would never end


@pytest.mark.slow
@settings(max_examples=150)
@given(
    durations=st.lists(st.integers(0, 9), max_size=12),
    tokens=st.integers(0, 4),
    changes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=5),
    others=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=3),
    make=st.sampled_from([list, iter, aiter_of]),
)
def test_a_run_follows_the_tokens(durations, tokens, changes, others, make):
    durations = [exact(seconds, place) for place, seconds in enumerate(durations, 1)]
    changes = sorted((exact(when, place), number) for place, (when, number) in enumerate(changes, 20))

    async def other(arrives, seconds):
        await trio.sleep_until(arrives)
        async with limiter:
            await trio.sleep(seconds)

    async def main():
        limiter.total_tokens = tokens
        watch = Watch(limiter, durations)

        async def look():
            times = sorted({exact(when, 40) for when in range(60)})
            for time in times:
                await trio.sleep_until(time)
                await watch.check()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.change, changes)
            for place, (arrives, seconds) in enumerate(others):
                nursery.start_soon(other, exact(arrives, 30 + place), exact(seconds, 34 + place))
            nursery.start_soon(look)
            results = await fanout.map(watch.item, make(range(len(durations))), limit=limiter)
            nursery.cancel_scope.cancel()
        assert results == list(range(len(durations)))
        assert watch.began == results
        assert limiter.borrowed_tokens == 0

    limiter = trio.CapacityLimiter(1)
    run(main)
