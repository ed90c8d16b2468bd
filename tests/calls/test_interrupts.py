"""Ctrl-C at every moment: no call hangs, nothing is left behind, and it comes out bare.

Python handles a signal where a function begins, where a loop goes back, and where a call of a C function returns. Each
test here runs a call again and again, with a SIGINT at the first of these moments, the second, and so on, as long as
there is one: in the package's own functions, in the items and in the source.
"""

import contextlib
import contextvars
import gc
import itertools
import math
import opcode
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import trio_fanout as fanout
from trio_fanout._core.run import Run
from trio_fanout._core.windows import Window

# Interrupted between making a coroutine and awaiting it, any program leaves one that was never awaited, and an async
# generator that Trio has to close, if it was one that closes it.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*(coroutine|async_generator) object:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _collected():
    """What an interrupt has left unfinished is collected while its warnings are ignored, and in no other test."""
    yield
    for _ in range(3):
        gc.collect()


PACKAGE = str(Path(fanout.__file__).parent)
RESUME = opcode.opmap["RESUME"]

var = contextvars.ContextVar("var")


# What runs


async def work(n):
    if n % 3:
        await trio.sleep(n % 3)
    return n


async def work_with_a_variable(n):
    var.set(n)
    return await work(n)


async def work_in_an_open_scope(n):
    trio.CancelScope().__enter__()
    return await work(n)


def plain(count):
    yield from range(count)


async def waiting(count):
    for n in range(count):
        await trio.lowlevel.checkpoint()
        yield n
    await trio.sleep(1)


WORK = [work, work_with_a_variable, work_in_an_open_scope]
# Of Trio, what is not protected by itself.
FOREIGN = {fn.__code__ for fn in (*WORK, plain, waiting, trio.Event.wait, trio.lowlevel.wait_task_rescheduled)}


# Where it is interrupted


def interrupt(main, at):
    """Run `main` with a SIGINT at that moment, and check what is left. False if there are not so many moments."""
    moment = 0

    def profile(frame, event, arg):
        nonlocal moment
        code = frame.f_code
        if not (code.co_filename.startswith(PACKAGE) or code in FOREIGN):
            return
        if event == "call":
            # Where a coroutine goes on after an `await`, no signal is handled: its innermost frame does that.
            instruction, argument = code.co_code[frame.f_lasti : frame.f_lasti + 2]
            if instruction != RESUME or argument & 3 > 1:
                return
        elif event != "c_return":
            return
        moment += 1
        if moment == at:
            signal.raise_signal(signal.SIGINT)

    left = Left()

    async def watchdog():
        await trio.sleep(1000)
        raise AssertionError("the run hangs")  # Trio then ends the whole run

    async def outer():
        trio.lowlevel.spawn_system_task(watchdog)
        tasks = trio.lowlevel.current_statistics().tasks_living
        sys.setprofile(profile)
        try:
            await main(left)
        finally:
            sys.setprofile(None)
            left.tasks = trio.lowlevel.current_statistics().tasks_living - tasks

    interrupted = False
    try:
        trio.run(outer, clock=MockClock(autojump_threshold=0))
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted == (moment >= at)
    left.check()
    return interrupted


class Left:
    """What a run may leave behind."""

    def __init__(self):
        self.tasks = 0
        self.limiters = []
        self.handles = []

    def limiter(self, total):
        self.limiters.append(trio.CapacityLimiter(total))
        return self.limiters[-1]

    def check(self):
        assert self.tasks == 0
        for limiter in self.limiters:
            assert limiter.borrowed_tokens == 0
            assert limiter.statistics().tasks_waiting == 0
        for handle in self.handles:
            assert "not finished" not in repr(handle)


def interrupt_everywhere(main):
    moments = next(at for at in itertools.count(1) if not interrupt(main, at)) - 1
    assert moments > 20


# The calls

FUNCTIONS = pytest.mark.parametrize("fn", WORK)
RUNS = pytest.mark.parametrize(("fn", "make"), [(work_with_a_variable, plain), (work_in_an_open_scope, waiting)])
SHARED = pytest.mark.parametrize("shared", [False, True])


@RUNS
@SHARED
def test_map(shared, make, fn):
    async def main(left):
        await fanout.map(
            fn, make(5), limit=left.limiter(2) if shared else 2, item_timeout=10 if make is plain else None
        )

    interrupt_everywhere(main)


