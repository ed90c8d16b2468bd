"""Random trees of jobs under random limits and policies, against a model."""

import contextvars
import math
from collections import deque
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome import Error, Value

import trio_fanout as fanout
from helpers import notes_of
from model import CHANGES, Execution, Simulation, exact, restless_limiter, run

found_by = contextvars.ContextVar("found_by", default=None)


@dataclass(frozen=True)
class Job:
    """It queues jobs, waits, queues more, and ends."""

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
    policy: object
    outside: float
    deadline: float
    """Of the group's own scope."""


class GroupSimulation(Simulation):
    def __init__(self, plan):
        super().__init__(plan.limit, plan.policy, plan.outside)
        self.plan = plan
        self.queue = deque()
        self.submitted = []
        self.submit(plan.first)
        self.at(plan.pause, "end_pause")
        self.at(plan.deadline, "cancel")

    def submit(self, numbers):
        self.queue.extend(numbers)
        self.submitted.extend(numbers)

    def end_pause(self):
        self.submit(self.plan.then)

    def over(self):
        return not self.running and (self.stopped or ("end_pause",) not in self.events)

    def start_next(self):
        if not self.queue:
            return False
        number = self.queue.popleft()
        job = self.plan.jobs[number]
        self.begin(number, job.seconds, "failed" if job.fails else "value")
        self.submit(job.first)
        return True

    def if_cancelled(self, number):
        return "cleanup" if self.plan.jobs[number].if_cancelled == "fail" else "stop"

    def end(self, number):
        self.submit(self.plan.jobs[number].then)
        super().end(number)


@st.composite
def plans(draw):
    count = draw(st.integers(0, 10))
    children = {number: ([], []) for number in range(-1, count)}
    for number in range(count):
        children[draw(st.integers(-1, number - 1))][draw(st.integers(0, 1))].append(number)

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


class GroupExecution(Execution):
    def __init__(self, plan):
        super().__init__(plan)
        self.parents = dict.fromkeys(plan.first + plan.then)
        self.handles = {}
        self.late = []  # handles of jobs that were queued after the cancellation

    async def call(self):
        async with fanout.open_group(limit=self.limit, policy=self.plan.policy) as self.group:
            self.group.cancel_scope.deadline = self.plan.deadline
            self.submit(self.plan.first)
            await trio.sleep(self.plan.pause)
            self.submit(self.plan.then)

    def submit(self, numbers):
        for number in numbers:
            self.handles[number] = self.group.start_soon(self.job, number)
            assert self.handles[number].index == len(self.handles) - 1

    async def job(self, number):
        job = self.plan.jobs[number]
        assert found_by.get() == self.parents[number]
        found_by.set(number)
        self.parents.update(dict.fromkeys(job.first + job.then, number))
        self.began[number] = trio.current_time()
        self.submit(job.first)
        try:
            await trio.sleep(job.seconds)
        except trio.Cancelled:
            if job.if_cancelled == "queue":
                self.late.append(self.group.start_soon(trio.sleep, 1))
            if job.if_cancelled != "fail":
                raise
            self.fail(number, KeyError)
        self.submit(job.then)
        if job.fails:
            self.fail(number, ValueError)
        return number


@pytest.mark.slow
@settings(max_examples=300)
@given(plan=plans())
def test_a_group_does_as_the_simulation(plan):
    real, expected = GroupExecution(plan), GroupSimulation(plan).run()
    run(real.main)
    assert list(real.began.items()) == list(expected.began.items())
    assert list(real.handles) == expected.submitted
    assert real.ended == expected.now
    for number, handle in real.handles.items():
        if number in expected.values:
            assert handle.outcome == Value(number)
        elif number in expected.failures:
            assert isinstance(handle.outcome, Error)
            assert handle.outcome.error is real.errors[number]
        else:
            assert handle.outcome is None
    assert all(handle.outcome is None for handle in real.late)
    if expected.failures and not isinstance(plan.policy, fanout.Settle):
        assert not real.cancelled_caught
        check_raised(plan, expected, real)
    else:
        assert real.raised is None
        assert real.cancelled_caught == expected.from_outside


def check_raised(plan, expected, real):
    raised = real.raised
    indices = {number: real.handles[number].index for number in expected.failures}
    if isinstance(plan.policy, fanout.FailFast):
        number = min(expected.primary, key=indices.__getitem__)
        assert raised is real.errors[number]
        assert notes_of(raised)[0] == f"job {indices[number]}"
        assert len(notes_of(raised)) == len(indices)
    else:
        assert raised.indices == tuple(sorted(indices.values()))
        assert all(raised.failures[index] is real.errors[number] for number, index in indices.items())
        assert raised.total == len(expected.began)
        assert raised.results == {}


@pytest.mark.slow
@given(plan=plans(), changes=CHANGES)
def test_jobs_start_in_order_with_their_own_variables_while_tokens_come_and_go(plan, changes):
    submitted = []
    began = []
    parents = dict.fromkeys(plan.first + plan.then)

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

    async def main():
        async with restless_limiter(changes) as limiter, fanout.open_group(limit=limiter) as group:
            submit(group, plan.first)
            await trio.sleep(plan.pause)
            submit(group, plan.then)

    run(main)
    assert began == [(number, parents[number]) for number in submitted]
    assert len(began) == len(plan.jobs)
