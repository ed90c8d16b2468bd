"""`stream` against a model: what is started and handed over, in which order and when, and how many are ever out."""

import math
from dataclasses import dataclass

import outcome
import trio
from hypothesis import given
from hypothesis import strategies as st

import trio_fanout as fanout
from helpers import ItemError, Sized, aiter_of, limit_of
from model import Simulation, exact, run


@dataclass
class Plan:
    """What is given to a stream, and what its reader does."""

    seconds: list[float]
    fails: set[int]
    pauses: list[float]  # of the reader, after each result
    limit: float
    buffer: float | None
    ordered: bool
    policy: object
    stop_at: float
    leave_after: float  # this many results
    source: str = "sized"
    shared: bool = False

    @property
    def window(self):
        return self.limit + (self.limit if self.buffer is None else self.buffer)


class StreamSimulation(Simulation):
    def __init__(self, plan):
        super().__init__(plan.limit, plan.policy)
        self.plan = plan
        self.settles = isinstance(plan.policy, fanout.Settle)
        self.taken = 0
        self.out = 0  # taken, and neither handed over nor failed
        self.due = 0  # the index of the next result, if ordered
        self.finished = {}  # not yet ready: index -> its index and value, in a list that is empty if it failed
        self.ready = []
        self.reading = True
        self.handed_over = []
        self.at(plan.stop_at, "stop")

    def start_next(self):
        if self.out == self.plan.window or self.taken == len(self.plan.seconds):
            return False
        self.begin(self.taken, self.plan.seconds[self.taken], "failed" if self.taken in self.plan.fails else "value")
        self.taken += 1
        self.out += 1
        return True

    def fill(self):
        super().fill()
        while self.reading and self.ready and not self.has_left():
            pause = self.plan.pauses[len(self.handed_over)]
            self.handed_over.append((self.now, *self.ready.pop(0)))
            self.out -= 1
            if pause:
                self.reading = False
                self.at(self.now + pause, "read_on")
            super().fill()

    def read_on(self):
        self.reading = True

    def has_left(self):
        return len(self.handed_over) >= self.plan.leave_after

    def over(self):
        ended = not self.running and (self.stopped or self.taken == len(self.plan.seconds))
        return self.reading and (self.has_left() or (ended and not self.ready))

    def stop(self):
        self.stopped = True

    def if_cancelled(self, index):
        return "stop"

    def finish(self, index, how, *, by_cancellation=False):
        super().finish(index, how, by_cancellation=by_cancellation)
        if by_cancellation:
            return
        fail_fast = isinstance(self.policy, fanout.FailFast)
        if how == "value" or self.settles:
            self.finished[index] = [(index, how == "failed" if self.settles else None)]
        else:
            self.out -= 1
            if not fail_fast:
                self.finished[index] = []
        while self.due in self.finished and self.plan.ordered:
            self.ready += self.finished.pop(self.due)
            self.due += 1
        if not self.plan.ordered or (self.cancelled and not fail_fast):
            for one in sorted(self.finished):
                self.ready += self.finished.pop(one)

    @property
    def error(self):
        """The indices of the failures that are raised."""
        return tuple(sorted(self.failures)) if self.failures and not self.settles else None


class Execution:
    """A plan, carried out."""

    def __init__(self, plan):
        self.plan = plan
        self.began = {}
        self.handed_over = []
        self.error = None
        self.ended = 0.0
        self.out = self.most_out = 0

    async def item(self, x):
        self.began[x] = trio.current_time()
        await trio.sleep(self.plan.seconds[x])
        if x in self.plan.fails:
            if not isinstance(self.plan.policy, fanout.Settle):
                self.out -= 1
            raise ItemError(x)

    def take(self):
        for x in range(len(self.plan.seconds)):
            self.out += 1
            self.most_out = max(self.most_out, self.out)
            yield x

    def source(self):
        match self.plan.source:
            case "sized":
                return Sized(self.take(), len(self.plan.seconds))
            case "iterator":
                return self.take()
            case "async":
                return aiter_of(self.take())

    async def stop(self, results):
        await trio.sleep_until(self.plan.stop_at)
        results.stop()

    async def read(self, results):
        if self.plan.stop_at < math.inf:
            self.nursery.start_soon(self.stop, results)
        left = self.plan.leave_after
        while left:
            left -= 1
            try:
                index, item, value = await results.receive()
            except trio.EndOfChannel:
                break
            self.out -= 1
            assert item == index
            if isinstance(self.plan.policy, fanout.Settle):
                value = isinstance(value, outcome.Error)
            self.handed_over.append((trio.current_time(), index, value))
            await trio.sleep(self.plan.pauses[len(self.handed_over) - 1])

    async def main(self):
        plan = self.plan
        tasks = trio.lowlevel.current_statistics().tasks_living
        limit = limit_of(plan.limit, plan.shared)
        options = {"limit": limit, "policy": plan.policy, "ordered": plan.ordered, "buffer": plan.buffer}
        async with trio.open_nursery() as self.nursery:
            try:
                async with fanout.stream(self.item, self.source(), **options) as results:
                    await self.read(results)
            except ItemError as exc:
                self.error = exc.args
            except fanout.FanOutError as error:
                self.error = error.indices
            self.ended = trio.current_time()
            assert trio.lowlevel.current_statistics().tasks_living <= tasks + 1  # the one that stops
            if plan.shared:
                assert limit.borrowed_tokens == 0
            self.nursery.cancel_scope.cancel()


@st.composite
def plans(draw):
    count = draw(st.integers(0, 9))
    leave_after = draw(st.sampled_from([math.inf, math.inf, 1, 2, 4]))
    policies = [fanout.FailFast(), fanout.Collect(), fanout.Collect(max_failures=2), fanout.Settle()]
    return Plan(
        seconds=[exact(draw(st.integers(0, 5)), x + 1) for x in range(count)],
        fails=draw(st.sets(st.integers(0, 8), max_size=draw(st.integers(0, 4)))),
        # A reader does not leave at the moment at which an item starts.
        pauses=[
            exact(draw(st.integers(0, 6)), x + 12) if leave_after == x + 1 or draw(st.booleans()) else 0
            for x in range(count)
        ],
        limit=draw(st.integers(1, 4)),
        buffer=draw(st.sampled_from([None, 0, 1, 2, 5, math.inf])),
        ordered=draw(st.booleans()),
        policy=draw(st.sampled_from(policies)),
        stop_at=exact(draw(st.sampled_from([math.inf, math.inf, 0, 1, 3, 8])), 25),
        leave_after=leave_after,
        source=draw(st.sampled_from(["sized", "iterator", "async"])),
        shared=draw(st.booleans()),
    )


@given(plans())
def test_a_stream_does_what_the_model_does(plan):
    real, expected = Execution(plan), StreamSimulation(plan).run()
    run(real.main)
    assert list(real.began.items()) == list(expected.began.items())
    assert real.handed_over == expected.handed_over
    assert real.error == expected.error
    assert real.ended == expected.now
    assert real.most_out <= plan.window
    indices = [index for _, index, _ in real.handed_over]
    assert len(set(indices)) == len(indices)
    if plan.ordered:
        assert indices == sorted(indices)
