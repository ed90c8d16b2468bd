"""`cap` with `overloaded` at a server that goes on refusing: when it is asked, and what ends that."""

import contextlib
import functools
import itertools
import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from helpers import nothing_left
from trio_fanout import cap
from trio_fanout._overload import Block, Size


class BusyError(Exception):
    """A refusal, with what `overloaded` is to say of it."""

    def __init__(self, answer=True):
        super().__init__(answer)
        self.answer = answer


def overloaded(exc):
    return exc.answer if isinstance(exc, BusyError) else False


class Server:
    """Refuses at once, until it is told to answer; then an answer takes a second."""

    def __init__(self):
        self.starts = []
        self.answers = False
        self.error = BusyError

    async def __call__(self, item=None):
        self.starts.append(trio.current_time())
        if not self.answers:
            raise self.error
        await trio.sleep(1)

    def since(self, begin):
        """When it was asked, from that time on."""
        return [time for time in self.starts if time >= begin]


async def retried(fn, item=None):
    """A call that is tried again until it succeeds, without a wait of its own."""
    while True:
        try:
            return await fn(item)
        except BusyError:
            pass


async def refused(fn, times=1):
    for _ in range(times):
        with pytest.raises(BusyError):
            await fn()


LIMITS = pytest.mark.parametrize("limiter", [False, True], ids=["own", "limiter"])


def make(server, limiter=False, limit=100, **options):
    return cap(server, trio.CapacityLimiter(limit) if limiter else limit, overloaded=overloaded, **options)


@LIMITS
async def test_third_cut_in_a_row_begins_a_block_of_calls_farther_and_farther_apart(autojump_clock, limiter):
    """A second after the third cut, then 2, 4 and 8; from 64 seconds on, an eighth of the time so far."""
    server = Server()
    fn = make(server, limiter)
    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(retried, fn)
        await trio.sleep(200)
        nursery.cancel_scope.cancel()
    # The first three get their tokens one after another; the others of the first ten are of their epochs.
    expected = [1, 3, 7]
    while expected[-1] < 200:
        expected.append(expected[-1] + max(8, expected[-1] / 8))
    assert server.since(0.5) == pytest.approx([time for time in expected if time < 200])


@LIMITS
async def test_first_success_ends_the_block_and_its_pause_at_once(autojump_clock, limiter):
    server = Server()
    fn = make(server, limiter)
    await refused(fn, 8)  # the last at 23
    assert trio.current_time() == 1 + 2 + 4 + 8 + 8
    server.answers = True
    await fn()
    assert trio.current_time() == 32
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(fn)
    # From 1, and as nothing had succeeded before the block, it doubles as at first.
    assert server.since(32) == [32, 33, 33, 34, 34, 34, 34, 35, 35, 35, 35, 35]


async def test_those_at_the_gate_start_as_the_block_ends(autojump_clock):
    """They need not wait until the pause would have passed."""
    server = Server()
    fn = make(server)
    await refused(fn, 7)
    server.answers = True
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(fn)
            await wait_all_tasks_blocked()
    assert server.since(20) == [23, 24, 25, 25]


async def test_cap_grows_by_one_after_a_block_if_any_call_had_succeeded_before_it(autojump_clock):
    server = Server()
    server.answers = True
    fn = make(server)
    await fn()
    server.answers = False
    await refused(fn, 4)
    server.answers = True
    await fn()
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(fn)
    assert [time - begin for time in server.since(begin)] == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4]


async def test_two_cuts_are_no_block(autojump_clock):
    server = Server()
    fn = make(server)
    await refused(fn, 2)
    assert trio.current_time() == 0
    server.answers = True
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(fn)
    assert server.starts[2:] == [0, 1, 1, 2]  # the first success makes it two


async def test_success_of_a_call_that_began_after_the_first_cut_ends_the_row(autojump_clock):
    server = Server()
    fn = make(server)
    for _ in range(10):
        await refused(fn, 2)
        server.answers = True
        await fn()
        server.answers = False
    assert trio.current_time() == 10


