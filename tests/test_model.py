"""Random runs against a model of what they must do, and against what must hold for all of them."""

from __future__ import annotations

import math
from typing import Any

import outcome
import pytest
import trio
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

import trio_fanout as fanout
from helpers import notes_of
from model import Borrower, Item, Plan, Result, TieError, exact, simulate


class SourceError(Exception):
    pass


class CleanupError(Exception):
    pass


class Sized:
    """An iterable, sync or async, of the items of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __iter__(self) -> Any:
        yield from enumerate(self.plan.items)
        if self.plan.source_error:
            raise SourceError


class SizedSync(Sized):
    def __len__(self) -> int:
        return len(self.plan.items)


async def async_source(plan: Plan) -> Any:
    assert plan.delays is not None
    for entry, delay in zip(enumerate(plan.items), plan.delays, strict=False):
        await trio.sleep(delay)
        yield entry
    await trio.sleep(plan.delays[-1])
    if plan.source_error:
        raise SourceError


def source_of(plan: Plan) -> Any:
    if plan.delays is not None:
        return async_source(plan)
    return SizedSync(plan) if plan.sized else Sized(plan)


def policy_of(plan: Plan) -> Any:
    match plan.policy:
        case "fail_fast":
            return fanout.FailFast()
        case "collect":
            return fanout.Collect(max_failures=None if plan.parameter is None else int(plan.parameter))
        case "settle":
            return fanout.Settle(move_on_after=plan.parameter)
        case "first_success":
            return fanout.FirstSuccess()


class Execution:
    """A plan, carried out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.limiter = trio.CapacityLimiter(plan.limit)
        self.began: dict[int, float] = {}
        self.now = 0
        self.peak = 0
        self.kind = "returned"
        self.value: Any = None
        self.error: BaseException | None = None
        self.ended = 0.0

    async def item(self, entry: tuple[int, Item]) -> str:
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
            if item.if_cancelled == "error":
                raise CleanupError(index) from None
            if item.if_cancelled == "value":
                return f"caught {index}"
            raise
        finally:
            self.now -= 1
        if item.end == "error":
            raise ValueError(index)
        if item.end == "interrupt":
            raise KeyboardInterrupt
        return f"value {index}"

    async def borrow(self, borrower: Borrower) -> None:
        await trio.sleep_until(borrower.arrives)
        async with self.limiter:
            await trio.sleep(borrower.seconds)

    async def main(self) -> None:
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
            ours = [t for t in self.limiter.statistics().borrowers if t.name.startswith("map(")]  # type: ignore[attr-defined]
            assert ours == []
            assert trio.lowlevel.current_statistics().tasks_living <= tasks
            nursery.cancel_scope.cancel()
        assert self.limiter.borrowed_tokens == 0

    async def call(self) -> None:
        plan = self.plan
        limit = self.limiter if plan.shared else int(plan.limit) if plan.limit < math.inf else plan.limit
        try:
            self.value = await fanout.map(
                self.item, source_of(plan), limit=limit, policy=policy_of(plan), item_timeout=plan.item_timeout
            )
        except (ValueError, CleanupError, trio.TooSlowError, fanout.FanOutError) as exc:
            self.kind = "empty" if "FirstSuccess" in str(exc) else "failed"
            self.error = exc
        except SourceError as exc:
            self.kind = "source"
            self.error = exc
        except KeyboardInterrupt:
            self.kind = "interrupt"


def carry_out(plan: Plan) -> Execution:
    execution = Execution(plan)
    trio.run(execution.main, clock=MockClock(autojump_threshold=0))
    return execution


FAILURES = {"error": ValueError, "cleanup": CleanupError, "timeout": trio.TooSlowError}


def check(plan: Plan, expected: Result, execution: Execution) -> None:
    """Compare all that can be seen from outside with what the model says."""
    assert execution.kind == expected.kind
    assert execution.ended == expected.ended
    assert execution.began == expected.began
    assert list(execution.began) == sorted(execution.began)
    assert execution.peak == expected.peak
    if expected.kind == "returned":
        check_value(plan, expected, execution.value)
    elif expected.kind == "failed":
        check_error(plan, expected, execution.error)
    elif expected.kind == "source" and expected.first is None:
        check_chain(expected, execution.error)


def check_value(plan: Plan, expected: Result, value: Any) -> None:
    values = {index: f"{how} {index}" for index, how in expected.values.items()}
    if plan.policy == "first_success":
        assert value == values[expected.first]  # type: ignore[index]
    elif plan.policy == "settle":
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


def check_error(plan: Plan, expected: Result, error: Any) -> None:
    kinds = {index: FAILURES[how] for index, how in sorted(expected.failures.items())}
    if plan.policy == "fail_fast":
        first = expected.raised
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


def line_of(plan: Plan, index: int, kind: type[Exception]) -> str:
    text = f"took longer than item_timeout={plan.item_timeout}" if kind is trio.TooSlowError else index
    return f"item {index} also failed: {kind.__name__}: {text}"


def check_chain(expected: Result, error: BaseException | None) -> None:
    """Failures so far hang on what the source raised."""
    found = []
    while error is not None:
        if isinstance(error, fanout.FanOutError):
            found += list(error.indices)
        error = error.__cause__ or error.__context__
    assert found == sorted(expected.failures)


