"""Random trees of jobs under random limits and policies, against a simulation that knows jobs and a clock only."""

from __future__ import annotations

import contextvars
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome import Error, Value

import trio_fanout as fanout
from helpers import limit_of, notes_of, nothing_left

found_by = contextvars.ContextVar("found_by", default=None)


@dataclass(frozen=True)
class Job:
    """It queues jobs, waits, queues more, and ends; no two jobs ever end together, see `plans`."""

    seconds: float
    first: tuple[int, ...]
    then: tuple[int, ...]
    fails: bool
    if_cancelled: str
    """stop, fail, or queue (another job, and then stop)."""


@dataclass(frozen=True)
class Plan:
    jobs: tuple[Job, ...]
    first: tuple[int, ...]
    """The jobs that the block queues at its start."""
    pause: float
    then: tuple[int, ...]
    """Those that it queues after a pause."""
    limit: float
    shared: bool
    policy: Any
    outside: float
    deadline: float
    """Of the group's own scope."""


@dataclass
class Result:
    submitted: list[int] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
    outcomes: dict[int, str] = field(default_factory=dict)
    cause: int | None = None
    cancelled_by: str | None = None
    ended: float = 0.0


def simulate(plan):
    result = Result()
    queue = deque()
    running = {}
    now = 0.0
    most = {fanout.FailFast: 1, fanout.Collect: getattr(plan.policy, "max_failures", None)}.get(type(plan.policy))
    events = {"pause": plan.pause, "outside": plan.outside, "deadline": plan.deadline}

    def submit(numbers):
        queue.extend(numbers)
        result.submitted.extend(numbers)

    submit(plan.first)
    while True:
        while queue and len(running) < plan.limit:
            number = queue.popleft()
            result.began[number] = now
            submit(plan.jobs[number].first)
            running[number] = now + plan.jobs[number].seconds
        if not running and "pause" not in events:
            break
        event = min(events, key=events.__getitem__)
        number = min(running, key=running.__getitem__, default=-1)
        if number >= 0 and running[number] < events[event]:
            now = running.pop(number)
            submit(plan.jobs[number].then)
            result.outcomes[number] = "failed" if plan.jobs[number].fails else "value"
            if plan.jobs[number].fails:
                result.cause = number if result.cause is None else result.cause
                if most is not None and list(result.outcomes.values()).count("failed") >= most:
                    result.cancelled_by = "failure"
        else:
            now = events.pop(event)
            if event == "pause":
                submit(plan.then)
            else:
                result.cancelled_by = event
        if result.cancelled_by:
            result.outcomes |= {one: "cleanup" for one in running if plan.jobs[one].if_cancelled == "fail"}
            break
    result.ended = now
    return result


@st.composite
def plans(draw):
    count = draw(st.integers(0, 10))
    children = {number: ([], []) for number in range(-1, count)}
    for number in range(count):
        children[draw(st.integers(-1, number - 1))][draw(st.integers(0, 1))].append(number)

    def exact(whole, place):
        return whole + math.ldexp(1, -place)

    jobs = tuple(
        Job(
            seconds=exact(draw(st.integers(0, 4)), 1 + number),
            first=tuple(children[number][0]),
            then=tuple(children[number][1]),
            fails=draw(st.sampled_from([False, False, True])),
            if_cancelled=draw(st.sampled_from(["stop", "fail", "queue"])),
        )
        for number in range(count)
    )
    return Plan(
        jobs=jobs,
        first=tuple(children[-1][0]),
        pause=exact(draw(st.integers(0, 6)), 20),
        then=tuple(children[-1][1]),
        limit=draw(st.sampled_from([1, 2, 3, 40, math.inf])),
        shared=draw(st.booleans()),
        policy=draw(
            st.just(fanout.FailFast())
            | st.builds(fanout.Collect, st.none() | st.integers(1, 3))
            | st.just(fanout.Settle())
        ),
        outside=draw(st.just(math.inf) | st.integers(0, 10).map(lambda whole: exact(whole, 21))),
        deadline=draw(st.just(math.inf) | st.integers(0, 10).map(lambda whole: exact(whole, 22))),
    )


@pytest.mark.slow
@settings(max_examples=300)
@given(plan=plans())
def test_a_group_does_as_the_simulation(plan):
    trio.run(check, plan, clock=trio.testing.MockClock(autojump_threshold=0))