async def test_success_of_a_call_from_before_the_first_cut_does_not_end_the_row(autojump_clock):
    server = Server()
    fn = make(server)
    async with trio.open_nursery() as nursery:
        server.answers = True
        nursery.start_soon(fn)
        await wait_all_tasks_blocked()
        server.answers = False
        await refused(fn, 2)
        await trio.sleep(1.5)  # the first has succeeded
        await refused(fn)
        begin = trio.current_time()
        await refused(fn)
        assert trio.current_time() == begin + 1


async def test_calls_from_before_the_block_neither_end_it_nor_make_its_pause_longer(autojump_clock):
    starts = []

    async def work(seconds, error):
        starts.append(trio.current_time())
        await trio.sleep(seconds)
        if error is not None:
            raise error

    fn = cap(work, 100, overloaded=overloaded)
    async with trio.open_nursery() as nursery:

        async def call(seconds, error=None):
            with contextlib.suppress(BusyError):
                await fn(seconds, error)

        nursery.start_soon(call, 4.25)
        nursery.start_soon(call, 4.5, BusyError())
        for count in (8, 5, 2):  # all that the cap lets in: 10, 7, 4
            for _ in range(count):
                nursery.start_soon(call, 1, BusyError())
            await trio.sleep(1)
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(call, 0.5, BusyError())
    # The block begins at 3, and so the pause ends at 4; but the old ones count until 4.5.
    assert [time for time in starts if time >= 3] == [4.5, 7, 11.5]


@pytest.mark.parametrize("answer", [False, None])
async def test_failures_that_are_no_overload_and_cancelled_calls_change_nothing(autojump_clock, answer):
    server = Server()
    fn = make(server)
    await refused(fn, 3)
    server.error = BusyError(answer)
    await refused(fn, 3)
    assert server.since(0.5) == [1, 2, 3]  # the pause stays
    server.answers = True
    with trio.move_on_after(1.5):
        await fn()
    server.answers = False
    server.error = BusyError()
    await refused(fn, 2)
    assert server.since(3.5) == [4, 5, 7]


async def test_cancelled_at_the_gate_of_a_block_another_takes_its_place(autojump_clock):
    server = Server()
    fn = make(server)
    await refused(fn, 5)
    server.answers = True
    with nothing_left():
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.5):
                async with trio.open_nursery() as impatient:
                    impatient.start_soon(fn)
                    await wait_all_tasks_blocked()
                    nursery.start_soon(fn)
                    await wait_all_tasks_blocked()
                    nursery.start_soon(fn)
    assert server.since(5) == [7, 8]


async def test_time_that_the_server_names_holds_as_well(autojump_clock):
    server = Server()
    fn = make(server)
    await refused(fn, 3)
    server.error = BusyError(2.5)
    await refused(fn, 2)
    server.error = BusyError(60)
    await refused(fn)
    server.error = BusyError()
    await refused(fn)
    # 1; 2.5 is longer than 2; 4 longer than 2.5; 60 longer than 8.
    assert server.since(0.5) == [1, 3.5, 7.5, 67.5]


async def test_gate_of_the_server_outlasts_the_block(autojump_clock):
    limiter = trio.CapacityLimiter(100)
    server = Server()
    fn = cap(server, limiter, overloaded=overloaded)
    await refused(fn, 3)
    server.error = BusyError(5)
    await refused(fn)  # at 1
    server.answers = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fn)
        await wait_all_tasks_blocked()
        limiter.total_tokens = 2  # which ends the block
    assert server.since(0.5) == [1, 6]


async def test_waiting_at_the_gate_of_a_block_is_no_waiting_for_a_token(autojump_clock):
    server = Server()
    fn = make(server)
    await refused(fn, 3)
    server.answers = True
    await fn()  # waits at the gate, and ends the block
    await fn()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fn)
        nursery.start_soon(fn)
    assert server.since(0.5) == [1, 2, 3, 4]


