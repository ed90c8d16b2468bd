"""`stream` against a model: what is started and handed over, in which order and when, and how many are ever out.

The model plays the same story by hand, one moment after the other, with no tasks. No two things happen at one moment in
it, or what comes first would be a matter of luck: each duration has a power of two of its own as its fraction, so that
no two sums of them are equal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import outcome
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

import trio_fanout as fanout
from helpers import limit_of


class ItemError(Exception):
    pass


@dataclass
class Story:
    """What is given to a stream, and what its reader does."""

    durations: list[float]
    failing: set[int]
    pauses: list[float]  # of the reader, after each result
    limit: float
    buffer: float | None
    ordered: bool
    policy: Any
    stop_at: float
    leave_after: float  # this many results
    make: str = "list"
    shared: bool = False


@dataclass
class Course:
    """What happened then."""

    started: list[tuple[float, int]] = field(default_factory=list)
    handed_over: list[tuple[float, int, Any]] = field(default_factory=list)
    error: Any = None  # the indices of the failures that were raised
    end: float = 0
    most_out: int = field(default=0, compare=False)


def play(story):
    """The model."""
    course = Course()
    fail_fast, settle = isinstance(story.policy, fanout.FailFast), isinstance(story.policy, fanout.Settle)
    max_failures = 1 if fail_fast else math.inf if settle else story.policy.max_failures or math.inf
    window = story.limit + (story.limit if story.buffer is None else story.buffer)
    now = 0.0
    out = due = taken = 0
    running = {}
    failures = []
    finished = {}  # not yet ready, None where there is no result
    ready = []
    reader_comes = 0.0
    stopped = False

    while True:
        changed = True
        while changed:
            changed = False
            while not stopped and len(running) < story.limit and out < window and taken < len(story.durations):
                running[taken] = now + story.durations[taken]
                course.started.append((now, taken))
                taken, out, changed = taken + 1, out + 1, True
            if reader_comes <= now and ready:
                if len(course.handed_over) >= story.leave_after:
                    break
                index, value = ready.pop(0)
                reader_comes = now + story.pauses[len(course.handed_over)]
                course.handed_over.append((now, index, value))
                out, changed = out - 1, True
            if len(course.handed_over) >= story.leave_after and reader_comes <= now:
                break
        left = reader_comes <= now and len(course.handed_over) >= story.leave_after
        over = not running and (stopped or taken == len(story.durations))
        if left or (over and not ready and reader_comes <= now):
            course.end = now
            course.error = tuple(sorted(failures)) if failures and not settle else None
            return course
        moments = [*running.values(), reader_comes, story.stop_at]
        now = min(moment for moment in moments if moment > now)
        if now == story.stop_at:
            stopped = True
        for index in [index for index, moment in running.items() if moment == now]:
            del running[index]
            if index in story.failing and not settle:
                failures.append(index)
                out -= 1
                if fail_fast:
                    continue
                finished[index] = None
            else:
                finished[index] = (index, index in story.failing) if settle else (index, None)
            if len(failures) >= max_failures:
                continue
        if story.ordered:
            while due in finished:
                if entry := finished.pop(due):
                    ready.append(entry)
                due += 1
        else:
            ready += [entry for entry in finished.values() if entry]
            finished.clear()
        if len(failures) >= max_failures:
            stopped = True
            running.clear()
            if not fail_fast:
                ready += [entry for _, entry in sorted(finished.items()) if entry]
            finished.clear()


def perform(story):
    """The real thing."""
    course = Course()
    out = 0

    async def fn(x):
        nonlocal out
        course.started.append((trio.current_time(), x))
        await trio.sleep(story.durations[x])
        if x in story.failing:
            if not isinstance(story.policy, fanout.Settle):
                out -= 1
            raise ItemError(x)

    def items():
        nonlocal out
        for x in range(len(story.durations)):
            out += 1
            course.most_out = max(course.most_out, out)
            yield x

    async def async_items():
        for x in items():
            yield x

    class Sized:
        def __len__(self):
            return len(story.durations)

        def __iter__(self):
            return items()

    async def stop(results):
        await trio.sleep_until(story.stop_at)
        results.stop()

    async def main():
        nonlocal out
        limit = limit_of(story.limit, story.shared)
        source = {"list": Sized, "iterator": items, "async": async_items}[story.make]()
        async with trio.open_nursery() as nursery:
            try:
                async with fanout.stream(
                    fn, source, limit=limit, policy=story.policy, ordered=story.ordered, buffer=story.buffer
                ) as results:
                    if story.stop_at < math.inf:
                        nursery.start_soon(stop, results)
                    left = story.leave_after
                    while left:
                        left -= 1
                        try:
                            index, item, value = await results.receive()
                        except trio.EndOfChannel:
                            break
                        out -= 1
                        assert item == index
                        if isinstance(story.policy, fanout.Settle):
                            value = isinstance(value, outcome.Error)
                        course.handed_over.append((trio.current_time(), index, value))
                        await trio.sleep(story.pauses[len(course.handed_over) - 1])
            except ItemError as exc:
                course.error = exc.args
            except fanout.FanOutError as error:
                course.error = error.indices
            course.end = trio.current_time()
            assert trio.lowlevel.current_statistics().tasks_living <= alone + 1  # the one that stops
            if story.shared:
                assert limit.borrowed_tokens == 0
            nursery.cancel_scope.cancel()

    async def measured():
        nonlocal alone
        alone = trio.lowlevel.current_statistics().tasks_living
        await main()

    alone = 0
    trio.run(measured, clock=MockClock(autojump_threshold=0))
    return course


@st.composite
def stories(draw):
    count = draw(st.integers(0, 9))
    leave_after = draw(st.sampled_from([math.inf, math.inf, 1, 2, 4]))
    policies = [fanout.FailFast(), fanout.Collect(), fanout.Collect(max_failures=2), fanout.Settle()]
    return Story(
        durations=[draw(st.integers(0, 5)) + 0.5 ** (x + 1) for x in range(count)],
        failing=draw(st.sets(st.integers(0, 8), max_size=draw(st.integers(0, 4)))),
        # Who leaves does not do so at the moment at which others start.
        pauses=[
            draw(st.integers(0, 6)) + 0.5 ** (x + 12) if leave_after == x + 1 or draw(st.booleans()) else 0
            for x in range(count)
        ],
        limit=draw(st.integers(1, 4)),
        buffer=draw(st.sampled_from([None, 0, 1, 2, 5, math.inf])),
        ordered=draw(st.booleans()),
        policy=draw(st.sampled_from(policies)),
        stop_at=draw(st.sampled_from([math.inf, math.inf, 0, 1, 3, 8])) + 0.5**25,
        leave_after=leave_after,
        make=draw(st.sampled_from(["list", "iterator", "async"])),
        shared=draw(st.booleans()),
    )


@given(stories())
def test_a_stream_does_what_the_model_does(story):
    real, model = perform(story), play(story)
    assert real == model
    window = story.limit + (story.limit if story.buffer is None else story.buffer)
    assert real.most_out <= window
    indices = [index for _, index, _ in real.handed_over]
    assert len(set(indices)) == len(indices)
    if story.ordered:
        assert indices == sorted(indices)