async def check(plan):
    expected = simulate(plan)
    began = {}
    parents = dict.fromkeys(plan.first + plan.then)
    handles = {}
    late = []
    errors = {}

    def submit(group, numbers):
        for number in numbers:
            handles[number] = group.start_soon(run, group, number)
            assert handles[number].index == len(handles) - 1

    async def run(group, number):
        job = plan.jobs[number]
        began[number] = trio.current_time()
        assert found_by.get() == parents[number]
        found_by.set(number)
        parents.update(dict.fromkeys(job.first + job.then, number))
        submit(group, job.first)
        try:
            await trio.sleep(job.seconds)
        except trio.Cancelled:
            if job.if_cancelled == "queue":
                late.append(group.start_soon(trio.sleep, 1))
            if job.if_cancelled != "fail":
                raise
            errors[number] = KeyError(number)
            raise errors[number]  # noqa: B904
        submit(group, job.then)
        if job.fails:
            errors[number] = ValueError(number)
            raise errors[number]
        return number

    limit = limit_of(plan.limit, plan.shared)
    raised = None
    shared = [limit] if isinstance(limit, trio.CapacityLimiter) else []
    with nothing_left(*shared), trio.CancelScope(deadline=plan.outside) as scope:
        try:
            async with fanout.open_group(limit=limit, policy=plan.policy) as group:
                group.cancel_scope.deadline = plan.deadline
                submit(group, plan.first)
                await trio.sleep(plan.pause)
                submit(group, plan.then)
        except Exception as error:  # noqa: BLE001
            raised = error

    assert list(began.items()) == list(expected.began.items())
    assert list(handles) == expected.submitted
    assert trio.current_time() == expected.ended
    for number, handle in handles.items():
        how = expected.outcomes.get(number)
        if how is None:
            assert handle.outcome is None
        elif how == "value":
            assert handle.outcome == Value(number)
        else:
            assert isinstance(handle.outcome, Error)
            assert handle.outcome.error is errors[number]
    assert all(handle.outcome is None for handle in late)

    indices = {
        number: handles[number].index for number, how in expected.outcomes.items() if how in ("failed", "cleanup")
    }
    if isinstance(plan.policy, fanout.Settle) or not indices:
        assert raised is None
        assert scope.cancelled_caught == (expected.cancelled_by == "outside")
        return
    assert not scope.cancelled_caught
    if isinstance(plan.policy, fanout.FailFast):
        number = min(indices, key=indices.__getitem__) if expected.cause is None else expected.cause
        assert raised is errors[number]
        assert notes_of(raised)[0] == f"job {indices[number]}"
        assert len(notes_of(raised)) == len(indices)
    else:
        assert raised.indices == tuple(sorted(indices.values()))
        assert all(raised.failures[index] is errors[number] for number, index in indices.items())
        assert raised.total == len(expected.began)
        assert raised.results == {}


@pytest.mark.slow
@given(plan=plans(), changes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=5))
def test_jobs_start_in_order_with_their_own_variables_while_tokens_come_and_go(plan, changes):
    submitted = []
    began = []
    parents = dict.fromkeys(plan.first + plan.then)

    async def main():
        limiter = trio.CapacityLimiter(1)

        def submit(group, numbers):
            for number in numbers:
                submitted.append(number)
                group.start_soon(job, group, number)

        async def job(group, number):
            began.append((number, found_by.get()))
            found_by.set(number)
            parents.update(dict.fromkeys(plan.jobs[number].first + plan.jobs[number].then, number))
            submit(group, plan.jobs[number].first)
            await trio.sleep(plan.jobs[number].seconds)
            submit(group, plan.jobs[number].then)

        async def borrow():
            await trio.sleep(2)
            async with limiter:
                await trio.sleep(2)

        async def change():
            for delay, tokens in changes:
                await trio.sleep(delay)
                limiter.total_tokens = tokens
            limiter.total_tokens = 2

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            nursery.start_soon(borrow)
            async with fanout.open_group(limit=limiter) as group:
                submit(group, plan.first)
                await trio.sleep(plan.pause)
                submit(group, plan.then)
        assert limiter.borrowed_tokens == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert began == [(number, parents[number]) for number in submitted]
    assert len(began) == len(plan.jobs)