@pytest.mark.parametrize("end", ["start", "success", "refusal", "failure", "cancelled"])
async def test_tokens_assigned_by_hand_end_a_block_when_the_next_call_starts_or_ends(autojump_clock, end):
    limiter = trio.CapacityLimiter(100)
    server = Server()
    seconds, error = 1, None

    async def work():
        await server()
        await trio.sleep(seconds)
        if error is not None:
            raise error

    fn = cap(work, limiter, overloaded=overloaded)
    await refused(fn, 6)  # the next at 15
    server.answers = True
    async with trio.open_nursery() as nursery:

        async def call():
            with trio.CancelScope() as scope:
                if end == "cancelled" and not server.since(14):
                    scope.deadline = 16.5
                try:
                    await fn()
                except (BusyError, ValueError):
                    pass

        if end == "start":
            limiter.total_tokens = 5
        else:
            error = {"refusal": BusyError(), "failure": ValueError()}.get(end)
            seconds = 1 if end == "cancelled" else 0.5
        nursery.start_soon(call)
        await trio.sleep_until(14.5 if end == "start" else 15.5)
        for _ in range(3):
            nursery.start_soon(call)
        if end != "start":
            await trio.sleep_until(16)
            limiter.total_tokens = 5
            await trio.sleep_until(16.25)
            assert server.since(14) == [15]
        await trio.sleep_until(16.75)
        assert server.since(14) == ([15] * 4 if end == "start" else [15] + [16.5] * 3)
        nursery.cancel_scope.cancel()


async def test_no_tokens_stay_no_tokens_in_a_block(autojump_clock):
    limiter = trio.CapacityLimiter(100)
    server = Server()
    fn = cap(server, limiter, overloaded=overloaded)
    await refused(fn, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retried, fn)
        await trio.sleep(2.5)  # it was refused at 3, and waits
        limiter.total_tokens = 0
        server.answers = True
        await trio.sleep(100)
        assert limiter.total_tokens == limiter.borrowed_tokens == 0
        assert server.since(3.5) == []
        limiter.total_tokens = 1
    assert server.since(3.5) == [103.5]


async def test_caps_on_one_limiter_share_a_block(autojump_clock):
    limiter = trio.CapacityLimiter(40)
    one, other = Server(), Server()
    capped, also = (cap(server, limiter, overloaded=overloaded) for server in (one, other))
    await refused(capped)
    await refused(also)
    await refused(capped)
    other.answers = True
    await also()
    assert other.starts == [0, 1]


async def test_each_key_has_blocks_of_its_own(autojump_clock):
    server = Server()
    fn = make(server, key=lambda item: item)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(retried, fn, "a")
        await trio.sleep(0.5)
        server.answers = True
        await fn("b")
    assert server.since(0.5) == [0.5, 1, 2]


async def test_key_is_known_until_the_pause_of_its_block_has_passed(autojump_clock):
    """And is then as good as new: its calls may begin at ten at once."""
    server = Server()
    fn = make(server, key=lambda item=None: "key")
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(retried, fn)
    assert server.since(0.5) == [1, 3]
    server.answers = True
    await fn()
    assert server.since(5) == [7]
    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(fn)
    assert server.since(8) == [8] * 10 + [9] * 2


def test_block_belongs_to_one_run():
    limiter = trio.CapacityLimiter(40)
    server = Server()
    fn = cap(server, limiter, overloaded=overloaded)
    for _ in range(2):
        server.starts.clear()
        trio.run(refused, fn, 4, clock=MockClock(autojump_threshold=0))
        assert server.starts == [0, 0, 0, 1]
    server.starts.clear()
    server.answers = True
    trio.run(fn, clock=MockClock(autojump_threshold=0))
    assert server.starts == [0]


async def test_tokens_that_were_given_as_a_block_begins_are_taken_back(autojump_clock):
    """Three calls get the tokens of others, and the third cut comes before they can run: they start one by one."""
    for _ in range(20):  # as Trio runs tasks in any order
        limiter = trio.CapacityLimiter(100)
        starts = []
        begin = trio.current_time()

        def release(*others, limiter=limiter):
            for other in others:
                limiter.release_on_behalf_of(other)

        async def work(item, starts=starts, begin=begin, release=release):
            starts.append((item, trio.current_time() - begin))
            if item == "third":
                await trio.sleep(1)
                release(0, 1, 2)
            raise BusyError

        fn = cap(work, limiter, overloaded=overloaded)
        for other in range(9):
            limiter.acquire_on_behalf_of_nowait(other)
        await refused(functools.partial(fn, "first"))  # from 10 to 7
        release(6, 7, 8)
        await refused(functools.partial(fn, "second"))  # to 4
        release(3, 4, 5)
        with nothing_left():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refused, functools.partial(fn, "third"))
                await wait_all_tasks_blocked()
                for item in range(4):
                    nursery.start_soon(refused, functools.partial(fn, item))
                    await wait_all_tasks_blocked()
        assert starts[2:] == [("third", 0), (0, 2), (1, 4), (2, 8), (3, 16)]
        assert limiter.borrowed_tokens == limiter.statistics().tasks_waiting == 0