@pytest.mark.parametrize("policy", [fanout.FailFast(), fanout.Collect()])
def test_do_with_failures(policy):
    async def fail(n):
        await work(n)
        if n:
            raise ValueError(n)

    async def main(left):
        try:
            await fanout.do(fail, waiting(5), limit=left.limiter(2), policy=policy)
        except (ValueError, fanout.FanOutError):
            pass

    interrupt_everywhere(main)


def test_a_run_in_an_item_of_a_run():
    async def nested(n):
        return await fanout.map(work, range(n), limit=2)

    async def main(left):
        await fanout.fan_out([nested, nested], 3, limit=left.limiter(2))

    interrupt_everywhere(main)


@RUNS
@pytest.mark.parametrize("ordered", [False, True])
def test_a_stream(ordered, make, fn):
    async def main(left):
        limit = left.limiter(2) if ordered else 2
        async with fanout.stream(
            fn, make(5), limit=limit, ordered=ordered, buffer=0 if ordered else math.inf
        ) as results:
            left.limiters.append(results.limiter)
            async for _ in results:
                pass

    interrupt_everywhere(main)


@pytest.mark.parametrize("make", [range, waiting])
@pytest.mark.parametrize("how", ["stop", "leave"])
def test_a_stream_that_ends_early(how, make):
    async def main(left):
        async with fanout.stream(work, make(8), limit=3, policy=fanout.Settle()) as results:
            left.limiters.append(results.limiter)
            async for index, _, _ in results:
                if index == 2 and how == "leave":
                    break
                if index == 2:
                    results.stop()

    interrupt_everywhere(main)


@FUNCTIONS
@pytest.mark.parametrize("limit", [3, "shared"])
def test_a_group(limit, fn):
    async def main(left):
        async def job(n):
            if n < 3:
                left.handles.append(group.start_soon(job, n + 3))
            await fn(n)

        async with fanout.open_group(limit=left.limiter(2) if limit == "shared" else limit) as group:
            left.limiters.append(group.limiter)
            for n in range(3):
                var.set(n)
                left.handles.append(group.start_soon(job, n))
            await left.handles[-1].wait()
            await trio.sleep(5)  # all workers idle
            left.handles.append(group.start_soon(job, 3))

    interrupt_everywhere(main)


@FUNCTIONS
@SHARED
def test_a_graph(shared, fn):
    async def main(left):
        async def step(n, *needs):
            await fn(n)

        steps = {
            "a": fanout.Step(partial(step, 1)),
            "b": fanout.Step(partial(step, 3)),
            "c": fanout.Step(partial(step, 2), needs=("a", "b")),
            "d": fanout.Step(partial(step, 1), needs=("b", "c"), settled=True),
        }
        await fanout.run_graph(steps, limit=left.limiter(2) if shared else 2)

    interrupt_everywhere(main)


# A reader that catches it, and goes on


def interrupt_as_it_returns(monkeypatch, cls, name):
    """Interrupt the next caller of this method."""
    method = getattr(cls, name)

    def interrupted(self):
        monkeypatch.undo()
        method(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(cls, name, interrupted)


@pytest.mark.parametrize(("cls", "name"), [(Window, "free"), (Run, "room_freed")])
def test_a_receive_that_is_interrupted_has_handed_over_nothing(monkeypatch, cls, name):
    async def main():
        got, interrupts = [], 0
        async with fanout.stream(work, range(10), limit=1, buffer=0) as results:
            while len(got) < 9:
                if len(got) == 3 and not interrupts:
                    interrupt_as_it_returns(monkeypatch, cls, name)
                try:
                    await trio.sleep(3)
                    assert results.statistics().outstanding == 1
                    result = await results.receive()
                    got.append(result.value)
                except KeyboardInterrupt:
                    interrupts += 1
        assert got == [*range(9)]
        assert interrupts == 1

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_stop_that_is_interrupted_is_complete(monkeypatch):
    async def main():
        async with fanout.stream(trio.sleep, [1] * 100, limit=2) as results:
            async for result in results:
                if result.index == 2:
                    interrupt_as_it_returns(monkeypatch, Run, "stop")
                    with contextlib.suppress(KeyboardInterrupt):
                        results.stop()
            assert result.index < 10
        await trio.lowlevel.checkpoint()

    with contextlib.suppress(KeyboardInterrupt):
        trio.run(main, clock=MockClock(autojump_threshold=0))
