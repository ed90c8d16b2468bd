"""`cap` with `overloaded` against a model of its rules, which knows no tasks: one thing happens after another."""

from __future__ import annotations

import math
from heapq import heappop, heappush
from typing import Any, NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_fanout import cap


class Call(NamedTuple):
    arrives: float
    takes: float
    answer: Any
    """Of `overloaded`, or "success"."""
    patience: float = math.inf


class BusyError(Exception):
    """Holds the answer."""


class Model:
    """When each of some calls starts. No two things happen at the same moment."""

    def __init__(self, limit, calls):
        self.calls = calls
        self.limit = limit
        self.size = min(limit, 10)
        self.epoch = self.successes = self.in_use = 0
        self.waited = self.at_gate = self.has_succeeded = False
        self.doubles = True
        self.gate = self.next = -math.inf
        self.cuts = self.first_epoch = 0
        self.line = []
        self.starts = {}
        self.epochs = {}
        self.events = [(call.arrives, "arrives", number) for number, call in enumerate(calls)]
        self.events.sort()

    def run(self):
        while self.events:
            self.now, what, number = heappop(self.events)
            getattr(self, what)(number)
            self.hand_out()
        return [start for _, start in sorted(self.starts.items())]

    def is_open(self):
        return self.now >= max(self.gate, self.next)

    def hand_out(self):
        while self.line and self.is_open() and self.in_use < self.size:
            number = self.line.pop(0)
            self.in_use += 1
            self.starts[number] = self.now
            self.epochs[number] = self.epoch
            if self.is_block():
                self.postpone()
                self.at_gate = True
            heappush(self.events, (self.now + self.calls[number].takes, "ends", number))
        if self.is_open():
            self.at_gate = False
            self.waited |= bool(self.line)
        elif self.in_use < self.size or not self.line:
            self.at_gate = True  # the first has got a token, and looked at the gate again

    def arrives(self, number):
        self.line.append(number)

    def opens(self, number):
        """The gate; others than this may have moved it since."""

    def ends(self, number):
        answer = self.calls[number].answer
        if answer == "success":
            self.succeeded(self.epochs[number])
        elif answer is not None and answer is not False:
            if answer is not True and answer > 0:
                self.gate = max(self.gate, self.now + answer)
                heappush(self.events, (self.gate, "opens", number))
            if self.epochs[number] == self.epoch:
                self.cut()
        self.in_use -= 1

    def succeeded(self, epoch):
        if epoch >= self.first_epoch:
            if self.is_block() and not self.has_succeeded:
                self.doubles = True
            self.cuts = 0
            self.next = -math.inf
        self.has_succeeded = True
        if epoch == self.epoch:
            self.successes += 1
            if self.waited and self.successes >= self.size < self.limit:
                self.change(min(self.limit, self.size * 2 if self.doubles else self.size + 1))

    def cut(self):
        self.epoch += 1
        self.cuts += 1
        self.doubles = False
        if self.cuts in {1, 3}:
            self.first_epoch, self.began = self.epoch, self.now
        if self.is_block():
            self.postpone()
        self.change(min(self.size, 1 if self.is_block() else max(1, 7 * min(self.size, self.in_use) // 10)))

    def is_block(self):
        return self.cuts >= 3

    def postpone(self):
        """The next call starts a pause later."""
        self.next = self.now + min(2 ** (self.cuts - 3), max(8, (self.now - self.began) / 8))
        heappush(self.events, (self.next, "opens", -1))

    def change(self, size):
        self.size = size
        self.successes = 0
        self.waited = False
        if self.is_open():
            self.hand_out()
        self.waited = bool(self.line) and not self.at_gate


REFUSALS = [True, True, 0, 3.0, 40.0]
ANSWERS = {
    "a server that is fine": ["success"] * 12 + [False, None, *REFUSALS],
    "a busy one": ["success"] * 4 + [False, None, *REFUSALS],
    "one that is down": ["success", False, *[True] * 12, *REFUSALS],
}


@st.composite
def some_calls(draw):
    answers = st.sampled_from(ANSWERS[draw(st.sampled_from(sorted(ANSWERS)))])
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, 60), st.sampled_from([1, 2, 5, 30]), answers),
            min_size=1,
            max_size=draw(st.sampled_from([10, 40, 120])),
        )
    )
    # No two things at the same moment: each number has a small part of its own, and of roots no sums are equal.
    return [
        Call(
            arrives / 16 + math.sqrt(number + 2) / 2**13,
            takes + math.sqrt(number + 2) / 2**17,
            answer + math.sqrt(number + 2) / 2**21 if isinstance(answer, float) else answer,
        )
        for number, (arrives, takes, answer) in enumerate(rows)
    ]


@given(calls=some_calls(), limit=st.sampled_from([1, 2, 7, 10, 15, 40, math.inf]), own=st.booleans())
def test_starts_are_those_of_the_model(calls, limit, own):
    starts = {}

    async def work(number):
        starts[number] = trio.current_time()
        await trio.sleep(calls[number].takes)
        if calls[number].answer != "success":
            raise BusyError(calls[number].answer)

    fn = cap(work, limit if own else trio.CapacityLimiter(limit), overloaded=lambda exc: exc.args[0])

    async def call(number):
        await trio.sleep_until(calls[number].arrives)
        try:
            await fn(number)
        except BusyError:
            pass

    async def main():
        async with trio.open_nursery() as nursery:
            for number in range(len(calls)):
                nursery.start_soon(call, number)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [start for _, start in sorted(starts.items())] == pytest.approx(Model(limit, calls).run(), abs=1e-9)


TOGETHER = st.lists(
    st.builds(
        Call,
        st.sampled_from([0, 0, 0, 1, 2, 3]),
        st.sampled_from([1, 1, 1, 2]),
        st.sampled_from(["success"] * 8 + [True, 1.0, 2.0, 3.0]),
        st.sampled_from([math.inf] * 4 + [0.5, 1, 2, 3]),
    ),
    max_size=60,
)


@given(calls=TOGETHER, limit=st.sampled_from([1, 5, 10, 30, math.inf]), own=st.booleans())
def test_order_and_gate_are_kept_where_calls_end_together(calls, limit, own):
    """Many begin, end, fail and are cancelled at the same moments, where the model does not tell which is first."""
    starts = {}
    gates = [-math.inf]

    async def work(number):
        starts[number] = trio.current_time()
        assert starts[number] >= max(gates)
        await trio.sleep_until(math.floor(starts[number]) + calls[number].takes)
        if calls[number].answer != "success":
            raise BusyError(calls[number].answer)

    def overloaded(exc):
        gates.append(trio.current_time() + (0 if exc.args[0] is True else exc.args[0]))
        return exc.args[0]

    limiter = trio.CapacityLimiter(limit)
    fn = cap(work, limit if own else limiter, overloaded=overloaded)

    async def call(number):
        await trio.sleep_until(calls[number].arrives + number / 1024)  # so that the order is known
        with trio.move_on_after(calls[number].patience) as scope:
            try:
                await fn(number)
            except BusyError:
                pass
        assert number in starts or scope.cancelled_caught

    async def main():
        async with trio.open_nursery() as nursery:
            for number in range(len(calls)):
                nursery.start_soon(call, number)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    in_order = [starts[n] for n in sorted(starts, key=lambda n: calls[n].arrives + n / 1024)]
    assert in_order == sorted(in_order)
    assert limiter.borrowed_tokens == limiter.statistics().tasks_waiting == 0