async def test_tokens_that_come_and_go_as_the_pause_ends_let_one_call_in(autojump_clock):
    """What is assigned and taken back before a call starts or ends is not seen."""
    for _ in range(20):  # as Trio runs tasks in any order
        limiter = trio.CapacityLimiter(100)
        starts = []

        async def work(starts=starts):
            starts.append(trio.current_time())
            await trio.sleep(0.5)
            raise BusyError

        fn = cap(work, limiter, overloaded=overloaded)
        await refused(fn, 3)
        begin = trio.current_time()  # of a block: the pause is a second
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(refused, fn)
            await wait_all_tasks_blocked()
            limiter.total_tokens = 3
            await trio.sleep_until(begin + 1)
            limiter.total_tokens = 1
        assert [time - begin for time in starts[3:]] == [1, 3.5, 8]


# The numbers, which need no Trio


def test_size_grows_by_doubling_and_after_a_cut_by_one():
    size = Size(1000)
    seen = [size.now]
    for _ in range(100):
        size.waited = True
        if size.succeeded(size.epoch):
            seen.append(size.now)
    assert seen == [10, 20, 40, 80]
    size.cut(40, to_one=False)
    assert size.now == 28
    size.waited = True
    assert [size.succeeded(1) for _ in range(28)] == [False] * 27 + [True]
    assert size.now == 29


def test_size_counts_no_success_of_another_epoch_and_no_growth_without_a_wait():
    size = Size(1000)
    assert not any(size.succeeded(0) for _ in range(100))
    size.cut(10, to_one=False)
    size.waited = True
    assert not any(size.succeeded(0) for _ in range(100))
    assert size.now == 7


@pytest.mark.parametrize("ceiling", [0, 1, 7, 10, 15, math.inf])
def test_size_stays_within_its_ceiling_and_above_nothing(ceiling):
    size = Size(ceiling)
    assert size.now == min(10, ceiling)
    for _ in range(200):
        size.waited = True
        size.succeeded(0)
    assert size.now == ceiling if ceiling < math.inf else size.now > 100
    for _ in range(20):
        size.cut(1000, to_one=False)
    assert size.now == min(1, ceiling)


def test_size_assigned_is_the_ceiling_too():
    size = Size(1000)
    size.assign(30)
    for _ in range(100):
        size.waited = True
        size.succeeded(0)
    assert size.now == 30
    size.assign(0)
    size.cut(5, to_one=True)
    assert size.now == 0


def test_pauses_double_up_to_eight_seconds_or_an_eighth_of_the_block():
    block = Block()
    assert not block
    now, pauses = 100.0, []
    for epoch in range(1, 40):
        block.cut(now, epoch)
        pauses.append(block.next - now)
        now += max(pauses[-1], 0)
    assert pauses[:2] == [-math.inf] * 2
    assert pauses[2:12] == [1, 2, 4, 8, 8, 8, 8, 8, 8, 8]
    began = 100.0
    moments = itertools.accumulate(pauses[2:], initial=began)
    assert pauses[2:] == pytest.approx(
        [min(2**n, max(8, (moment - began) / 8)) for n, moment in zip(range(37), moments, strict=False)]
    )


def test_block_of_years_has_no_overflow():
    block = Block()
    for epoch in range(1, 5_000):
        block.cut(float(epoch), epoch)
    assert block.next == 4_999 + (4_999 - 3) / 8


@pytest.mark.parametrize(("epoch", "ends"), [(0, False), (1, False), (2, False), (3, True), (4, True)])
def test_block_ends_with_a_success_of_a_call_that_began_in_it(epoch, ends):
    block = Block()
    for cut in (1, 2, 3, 4):
        block.cut(10.0, cut)
    assert block.succeeded(epoch) is ends
    assert bool(block) is not ends