# Random plans


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    place = iter(range(1, 60))  # each time gets a fraction of its own: sums of them are exact and never meet
    seconds = st.integers(0, 9)

    def time() -> float:
        return exact(draw(seconds), next(place))

    count = draw(st.integers(0, 9))
    limit: float = draw(st.integers(1, 4))
    policy = draw(st.sampled_from(["fail_fast", "collect", "settle", "first_success"]))
    outside = time() if draw(st.integers(0, 3)) == 0 else None
    parameter: float | None = None
    if draw(st.booleans()):
        if policy == "collect":
            parameter = draw(st.integers(1, 3))
        elif policy == "settle":
            parameter = time() + draw(seconds)
    timed = outside is not None or (policy == "settle" and parameter is not None)
    ends = st.sampled_from(["value"] * 6 + ["error"] * 4 + ["interrupt"])
    if_cancelled = st.sampled_from(["stop", "stop", "error", "value", "shield"])
    if timed and draw(st.booleans()):
        limit = max(count, 1)  # all begin at once: whoever survives the cancellation has no next item to take
    elif timed:
        if_cancelled = st.just("stop")
    items = tuple(Item(time(), draw(ends), draw(if_cancelled)) for _ in range(count))
    shared = draw(st.booleans())
    borrowers = ()
    if shared and draw(st.booleans()) and outside is None:
        borrowers = tuple(Borrower(time(), time()) for _ in range(draw(st.integers(0, 4))))
    # Whether anybody looks beyond the length that a source promised, before an item is done, is nobody's business.
    source_error = draw(st.integers(0, 5)) == 0 and not (timed and any(item.if_cancelled != "stop" for item in items))
    return Plan(
        items=items,
        limit=limit,
        policy=policy,
        parameter=parameter,
        item_timeout=time() + 1 if draw(st.integers(0, 2)) == 0 else None,
        outside=outside,
        sized=not source_error and draw(st.booleans()),
        delays=tuple(time() for _ in range(count + 1)) if draw(st.booleans()) else None,
        source_error=source_error,
        shared=shared,
        borrowers=borrowers,
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=500)
@given(plans())
@example(Plan((), 1))
@example(Plan((Item(1.5, "error"), Item(2.25, "value", "error")), 2))
@example(Plan((Item(1.5, "interrupt"), Item(2.25, "value", "error")), 2, "settle", outside=1.25))
def test_a_random_run_does_what_the_model_says(plan: Plan) -> None:
    try:
        expected = simulate(plan)
    except TieError:
        assume(False)
    check(plan, expected, carry_out(plan))


# Tokens that come and go: what must hold at every moment, whoever comes first


class Watch:
    """Items on a limiter whose `total_tokens` changes, with others in the same line."""

    def __init__(self, limiter: trio.CapacityLimiter, durations: list[float]) -> None:
        self.limiter = limiter
        self.durations = durations
        self.began: list[int] = []
        self.now = 0
        self.changed = False  # since an item last finished

    async def item(self, index: int) -> int:
        self.began.append(index)
        self.now += 1
        assert self.limiter.borrowed_tokens <= self.limiter.total_tokens or self.changed
        await trio.sleep(self.durations[index])
        self.now -= 1
        self.changed = False
        return index

    async def check(self) -> None:
        """Once all is quiet: no token is free while an item waits, unless the last change is still to be noticed."""
        await trio.testing.wait_all_tasks_blocked()
        if not self.changed and len(self.began) < len(self.durations):
            assert self.limiter.available_tokens <= 0

    async def change(self, changes: list[tuple[float, int]]) -> None:
        for when, tokens in changes:
            await trio.sleep_until(when)
            self.limiter.total_tokens = tokens
            self.changed = True
        await trio.sleep_until(200)
        self.limiter.total_tokens = 2  # or a run that was paused would never end


@settings(deadline=None, max_examples=150)
@given(
    durations=st.lists(st.integers(0, 9), max_size=12),
    tokens=st.integers(0, 4),
    changes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=5),
    others=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=3),
    kind=st.sampled_from(["list", "iterator", "async"]),
)
def test_a_run_follows_the_tokens(durations: Any, tokens: int, changes: Any, others: Any, kind: str) -> None:
    durations = [exact(seconds, place) for place, seconds in enumerate(durations, 1)]
    changes = sorted((exact(when, place), number) for place, (when, number) in enumerate(changes, 20))

    async def source() -> Any:
        for index in range(len(durations)):
            yield index

    async def other(arrives: float, seconds: float) -> None:
        await trio.sleep_until(arrives)
        async with limiter:
            await trio.sleep(seconds)

    async def main() -> None:
        nonlocal limiter
        limiter = trio.CapacityLimiter(1)
        limiter.total_tokens = tokens
        watch = Watch(limiter, durations)

        async def look() -> None:
            times = sorted({exact(when, 40) for when in range(60)})
            for time in times:
                await trio.sleep_until(time)
                await watch.check()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.change, changes)
            for place, (arrives, seconds) in enumerate(others):
                nursery.start_soon(other, exact(arrives, 30 + place), exact(seconds, 34 + place))
            nursery.start_soon(look)
            items = {"list": list, "iterator": iter, "async": lambda _: source()}[kind](range(len(durations)))
            results = await fanout.map(watch.item, items, limit=limiter)
            nursery.cancel_scope.cancel()
        assert results == list(range(len(durations)))
        assert watch.began == results
        assert limiter.borrowed_tokens == 0

    limiter: trio.CapacityLimiter
    trio.run(main, clock=MockClock(autojump_threshold=0))
