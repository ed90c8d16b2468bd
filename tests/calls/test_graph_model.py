"""Random graphs under random limits and policies, against a model."""

import math
from dataclasses import dataclass
from graphlib import CycleError
from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome import Value

import trio_fanout as fanout
from helpers import notes_of
from model import CHANGES, Execution, Simulation, exact, restless_limiter, run


@dataclass(frozen=True)
class Plan:
    """A graph and how it is run."""

    seconds: tuple[float, ...]
    needs: tuple[tuple[int, ...], ...]
    fails: frozenset[int]
    fails_if_cancelled: frozenset[int]
    limit: float
    shared: bool
    policy: object
    outside: float


class GraphSimulation(Simulation):
    """Failures are told as the words "failed", "cleanup", or the need that is to blame."""

    def __init__(self, plan):
        super().__init__(plan.limit, plan.policy, plan.outside)
        self.plan = plan

    def start_next(self):
        for index, needs in enumerate(self.plan.needs):
            if index not in self.began and self.values.keys() >= set(needs):
                self.begin(index, self.plan.seconds[index], "failed" if index in self.plan.fails else "value")
                return True
        return False

    def if_cancelled(self, index):
        return "cleanup" if index in self.plan.fails_if_cancelled else "stop"

    def run(self):
        super().run()
        if not isinstance(self.policy, fanout.FailFast):
            count = len(self.plan.needs)
            for _ in range(count):
                for index in set(range(count)) - self.began.keys():
                    blamed = [need for need in self.plan.needs[index] if need in self.failures]
                    if blamed:
                        self.failures[index] = ("need", blamed[0])
        return self


@st.composite
def plans(draw):
    count = draw(st.integers(0, 9))
    order = draw(st.permutations(range(count)))
    needs = [()] * count
    for place, index in enumerate(order[1:], 1):
        needs[index] = tuple(draw(st.lists(st.sampled_from(order[:place]), max_size=3)))
    some = st.frozensets(st.integers(0, max(count - 1, 0)), max_size=3)
    return Plan(
        seconds=tuple(exact(draw(st.integers(1, 5)), 1 + index) for index in range(count)),
        needs=tuple(needs),
        fails=draw(some),
        fails_if_cancelled=draw(some),
        limit=draw(st.sampled_from([1, 2, 3, 4, 40, math.inf])),
        shared=draw(st.booleans()),
        policy=draw(
            st.just(fanout.FailFast())
            | st.builds(fanout.Collect, st.none() | st.integers(1, 3))
            | st.builds(fanout.Settle, st.none() | st.integers(1, 12).map(lambda whole: exact(whole, 20)))
        ),
        outside=draw(st.just(math.inf) | st.integers(0, 12).map(lambda whole: exact(whole, 21))),
    )


def name(index):
    return f"step {index}"


class GraphExecution(Execution):
    def step(self, index):
        plan = self.plan

        async def fn(*args):
            self.began[index] = trio.current_time()
            assert args == plan.needs[index]
            try:
                await trio.sleep(plan.seconds[index])
            except trio.Cancelled:
                if index not in plan.fails_if_cancelled:
                    raise
                self.fail(index, KeyError)
            if index in plan.fails:
                self.fail(index, ValueError)
            return index

        return fanout.Step(fn, needs=map(name, plan.needs[index]))

    async def call(self):
        steps = {name(index): self.step(index) for index in range(len(self.plan.seconds))}
        return await fanout.run_graph(steps, limit=self.limit, policy=self.plan.policy)


@pytest.mark.slow
@settings(max_examples=300)
@given(plan=plans())
def test_a_graph_does_as_the_simulation(plan):
    real, expected = GraphExecution(plan), GraphSimulation(plan).run()
    run(real.main)
    assert list(real.began.items()) == list(expected.began.items())
    assert real.ended == expected.now
    if expected.failures and not isinstance(plan.policy, fanout.Settle):
        assert not real.cancelled_caught
        check_raised(plan, expected, real.errors, real.raised)
        return
    assert real.raised is None
    assert real.cancelled_caught == expected.from_outside
    if expected.from_outside:
        return
    if isinstance(plan.policy, fanout.Settle):
        check_outcomes(plan, expected, real.errors, real.value)
    else:
        assert list(real.value.items()) == [(name(index), index) for index in range(len(plan.seconds))]


def check_raised(plan, expected, errors, raised):
    if isinstance(plan.policy, fanout.FailFast):
        index = min(expected.primary)
        assert raised is errors[index]
        assert notes_of(raised)[0] == f"step {name(index)!r}"
        assert len(notes_of(raised)) == len(expected.failures)
    else:
        assert isinstance(raised, fanout.FanOutError)
        assert raised.indices == tuple(map(name, sorted(expected.failures)))
        assert list(raised.results.items()) == [(name(index), index) for index in sorted(expected.values)]
        assert raised.total == len(plan.seconds)
        for index, how in expected.failures.items():
            check_failure(index, how, raised.failures[name(index)], errors, lambda need: raised.failures[name(need)])


def check_failure(index, how, failure, errors, of):
    if isinstance(how, str):
        assert failure is errors[index]
    else:
        assert isinstance(failure, fanout.DependencyFailed)
        assert failure.step == name(index)
        assert failure.dependency == name(how[1])
        assert failure.__cause__ is of(how[1])


def check_outcomes(plan, expected, errors, got):
    assert list(got) == [name(index) for index in range(len(plan.seconds))]
    for index in range(len(plan.seconds)):
        outcome = got[name(index)]
        if index in expected.values:
            assert outcome == Value(index)
        elif index in expected.failures:
            check_failure(index, expected.failures[index], outcome.error, errors, lambda need: got[name(need)].error)
        else:
            assert isinstance(outcome.error, fanout.Unfinished)
            assert (outcome.error.index, outcome.error.started) == (name(index), index in expected.began)


@pytest.mark.slow
@given(plan=plans(), data=st.data())
def test_a_cycle_anywhere_is_found_before_anything_starts(plan, data):
    count = len(plan.seconds)
    ring = data.draw(st.lists(st.integers(0, count), min_size=1, max_size=4, unique=True))
    needs = {index: list(plan.needs[index]) for index in range(count)} | {count: []}
    for one, next_one in zip(ring, [*ring[1:], ring[0]], strict=True):
        needs[one].append(next_one)

    async def fn(*args):
        pytest.fail("a step began")

    async def main():
        with pytest.raises(CycleError) as info:
            await fanout.run_graph({name(index): fanout.Step(fn, map(name, those)) for index, those in needs.items()})
        cycle = info.value.args[1]
        assert cycle[0] == cycle[-1]
        for one, next_one in pairwise(cycle):
            assert one in map(name, needs[int(next_one.removeprefix("step "))])

    trio.run(main)


@pytest.mark.slow
@given(plan=plans(), changes=CHANGES)
def test_the_first_of_those_ready_starts_while_the_tokens_of_a_limiter_come_and_go(plan, changes):
    began = []
    done = set()

    def step(index):
        async def fn(*args):
            ready = (one for one in range(len(plan.needs)) if one not in began and done.issuperset(plan.needs[one]))
            assert next(ready) == index
            began.append(index)
            await trio.sleep(plan.seconds[index])
            done.add(index)

        return fanout.Step(fn, needs=map(name, plan.needs[index]))

    async def main():
        async with restless_limiter(changes) as limiter:
            await fanout.run_graph({name(index): step(index) for index in range(len(plan.needs))}, limit=limiter)

    run(main)
    assert len(done) == len(plan.needs)
